r"""The Euclidean projection onto the part of an L1 ball that lies in the pixel range.

Projecting onto ball and range in turn ends nearer to the image than it need: what the range cuts off could be spent on
other pixels. The projection onto both at once moves :math:`x + \delta` to :math:`x + \hat\delta` with

.. math:: \hat\delta_i = \mathrm{sign}(\delta_i)\, \min(\max(|\delta_i| - \lambda, 0), c_i),

:math:`c_i` the way from :math:`x_i` to the range's end on that side, and the least :math:`\lambda \ge 0` that leaves
:math:`\|\hat\delta\|_1 \le \epsilon`. Source: Croce and Hein, ICML 2021, arXiv:2103.01208, proposition 2.1.
"""

import torch
from torch import Tensor

from attacks.threat import ThreatModel, per_image


def project(moved: Tensor, origin: Tensor, threat: ThreatModel, radius: Tensor | None = None) -> Tensor:
    """Bring ``moved`` to the nearest point within ball and range; both ``(n, c, h, w)``, ``origin`` in the range.

    ``radius`` ``(n,)`` gives each image its own ball. For use outside graphs: nothing here is meant to be
    differentiated.
    """
    size = moved.new_full((len(moved),), threat.epsilon) if radius is None else radius.to(moved)
    delta = moved - origin
    for _ in range(2):  # a sum of large moves is rounded by more than a small radius can bear
        delta = delta + correction(origin, delta, size, threat)
    return _short_of(origin, delta).clamp(threat.low, threat.high)


def tidied(points: Tensor, origin: Tensor, threat: ThreatModel) -> Tensor:
    """Bring points into the range, and those that rounding left outside the ball into that; others keep every bit."""
    picture = points.clamp(threat.low, threat.high)
    outside = (threat.distance(picture, origin) > threat.epsilon * (1 + 1e-6)).view(-1, *[1] * (points.ndim - 1))
    delta = picture - origin
    delta = torch.where(delta.abs() <= 4 * torch.finfo(delta.dtype).eps, 0.0, delta)  # crumbs on pixels put back
    length = per_image(delta.abs().flatten(1).sum(1), delta).clamp(min=torch.finfo(delta.dtype).tiny)  # 0 / 0 is no way
    nearer = _short_of(origin, delta * (threat.epsilon / length).clamp(max=1))
    return torch.where(outside, nearer, picture)


def correction(origin: Tensor, delta: Tensor, radius: Tensor, threat: ThreatModel) -> Tensor:
    r"""Give :math:`\hat\delta - \delta`, like ``delta``, for the ``radius`` ``(n,)`` of each image.

    The sums run as in the authors' code, so that the result is theirs bit by bit on a CPU; but for images of which the
    range cuts off all pixels except one or none, where theirs may miss the first segment of the sum.
    """
    x, y = origin.flatten(1), delta.flatten(1)
    size = y.abs()
    # What the range cuts off at least, and what the ball may cut off at most.
    least = torch.minimum(threat.high - x - y, x + y - threat.low).clamp(max=0).neg()
    excess = radius - size.sum(1)
    missing = least.sum(1) + excess  # of what the range cuts off, to be in the ball
    threshold = torch.where(missing < 0, _threshold(least, size, excess), 0.0)
    cut = torch.minimum(torch.maximum(least, threshold[:, None]), size)
    return (y.sign() * -cut).view_as(delta)


def _short_of(origin: Tensor, delta: Tensor) -> Tensor:
    """Add, and round towards ``origin``: the roundings of thousands of pixels would add up."""
    moved = origin + delta
    return torch.where((moved - origin).abs() > delta.abs(), torch.nextafter(moved, origin), moved)


def _threshold(least: Tensor, size: Tensor, excess: Tensor) -> Tensor:
    r"""Find the :math:`\lambda` ``(n,)`` at which the cuts ``(n, d)`` of the pixels make up for ``excess``.

    A pixel's cut is ``least`` up to there, then :math:`\lambda`, then ``size``; so the sum of cuts is linear between
    these breakpoints, with the number of pixels in between for its slope.
    """
    d = size.shape[1]
    breaks = torch.cat((least, size), 1)
    # Of the breakpoints at zero one will do, and most are: sort few, unless counting them would wait for a GPU.
    kept = 2 * d if breaks.is_cuda else int((breaks > 0).sum(1).max()) + 1
    at, which = breaks.sort(1) if kept > d else (part.flip(1) for part in breaks.topk(kept, dim=1))
    turn = torch.where(which < d, 1.0, -1.0).to(size)
    slope = turn.cumsum(1) - turn.sum(1, keepdim=True)
    rises = ((at[:, 1:] - at[:, :-1]) * slope[:, :-1]).cumsum(1)
    total = least.sum(1, keepdim=True) + torch.cat((torch.zeros_like(at[:, :1]), rises), 1)  # of cuts, at each break
    segment = ((total + excess[:, None] < 0).sum(1, keepdim=True) - 1).clamp(min=0)
    steep = slope.gather(1, segment).clamp(min=1)
    return ((-total.gather(1, segment) - excess[:, None]) / steep + at.gather(1, segment)).squeeze(1)
