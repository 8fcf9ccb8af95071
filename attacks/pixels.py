"""Pixel quantities: a number that reads ``8/255``, or a multiple of epsilon that follows it."""

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
    if match is None or (match[2] is not None and float(match[2]) == 0):
        raise BadInput(f"{name} is a number in pixel units such as 8/255 or 0.031, but found {value!r}")
    return float(match[1]) / float(match[2] or 1)


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
        match = _RELATIVE.fullmatch(str(value))
        if match is None:
            if "epsilon" in str(value):
                raise BadInput(f"{name} is written like 8/255, epsilon/4 or 1.25 epsilon, but found {value!r}")
            return cls(fraction(value, name))
        factor = Fraction(match[1] or 1) / Fraction(match[2] or 1)
        return cls(float(factor), relative=True, over=float(match[3] or 1))

    def at(self, epsilon: Radius) -> "float | Radius":
        """Give the length for a radius ``epsilon``: a float, or per-image radii ``(n,)``."""
        return self.amount * epsilon / self.over if self.relative else self.amount
