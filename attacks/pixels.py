"""Pixel quantities: a number that reads ``8/255``, or a multiple of epsilon that follows it."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from torch import Tensor

from attacks.errors import BadInput

_NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?"
_FRACTION = re.compile(rf"\s*({_NUMBER})(?:\s*/\s*({_NUMBER}))?\s*")
_RELATIVE = re.compile(rf"\s*(?:({_NUMBER})(?:\s*/\s*({_NUMBER}))?\s*\*?\s*)?epsilon(?:\s*/\s*({_NUMBER}))?\s*")

Radius = TypeVar("Radius", float, Tensor)


def fraction(value: "str | float | int", name: str = "epsilon") -> float:
    """Read ``8/255``, ``"0.031"`` or a number as a float in pixel units of [0, 1].

    Raises:
        BadInput: when ``value`` is neither, is negative or not finite; ``name`` is the setting to blame.
    """
    match = _FRACTION.fullmatch(str(value))
    length = _ratio(match[1], match[2]) if match else None
    if length is None:
        raise BadInput(f"{name} is a number in pixel units such as 8/255 or 0.031, but found {value!r}")
    return length


@dataclass(frozen=True)
class Pixels:
    """A length in pixel units of [0, 1], or, if ``relative``, in units of the epsilon in force.

    Written ``8/255``, ``0.007``, ``epsilon``, ``epsilon/4``, ``1.25 epsilon`` or ``0.007/0.031 epsilon``.
    """

    amount: float
    relative: bool = False
    over: float = 1.0  # kept apart, so that epsilon/4 is the division that the papers write

    @classmethod
    def read(cls, value: "Pixels | str | float", name: str = "step_size") -> "Pixels":
        """Make a length of what a person wrote; raises :class:`BadInput` naming the setting ``name``."""
        if isinstance(value, Pixels):
            return value
        if "epsilon" not in str(value):
            return cls(fraction(value, name))
        match = _RELATIVE.fullmatch(str(value))
        factor = _ratio(match[1] or "1", match[2]) if match else None
        if match is None or factor is None or _ratio("1", match[3]) is None:
            raise BadInput(f"{name} is written like 8/255, epsilon/4 or 1.25 epsilon, but found {value!r}")
        return cls(factor, relative=True, over=float(match[3] or 1))

    def at(self, epsilon: Radius) -> "float | Radius":
        """Give the length for a radius ``epsilon``: a float, or per-image radii ``(n,)``."""
        return self.amount * epsilon / self.over if self.relative else self.amount


def _ratio(above: str, below: str | None) -> float | None:
    """Divide two written numbers, rounding once; None where the result is not finite."""
    top, bottom = float(above), float(below or 1)
    if bottom == 0 or not (math.isfinite(top) and math.isfinite(bottom) and math.isfinite(top / bottom)):
        return None
    return float(Fraction(above) / Fraction(below or 1))
