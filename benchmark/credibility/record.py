"""What a check says: a value, the thresholds it is held against, where those come from, and for what they were set."""

from dataclasses import dataclass
from typing import Literal

Missing = Literal["", "not applicable", "failed"]


@dataclass(frozen=True)
class Setting:
    """The data set, norm and radius (pixel units) that a figure, or a threshold, belongs to."""

    dataset: str
    norm: str
    epsilon: float

    def matches(self, other: "Setting") -> bool:
        """Whether both are the same, but for the last bits of the radius."""
        same = (self.dataset, self.norm) == (other.dataset, other.norm)
        return same and abs(self.epsilon - other.epsilon) < 1e-9


@dataclass(frozen=True)
class Bounds:
    """Two thresholds, crossed by what lies above them; ``of`` is what they were set for, None for every setting."""

    amber: float
    red: float | None
    source: str
    of: Setting | None = None


@dataclass(frozen=True)
class Rule:
    """How a check is judged.

    Args:
        name: what tables and marks call the check.
        meaning: of the value, in which higher is always worse.
        bounds: the thresholds, of which those set for the measured setting count; failing that the first.
        share: whether the value is a share of images, in which one image alone never makes a network red.
    """

    name: str
    meaning: str
    bounds: tuple[Bounds, ...]
    share: bool = True

    def measured(self, value: float, setting: Setting, *, images: int | None = None, note: str = "") -> "Check":
        """Hold ``value``, measured on ``images`` images, against the thresholds of ``setting``."""
        bounds, borrowed = self._bounds(setting)
        return Check(self, float(value), bounds, borrowed, images, note)

    def absent(self, setting: Setting, reason: str, *, failed: bool = False) -> "Check":
        """Say why there is no value: the check does not apply, or it ``failed``."""
        bounds, borrowed = self._bounds(setting)
        return Check(self, None, bounds, borrowed, None, reason, "failed" if failed else "not applicable")

    def _bounds(self, setting: Setting) -> tuple[Bounds, bool]:
        own = [bounds for bounds in self.bounds if bounds.of is not None and bounds.of.matches(setting)]
        every = [bounds for bounds in self.bounds if bounds.of is None]
        return (own + every)[0] if own or every else self.bounds[0], not (own or every)


@dataclass(frozen=True)
class Check:
    """One finding; :func:`benchmark.credibility.colours.colour` says what to think of it.

    Args:
        value: None where there is none, for the reason that ``missing`` names and ``note`` tells.
        borrowed: whether the thresholds were set for another data set or radius.
        images: of which a share is told; None for other values.
    """

    rule: Rule
    value: float | None
    bounds: Bounds
    borrowed: bool = False
    images: int | None = None
    note: str = ""
    missing: Missing = ""

    @property
    def name(self) -> str:
        """The name of the check."""
        return self.rule.name

    @property
    def source(self) -> str:
        """Where the thresholds come from, and what they were set for where that is something else."""
        of = self.bounds.of
        if not self.borrowed or of is None:
            return self.bounds.source
        return f"{self.bounds.source}; borrowed from {of.dataset}, {of.norm} {of.epsilon:.4g}"
