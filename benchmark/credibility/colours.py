"""The one place where a colour is decided: of a check, and of a row from all its checks."""

import math
from collections.abc import Iterable
from typing import Literal

from benchmark.credibility.record import Check

Colour = Literal["green", "amber", "red", "not applicable"]
_SHOWN = 3  # names in a mark; the others are counted


def colour(check: Check) -> Colour:
    """Judge one check.

    Red says that the row's figure is likely not robustness, amber that it deserves a second look. What could not be
    measured is amber, never green; a value that is no number is red. Thresholds that were set for another data set or
    radius may warn, but not condemn. Of a share of images one image is too little for red.
    """
    if check.value is None:
        return "amber" if check.missing == "failed" else "not applicable"
    if math.isnan(check.value):
        return "red"
    if check.bounds.red is not None and _above(check.value, max(check.bounds.red, _one_image(check))):
        return "amber" if check.borrowed else "red"
    return "amber" if _above(check.value, check.bounds.amber) else "green"


def of_row(checks: Iterable[tuple[str, Colour]], *, probed: bool = True) -> str:
    """Give a row's mark in words: its worst colour and the checks that have it, ``red: zero gradients (margin)``.

    Args:
        checks: names and colours; a name may say of how many networks it holds.
        probed: whether the network itself was probed. A row is not green on its verdicts alone.
    """
    found = list(checks)
    for worst in ("red", "amber"):
        names = list(dict.fromkeys(name for name, shade in found if shade == worst))
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            return f"{worst}: {', '.join(names[:_SHOWN])}{more}" + ("" if probed else "; not probed")
    return "green" if probed else "not probed"


def _above(value: float, threshold: float) -> bool:
    return value > threshold + 1e-9  # a share such as 13/64 is no exact number


def _one_image(check: Check) -> float:
    return 1 / check.images if check.rule.share and check.images else 0.0
