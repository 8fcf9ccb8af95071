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
from torch import Tensor

from attacks.threat import ThreatModel

ROUNDS_UNSEEN = 16


def onto_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, threat: ThreatModel) -> Tensor:
    r"""Give the shortest displacements, in the norm of ``threat``, that bring points onto hyperplanes.

    Where the hyperplane does not meet the range, the way to the corner that comes closest to it.

    Args:
        points: :math:`t` inside the range, ``(..., n, d)``.
        normal: :math:`w`, ``(n, d)``; where it is 0 nothing moves.
        gap: :math:`\langle w, t\rangle - b`, ``(..., n)``. Asked for in place of b, because a linearised function knows
            its value at a point but would find b as a difference of large numbers.

    Returns:
        Displacements like ``points``.
    """
    steep, size = normal.abs(), gap.abs()[..., None]
    against = -normal.sign() * gap.sign()[..., None]
    middle, half = (threat.high + threat.low) / 2, (threat.high - threat.low) / 2
    room = (middle + half * against - points).abs_()  # where nothing moves (against is 0) it has no weight
    moved = _MOVES[threat.norm](room, steep, size)
    return against.mul_(moved)


def _linf(room: Tensor, steep: Tensor, gap: Tensor) -> Tensor:
    return torch.minimum(room, _level(gap, room, steep, steep * room))


def _l2(room: Tensor, steep: Tensor, gap: Tensor) -> Tensor:
    level = _level(gap, room / steep, steep * steep, steep * room)  # 0/0 compares as neither used up nor free
    return torch.minimum(room, level * steep)


def _level(gap: Tensor, reach: Tensor, weight: Tensor, full: Tensor) -> Tensor:
    r"""Find the level :math:`\lambda` ``(..., n, 1)`` at which :math:`\sum_i v_i \min(\lambda, q_i)` is the gap.

    Newton's method from below: each round knows one more entry to be used up, or ends. A round that does not halve the
    error halves the slope, so that 16 rounds reach float32's last bit unless the slope falls by many orders: on a GPU
    they are run without a look at the result, for which the host would have to wait.

    Args:
        reach: :math:`q`, at which an entry is used up; ``weight`` :math:`v`; ``full`` their product; ``(..., n, d)``.
    """
    most = torch.finfo(gap.dtype).max
    level = (gap / weight.sum(-1, keepdim=True)).nan_to_num_(nan=0.0, posinf=most)
    compared = torch.empty_like(reach)
    for _ in range(ROUNDS_UNSEEN if gap.is_cuda else reach.shape[-1]):
        used = torch.le(reach, level, out=compared).mul_(full).sum(-1, keepdim=True)
        slope = torch.gt(reach, level, out=compared).mul_(weight).sum(-1, keepdim=True)
        higher = torch.where(slope > 0, (gap - used) / slope, most).clamp_(max=most)
        higher = torch.maximum(level, higher)
        if not gap.is_cuda and torch.equal(higher, level):
            break
        level = higher
    return level


def _l1(room: Tensor, steep: Tensor, gap: Tensor) -> Tensor:
    """Take the steepest first. Positive floats sort like their bits, so bisection over these ends on one slope."""
    full = steep * room
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[full.dtype]
    compared = torch.empty_like(full)
    last = torch.zeros_like(gap).view(bits)  # together with those above, its entries close the gap
    above = steep.amax(-1, keepdim=True).view(bits).expand_as(last) + 1  # those from here on up do not
    for _ in range(8 * full.element_size() - 1):
        slope = last + (above - last) // 2
        enough = torch.ge(steep, slope.view(full.dtype), out=compared).mul_(full).sum(-1, keepdim=True) >= gap
        last, above = torch.where(enough, slope, last), torch.where(enough, above, slope)
    slope = last.view(full.dtype)
    beyond, level = (steep > slope).to(full), (steep == slope).to(full)
    tied = (level * full).sum(-1, keepdim=True)
    share = (gap - (beyond * full).sum(-1, keepdim=True)) / tied
    return room * (beyond + level * torch.where(tied > 0, share, 0).clamp(0, 1))


_MOVES = {"linf": _linf, "l2": _l2, "l1": _l1}
