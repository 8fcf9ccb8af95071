"""Networks trained beside the classifier to perturb its images: a generator, and an encoder of what it made."""

from typing import Any

import torch
from torch import Tensor, nn

PLANE = 256  # units between the latent code and the plane that is made of it


class Generator(nn.Module):
    """Make images ``(n, made, h, w)`` of images ``(n, given, h, w)``, and of a latent code where there is one.

    A 3x3 stem, three residual blocks, twice as wide inside, and a 3x3 convolution; the latent code is decoded to one
    more plane of the input. As the authors have it but for the width, theirs being 256: 10.3 million parameters.
    Source: Dong et al., NeurIPS 2020, arXiv:2002.05999, and their code.

    Args:
        size: height and width of the plane that a code of ``latent`` components is decoded to; 0 for no code.
    """

    def __init__(self, given: int, made: int, *, width: int, size: tuple[int, int], latent: int = 0) -> None:
        super().__init__()
        self.size = size
        self.plane = (
            nn.Sequential(nn.Linear(latent, PLANE), nn.ReLU(), nn.Linear(PLANE, size[0] * size[1]), nn.ReLU())
            if latent
            else None
        )
        self.stem = nn.Sequential(_conv(given + (latent > 0), width), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(_Block(width, 2 * width), _Block(2 * width, 2 * width), _Block(2 * width, width))
        self.end = _conv(width, made)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                nn.init.normal_(part.weight, float(isinstance(part, nn.BatchNorm2d)), 0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """Unbounded values; ``code`` ``(n, latent)``."""
        if self.plane is not None and code is not None:
            x = torch.cat([x, self.plane(code).reshape(-1, 1, *self.size)], 1)
        made: Tensor = self.end(self.blocks(self.stem(x)))
        return made


class Encoder(nn.Module):
    """Give ``(n, outputs)`` numbers of images ``(n, channels, h, w)``.

    From 32x32 on the authors' unpadded 5x5 and 4x4 convolutions; smaller images get 3x3 ones of the same widths. The
    average is over all that is left, at 32x32 the authors' 4x4.
    """

    def __init__(self, channels: int, outputs: int, *, size: tuple[int, int]) -> None:
        super().__init__()
        small: dict[str, Any] = {"kernel_size": 3, "padding": 1}
        layers: list[nn.Module] = []
        before = channels
        for width, kernel, stride in ((32, 5, 1), (64, 4, 2), (128, 4, 1), (256, 4, 2)):
            shape = {"kernel_size": kernel} if min(size) >= 32 else small
            layers += [nn.Conv2d(before, width, stride=stride, bias=False, **shape), nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(0.01)]
            before = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(before, outputs)
        nn.init.zeros_(self.linear.bias)
        for part in self.features:
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        encoded: Tensor = self.linear(self.features(x))
        return encoded


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            _conv(before, after), nn.BatchNorm2d(after), nn.ReLU(), _conv(after, after), nn.BatchNorm2d(after)
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.shortcut(x) + self.way(x))
        return out


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)
