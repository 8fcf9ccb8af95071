"""Steps that differ from steepest ascent and projection: sparse ones in L1, and projections that end on the ball.

Each maker gives a ``move`` for :func:`attacks.pgd.pgd`: iterate and gradient, both ``(n, c, h, w)``, to the next
iterate, inside ball and pixel range. For use outside graphs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attacks.threat import ThreatModel, l2_length, per_image, shared_unit, signs_of_largest

Move = Callable[[Tensor, Tensor], Tensor]


def steepest(x: Tensor, threat: ThreatModel, step_size: float, *, box_first: bool = False) -> Move:
    """Step along the steepest direction of the norm."""
    return lambda point, gradient: confined(
        point + step_size * threat.direction(gradient), x, threat, box_first=box_first
    )


def without_blocked(move: Move, threat: ThreatModel) -> Move:
    """Leave out, before the ``move`` looks at it, what of the gradient points outwards of a pixel exactly at a bound.

    Source: Tramèr and Boneh, NeurIPS 2019, arXiv:1904.13000, the authors' code.
    """

    def moved(point: Tensor, gradient: Tensor) -> Tensor:
        blocked = ((point <= threat.low) & (gradient < 0)) | ((point >= threat.high) & (gradient > 0))
        return move(point, gradient.masked_fill(blocked, 0.0))

    return moved


def above_percentile(x: Tensor, threat: ThreatModel, length: float, percentile: float) -> Move:
    """Step by ``length`` in L1, shared by the entries of at least the ``percentile`` (0 to 100) of each image's.

    Source: Tramèr and Boneh, NeurIPS 2019, arXiv:1904.13000, section 3.3, sparse L1 descent.
    """

    def moved(point: Tensor, gradient: Tensor) -> Tensor:
        size = gradient.abs()
        at_least = size >= per_image(percentile_of(size.flatten(1), percentile), size)
        signs = torch.where(at_least, gradient.sign(), torch.zeros_like(gradient))
        return confined(point + length * shared_unit(signs), x, threat)

    return moved


def largest(
    x: Tensor,
    threat: ThreatModel,
    length: float,
    pixels: Callable[[], int],
    *,
    box_first: bool = False,
    hold_bounds: bool = True,
) -> Move:
    """Step by ``length`` / k on the k largest entries that have room for it; ``pixels()`` gives each step's k.

    Without room are entries within length / k of the bound that they point to, and with ``hold_bounds`` pixels exactly
    at a bound. With fewer than k entries left the step is shorter; entries that tie with the last all take part.

    Args:
        hold_bounds: as the authors do. On images with plain backgrounds it spares most pixels, and is no strong attack:
            on digits 50 steps leave a natural network 40% where moving them inwards, too, leaves 16%.

    Source: Maini, Wong and Kolter, ICML 2020, arXiv:1909.04068, appendix A and the authors' ``l1_dir_topk``.
    """

    def moved(point: Tensor, gradient: Tensor) -> Tensor:
        kept = min(pixels(), gradient[0].numel())
        stride = length / kept
        full = ((gradient < 0) & (point <= threat.low + stride)) | ((gradient > 0) & (point >= threat.high - stride))
        if hold_bounds:
            full |= (point <= threat.low) | (point >= threat.high)
        signs = signs_of_largest(gradient.masked_fill(full, 0.0), kept)
        return confined(point + stride * signs, x, threat, box_first=box_first)

    return moved


def usual_pixels(length: float) -> tuple[int, int]:
    """Between how many and how many pixels share a sparse step of L1 ``length``, so that each moves by .05 to .2.

    Of the published step of 1 it is 5 to 20.
    """
    slack = 1e-9  # 5 times 0.2 is more than 1
    return max(1, math.ceil(5 * length - slack)), max(2, math.floor(20 * length + slack))


def confined(moved: Tensor, x: Tensor, threat: ThreatModel, *, box_first: bool = False) -> Tensor:
    """Bring ``moved`` into ball and pixel range around ``x``, in L2 onto the ball itself.

    :meth:`ThreatModel.project` stops 1e-7 short of it. ``box_first``: the other order, which ends inside both, too.
    """
    delta = (moved.clamp(threat.low, threat.high) if box_first else moved) - x
    if threat.norm == "l2":
        length = l2_length(delta)
        delta = delta * (threat.epsilon / length.clamp(min=max(threat.epsilon, torch.finfo(delta.dtype).tiny)))
    else:
        delta = threat.into_ball(delta)
    return (x + delta).clamp(threat.low, threat.high)


def percentile_of(rows: Tensor, percentile: float) -> Tensor:
    """Give the ``percentile`` (0 to 100) of each row of ``(n, d)``, between two values by their distance, ``(n,)``.

    ``torch.quantile`` refuses large batches.
    """
    rank = percentile / 100 * (rows.shape[1] - 1)
    below = math.floor(rank)
    top = rows.topk(rows.shape[1] - below, dim=1).values  # in descending order: the last two lie around the rank
    return torch.lerp(top[:, -1], top[:, -2] if top.shape[1] > 1 else top[:, -1], rank - below)
