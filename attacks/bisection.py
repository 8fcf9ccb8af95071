"""How far along a direction the network changes its mind: bisection, for many images at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.threat import ThreatModel, per_image


def bisect(
    crosses: Callable[[Tensor], Tensor],
    x: Tensor,
    direction: Tensor,
    threat: ThreatModel,
    *,
    first: Tensor,
    last: float,
    halvings: int,
) -> Tensor:
    """Look for the distance ``(n,)``, from 0 to ``last``, at which images moved along ``direction`` cross over.

    Asks ``halvings + 1`` times. The last answer moves nothing any more; it is asked for because a network in train mode
    takes notice of the batch.

    Args:
        crosses: images in the threat's range to a mask ``(n,)``.
        x: images ``(n, c, h, w)``; ``direction`` is like them and of any length.
        first: the distance that is asked for first, ``(n,)``; then the interval is halved.
    Source: Ding et al., ICLR 2020, arXiv:1812.02637, algorithm 2.
    """
    near, far, distance = torch.zeros_like(first), torch.full_like(first, last), first
    for asked in range(halvings + 1):
        points = x + per_image(distance, x) * direction
        across = crosses(points.clamp(threat.low, threat.high))
        if asked < halvings:
            near = torch.where(across, near, torch.maximum(near, distance))
            far = torch.where(across, torch.minimum(far, distance), far)
            distance = (near + far) / 2
    return distance
