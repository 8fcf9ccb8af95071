"""Square images turned or mirrored in place: what an auxiliary task may make of them without other data."""

import torch
from torch import Tensor

from attacks.errors import BadInput

TURNS = 4  # by 0, 90, 180 and 270 degrees


def quarter_turns(x: Tensor) -> Tensor:
    """Turn images ``(n, c, h, h)`` counter-clockwise by 0, 90, 180 and 270 degrees, ``(4 n, c, h, h)`` in blocks.

    Raises:
        BadInput: for images that are not square.
    """
    _check_square(x)
    return torch.cat([torch.rot90(x, turn, (2, 3)) for turn in range(TURNS)])


def negative_transposed(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Exchange rows and columns of images ``(n, c, h, h)``, and dark and light: low + high - x^T in each channel.

    Raises:
        BadInput: for images that are not square.
    """
    _check_square(x)
    return (low + high - x).transpose(2, 3).contiguous()


def _check_square(x: Tensor) -> None:
    if x.shape[2] != x.shape[3]:
        raise BadInput(
            f"images are turned here, so they are square, but found {x.shape[2]}x{x.shape[3]}: "
            "cut them, or take another method"
        )
