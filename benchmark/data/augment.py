"""Random crops and mirror images of a whole batch, by one gather."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.randomness import key

PADDING = 4


@dataclass(frozen=True, eq=False)
class Moves:
    """For each image, the crop's corner in the padded picture, ``top`` and ``left`` in 0..8, and whether to mirror."""

    top: Tensor
    left: Tensor
    mirror: Tensor

    def of(self, index: Tensor) -> "Moves":
        """Select the moves of the images numbered ``index`` ``(n,)``."""
        return Moves(self.top[index], self.left[index], self.mirror[index])


def draw_moves(images: int, *, seed: int, epoch: int, flips: bool = True, device: torch.device | str = "cpu") -> Moves:
    """Draw one epoch's moves for the images numbered 0 to ``images`` - 1, from ``(seed, epoch)`` alone.

    An image's move therefore depends neither on its batch nor on the number of devices, and the global generator stays
    as it was. Without ``flips`` nothing is mirrored and the crops are the same.
    """
    generator = torch.Generator().manual_seed(key("augmentation", seed, epoch))
    top, left = torch.randint(0, 2 * PADDING + 1, (2, images), generator=generator).to(device)
    mirror = (torch.randint(0, 2, (images,), generator=generator).bool() & flips).to(device)
    return Moves(top, left, mirror)


def crop_and_flip(x: Tensor, moves: Moves) -> Tensor:
    """Pad images ``(n, c, h, w)`` with 4 zeros on each side, cut ``(h, w)`` at each corner, mirror where told.

    The usual augmentation for CIFAR since He et al., CVPR 2016, arXiv:1512.03385, section 4.2.
    """
    n, channels, height, width = x.shape
    padded = F.pad(x, (PADDING,) * 4)
    rows = moves.top[:, None] + torch.arange(height, device=x.device)
    columns = moves.left[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(moves.mirror[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
