"""What a suite may ask for beside its results: accuracy on training and on test images while a method trains."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.errors import BadInput


@dataclass(frozen=True)
class Curves:
    """How often and on how many images generalisation is measured; see :mod:`benchmark.generalization`.

    The weights are the same with it and without it, and nothing is chosen by it.

    Args:
        images: of the training images that show their label, and as many test images, the first ones; all, where there
            are fewer.
        every: epochs from one measurement to the next, counted from epoch 0; the networks that are kept, ``last`` and
            ``best``, are always measured.
    """

    images: int = 200
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("images", "every"):
            if getattr(self, name) < 1:
                raise BadInput(f"curves.{name} is 1 or more, but found {getattr(self, name)}")


def check(values: Any) -> None:
    """Raise BadInput, with the key's name, for ``values`` that are no curves.

    A suite's parser says only that they are neither curves nor none. ``{}`` is all by default.
    """
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise BadInput(f"curves holds keys and their values, such as images: 200, but found {values!r}")
    known = Curves.__dataclass_fields__
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise BadInput(f"there is no key curves.{key}: {hint}")
        if type(value) is not int:
            raise BadInput(f"curves.{key} is a whole number, but found {value!r}")
