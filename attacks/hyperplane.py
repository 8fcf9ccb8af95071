r"""Reach a hyperplane by the shortest way inside the pixel range, without sorting.

.. math:: \min_\delta \|\delta\|_p \quad\text{with}\quad \langle w, t + \delta\rangle = b,\; t + \delta \in [l, u]^d

Every entry moves against its slope, by :math:`m_i \ge 0` and at most the room :math:`r_i` it has, such that
:math:`\sum_i |w_i| m_i` is the gap. Linf: :math:`m_i = \min(\lambda, r_i)`; L2: :math:`\min(\lambda |w_i|, r_i)`, where
the gap is a concave, piecewise linear function of :math:`\lambda`, whose root Newton's method meets after a few pieces.
L1: the steepest entries move all the way, the last one in part; its slope is found by bisection over the bits.

Problem: Croce and Hein, ICML 2020, arXiv:1907.02044, section 2.2. They sort; here every pass is a linear one, of plain
floating-point operations, because in eager PyTorch on CPU masks of booleans cost five times as much.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.threat import ThreatModel

ROUNDS_UNSEEN = 16
FLAT = 1e-8  # the authors' constant, for L2 and L1: it decides which pixels move where a hyperplane is out of reach


def onto_hyperplane(
    points: Tensor, normal: Tensor, gap: Tensor, threat: ThreatModel, *, rounds: int | None = None
) -> Tensor:
    r"""Give the shortest displacements, in the norm of ``threat``, that bring points onto hyperplanes.

    Where the hyperplane does not meet the range, the way to the corner that comes closest to it.

    Args:
        points: :math:`t` inside the range, ``(..., n, d)``.
        normal: :math:`w`, ``(n, d)``; where it is 0 (L2 and L1: at most 1e-8) nothing moves.
        gap: :math:`\langle w, t\rangle - b`, ``(..., n)``. Asked for in place of b, because a linearised function knows
            its value at a point but would find b as a difference of large numbers.
        rounds: of Newton's method, for Linf and L2. Default: until it ends; on a GPU, where the host would have to wait
            for the device to know that, 16. A round that does not halve the error halves the slope, so that these
            reach float32's last bits unless the slope falls by many orders.

    Returns:
        Displacements like ``points``.
    """
    normal = normal if threat.norm == "linf" else F.hardshrink(normal, FLAT)
    steep, size = normal.abs(), gap.abs()[..., None]
    against = -normal.sign() * gap.sign()[..., None]
    middle, half = (threat.high + threat.low) / 2, (threat.high - threat.low) / 2
    room = (middle + half * against - points).abs_()  # where nothing moves (against is 0) it has no weight
    full = steep * room
    if rounds is None and gap.is_cuda:
        rounds = ROUNDS_UNSEEN
    if threat.norm == "linf":
        moved = torch.minimum(room, _level(size, room, steep, full, rounds))
    elif threat.norm == "l2":
        reach = room / steep  # 0/0 compares as neither used up nor free
        moved = torch.minimum(room, _level(size, reach, steep * steep, full, rounds) * steep)
    else:
        moved = _steepest_first(size, steep, full) * room
    return against.mul_(moved)


def _level(gap: Tensor, reach: Tensor, weight: Tensor, full: Tensor, rounds: int | None) -> Tensor:
    r"""Find the level :math:`\lambda` ``(..., n, 1)`` at which :math:`\sum_i v_i \min(\lambda, q_i)` is the gap.

    Newton's method from below: each round finds at least one more entry to be used up, or ends.

    Args:
        reach: :math:`q`, at which an entry is used up; ``weight`` :math:`v`; ``full`` their product; ``(..., n, d)``.
    """
    most = torch.finfo(gap.dtype).max
    level = (gap / weight.sum(-1, keepdim=True)).nan_to_num_(nan=0.0, posinf=most)
    compared = torch.empty_like(reach)
    for _ in range(rounds or reach.shape[-1] + 1):
        used = torch.le(reach, level, out=compared).mul_(full).sum(-1, keepdim=True)
        slope = torch.gt(reach, level, out=compared).mul_(weight).sum(-1, keepdim=True)
        higher = torch.where(slope > 0, (gap - used) / slope, most).clamp_(max=most)
        higher = torch.maximum(level, higher)
        if rounds is None and torch.equal(higher, level):
            break
        level = higher
    return level


def _steepest_first(gap: Tensor, steep: Tensor, full: Tensor) -> Tensor:
    """Give the share of its room that each entry moves ``(..., n, d)``: those of the least steep slope share the rest.

    Positive floats sort like their bits, so that bisection over these ends on one slope.
    """
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[full.dtype]
    compared = torch.empty_like(full)
    last = torch.zeros_like(gap).view(bits)  # the entries from this slope on close the gap
    beyond = steep.amax(-1, keepdim=True).view(bits) + torch.ones_like(last)  # those from this one on do not
    for _ in range(8 * full.element_size() - 1):
        slope = last + ((beyond - last) >> 1)
        closed = torch.ge(steep, slope.view(full.dtype), out=compared).mul_(full).sum(-1, keepdim=True) >= gap
        last, beyond = torch.where(closed, slope, last), torch.where(closed, beyond, slope)
    slope = last.view(full.dtype)
    steeper, equal = torch.gt(steep, slope, out=compared), torch.eq(steep, slope, out=torch.empty_like(full))
    tied = (equal * full).sum(-1, keepdim=True)
    share = (gap - (steeper * full).sum(-1, keepdim=True)) / tied
    return steeper.addcmul_(equal, torch.where(tied > 0, share, 0).clamp_(0, 1))
