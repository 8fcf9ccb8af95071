"""The one clip that may stand inside a differentiated path."""

import torch
from torch import Tensor


def clip(x: Tensor, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
    """Limit ``x`` to ``[low, high]`` with gradient 1 on the CLOSED interval and 0 outside it.

    ``torch.clamp`` has gradient 1 exactly on a bound up to torch 2.13 and 0 from 2.14 on, ``min``/``max`` forms have
    one half; images are full of exact 0s and 1s, so the difference freezes pixels. The second derivative is 0.

    Args:
        x: any shape. NaN stays NaN.
        low: number or tensor that broadcasts to ``x``; it gets no gradient.
        high: likewise.
    """
    with torch.no_grad():
        inside = ~((x < low) | (x > high))
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (low, high))
        limited = torch.clamp(x, low, high)
    return torch.where(inside, x, limited)
