"""Random crops and mirror images of a whole batch, by one gather."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.randomness import key


@dataclass(frozen=True)
class Style:
    """How images are moved: padded by so many pixels on each side, with zeros or by mirroring; flipped or not."""

    padding: int = 4
    reflect: bool = False
    flips: bool = True


@dataclass(frozen=True, eq=False)
class Moves:
    """For each image the crop's corner in the padded picture, ``top`` and ``left``, and whether to mirror."""

    top: Tensor
    left: Tensor
    mirror: Tensor
    style: Style = Style()

    def of(self, index: Tensor) -> "Moves":
        """Select the moves of the images numbered ``index`` ``(n,)``."""
        return replace(self, top=self.top[index], left=self.left[index], mirror=self.mirror[index])


def draw_moves(
    images: int, *, seed: int, epoch: int, style: Style = Style(), device: torch.device | str = "cpu"
) -> Moves:
    """Draw one epoch's moves for the images numbered 0 to ``images`` - 1, from ``(seed, epoch)`` alone.

    An image's move therefore depends neither on its batch nor on the number of devices, and the global generator stays
    as it was. Without ``style.flips`` nothing is mirrored and the crops are the same.
    """
    generator = torch.Generator().manual_seed(key("augmentation", seed, epoch))
    top, left = torch.randint(0, 2 * style.padding + 1, (2, images), generator=generator).to(device)
    mirror = (torch.randint(0, 2, (images,), generator=generator).bool() & style.flips).to(device)
    return Moves(top, left, mirror, style)


def crop_and_flip(x: Tensor, moves: Moves) -> Tensor:
    """Pad images ``(n, c, h, w)`` on each side, cut ``(h, w)`` at each corner, mirror where told.

    With 4 zeros the usual augmentation for CIFAR since He et al., CVPR 2016, arXiv:1512.03385, section 4.2.
    """
    n, channels, height, width = x.shape
    padded = F.pad(x, (moves.style.padding,) * 4, mode="reflect" if moves.style.reflect else "constant")
    rows = moves.top[:, None] + torch.arange(height, device=x.device)
    columns = moves.left[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(moves.mirror[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
