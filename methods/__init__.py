"""The subjects: one file per adversarial-training method, in the survey's taxonomy. ``from methods import TRADES``."""

from typing import Any

from methods import catalogue


def __getattr__(name: str) -> Any:
    try:
        return catalogue.by_class_name(name)
    except KeyError:
        raise AttributeError(f"module 'methods' has no attribute {name!r}") from None
