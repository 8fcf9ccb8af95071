"""The small network of ``digits-common``."""

from torch import Tensor, nn

STRIDES = (1, 2, 1)  # 8x8 digits end as 4x4 in 32 channels, 512 features


class DigitsCNN(nn.Module):
    """Three convolutions, each with BatchNorm and ReLU, then one linear layer on everything that is left.

    Each activation is a module of its own, as in every network here, so that methods may find, hook or swap it.
    """

    def __init__(self, *, classes: int, channels: int, size: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in zip(widths, STRIDES, strict=True):
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels, size = width, -(-size // stride)  # a padded 3x3 convolution rounds the side up
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Linear(channels * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, size, size)``."""
        return self.linear(self.features(x))


def digits_cnn(*, classes: int, channels: int, size: int, width: int = 16) -> DigitsCNN:
    """Three 3x3 convolutions (16/32/32, strides 1, 2, 1) and a linear layer; made for 8x8 digits."""
    return DigitsCNN(classes=classes, channels=channels, size=size, widths=(width, 2 * width, 2 * width))
