"""Ascent with momentum and a step per image that shrinks when it fails; the best iterate counts."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.objectives import Objective
from attacks.slope import slope
from attacks.threat import ThreatModel, per_image


class Climbed(NamedTuple):
    """The best images found ``(n, c, h, w)``, and what the objective says of them ``(n,)``; without graphs."""

    images: Tensor
    value: Tensor


@torch.inference_mode(mode=False)  # Lightning evaluates in inference mode, in which nothing has a gradient
def momentum_ascent(
    network: nn.Module,
    x: Tensor,
    objective: Objective,
    threat: ThreatModel,
    *,
    start: Tensor,
    steps: int,
    step_size: float,
    momentum: float = 0.9,
    backtracking: float = 1.5,
) -> Climbed:
    r"""Climb along :math:`v \gets \mu v + (1 - \mu)\, s(\nabla\ell)` within ``threat`` and keep the best of all points.

    With backtracking a step that would lower an image's objective is not taken; its step is divided instead, while its
    momentum goes on.

    Args:
        network, x, objective: as for :func:`attacks.pgd.pgd`; the objective has one value per image.
        start: the first iterate, like ``x``; it is projected first. The caller draws it, so nothing here is random.
        step_size: of every image at first, in pixel units.
        momentum: mu, in [0, 1).
        backtracking: what a step that fails is divided by; 1 takes every step.

    Returns:
        the best of ``steps + 1`` iterates, the start included. It costs 2 steps + 1 forward passes, without
        backtracking steps + 1, and as many backward passes as steps.
    Source: Stutz et al., ICML 2020, arXiv:1910.06259, appendix; the momentum of Dong et al., CVPR 2018.
    """
    point = threat.project(start.detach(), x)
    velocity = torch.zeros_like(x)
    alpha = torch.full((len(x),), step_size, dtype=x.dtype, device=x.device)
    best, highest = point, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for step in range(steps + 1):
        last = step == steps
        point = point.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            climbed = objective(network(point))
        value = climbed.detach()
        higher = value > highest
        best = torch.where(per_image(higher, x).bool(), point.detach(), best)
        highest = torch.where(higher, value.to(highest), highest)
        if last:
            break
        velocity = momentum * velocity + (1 - momentum) * threat.direction(slope(climbed.sum(), point))
        moved = threat.project(point.detach() + per_image(alpha, x) * velocity, x)
        if backtracking > 1:
            with torch.no_grad():
                worse = objective(network(moved)) < value
            moved = torch.where(per_image(worse, x).bool(), point.detach(), moved)
            alpha = torch.where(worse, alpha / backtracking, alpha)
        point = moved
    return Climbed(best, highest)


def within_ball(x: Tensor, threat: ThreatModel, direction: Tensor, share: Tensor) -> Tensor:
    """Give a start in the ball around ``x`` ``(n, c, h, w)``: along ``direction``, like it, ``share`` ``(n,)`` of it.

    With normal directions and uniform shares the radius is uniform, which a uniform point of the cube has not.
    """
    length = per_image(threat.distance(direction, torch.zeros_like(direction)), x)
    return x + threat.epsilon * per_image(share, x) * direction / length
