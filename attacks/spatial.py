"""Turn and shift images: an adversary outside all norms."""

import torch
import torch.nn.functional as F
from torch import Tensor


def turned_and_shifted(x: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Turn images ``(n, c, h, w)`` about their centre, then move them; bilinear, with 0 where nothing was.

    Args:
        degrees: ``(n,)``, counterclockwise.
        shift: ``(n, 2)``, in pixels to the right and down.
    """
    height, width = x.shape[2:]
    angle = torch.deg2rad(degrees.to(x))
    cos, sin = angle.cos(), angle.sin()
    right, down = shift.to(x).unbind(1)
    # Where each pixel comes from: first back by the shift, then turned back. In units of half the image's sides.
    there = torch.stack(
        [
            *(cos, -sin * height / width, -2 * (cos * right - sin * down) / width),
            *(sin * width / height, cos, -2 * (sin * right + cos * down) / height),
        ],
        dim=1,
    ).view(-1, 2, 3)
    grid = F.affine_grid(there, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)
