"""Several norms at once: a length for each, the balls that they make, and a PGD that is comparable over them."""

from dataclasses import dataclass, fields, replace
from typing import get_args

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.moves import largest, usual_pixels
from attacks.objectives import Objective
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.randomness import key, uniform
from attacks.threat import Norm, ThreatModel

NORMS: tuple[Norm, ...] = get_args(Norm)  # in the order in which they are attacked, listed and concatenated


@dataclass(frozen=True)
class PerNorm:
    """A length for each norm, in pixel units or relative to an epsilon that the holder names; None for none."""

    linf: str | float | None = None
    l2: str | float | None = None
    l1: str | float | None = None

    def check(self, name: str) -> None:
        """Raise :class:`BadInput`, naming the setting ``name``, for what is no length."""
        for norm in fields(self):
            if (length := getattr(self, norm.name)) is not None:
                Pixels.read(length, f"{name}.{norm.name}")

    def at(self, norm: Norm, epsilon: float) -> float | None:
        """Give the length of ``norm``, which may be relative to ``epsilon``."""
        length = getattr(self, norm)
        return None if length is None else float(Pixels.read(length).at(epsilon))

    def balls(self, threat: ThreatModel, factor: float = 1.0) -> dict[Norm, ThreatModel]:
        """Take the lengths for radii, relative to that of ``threat``, and all of them times ``factor``."""
        found = {norm: self.at(norm, threat.epsilon) for norm in NORMS}
        return {
            norm: replace(threat, norm=norm, epsilon=factor * radius)
            for norm, radius in found.items()
            if radius is not None
        }


def pgd_in_any_norm(
    network: nn.Module,
    x: Tensor,
    objective: Objective,
    threat: ThreatModel,
    *,
    index: list[int],
    names: tuple[str | int, ...],
    steps: int,
    step_size: float,
) -> Tensor:
    """Attack from a uniform start, in L1 from the image itself by sparse steps of that length; the last iterate counts.

    Randomness is keyed by ``names`` and the images' ``index``, that of a step's number of pixels by ``names`` and step:
    no verdict depends on the batch.
    """
    start, move = x, None
    if threat.norm != "l1":  # there noise would spend the radius on pixels that are not worth it
        start = threat.project(x + threat.epsilon * uniform(x, index, *names, "start"), x)
    else:
        low, high = usual_pixels(step_size)
        step = iter(range(steps))

        def pixels() -> int:
            return low + key(*names, "pixels", next(step)) % (high - low + 1)

        move = largest(x, threat, step_size, pixels, hold_bounds=False)
    return pgd(
        network,
        x,
        objective,
        threat,
        start=start,
        steps=steps,
        step_size=step_size,
        move=move,
        whole_batch=True,
    )


def check_linf(method: str, threat: ThreatModel) -> None:
    """Refuse another norm than Linf for the threat that the balls of a ``method`` are built around."""
    if threat.norm != "linf":
        raise BadInput(
            f"{method} has balls of all norms in its setting radii, of which the threat is Linf's: threat.norm is "
            f"linf, but found {threat.norm}"
        )
