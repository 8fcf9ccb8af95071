"""Small networks that single papers describe and nobody else uses; each is a plain stack of layers."""

from torch import Tensor, nn

from benchmark.errors import BadInput


def lenet_plus(*, classes: int, channels: int, size: int) -> nn.Sequential:
    """LeNet+ of SAT-R and SADS: two 5x5 convolutions (32/64) with pools, a hidden layer of 1,024; made for MNIST."""
    side = _halved(size, 2, "lenet_plus")
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(64 * side * side, 1024),
        nn.ReLU(),
        nn.Linear(1024, classes),
    )


def conv8(*, classes: int, channels: int, size: int) -> nn.Sequential:
    """8-layer ConvNet of dynamic training: six 3x3 convolutions (64/128/196) with BatchNorm, a hidden layer of 256."""
    side, layers = _halved(size, 3, "conv8"), list[nn.Module]()
    for width in (64, 128, 196):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(196 * side * side, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def atda_convnet(*, classes: int, channels: int, size: int, dropout: float = 0.5) -> nn.Sequential:
    """All-convolutional network of ATDA (96/192 maps, GroupNorm, ELU, dropout); its last maps, averaged, are logits."""
    if not 0 <= dropout < 1:
        raise BadInput(f"setting dropout of atda_convnet must be in [0, 1), got {dropout}")

    def part(before: int, after: int, kernel: int = 3) -> list[nn.Module]:
        return [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.GroupNorm(32, after), nn.ELU()]

    def halving(width: int, size: int) -> list[nn.Module]:  # Keras pads an even side behind the image only
        pad = nn.ZeroPad2d((size % 2, 1, size % 2, 1))
        return [pad, nn.Conv2d(width, width, 3, stride=2), nn.GroupNorm(32, width), nn.ELU()]

    layers = nn.Sequential(
        *(*part(channels, 96), *part(96, 96), *halving(96, size), nn.Dropout(dropout)),
        *(*part(96, 192), *part(192, 192), *halving(192, -(-size // 2)), nn.Dropout(dropout)),
        *(*part(192, 192), *part(192, 192, kernel=1)),
        *(nn.Conv2d(192, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.xavier_uniform_(layer.weight)  # Keras' default, which the authors keep
            nn.init.zeros_(layer.bias)
    return layers


class Maxout(nn.Module):
    """Linear units in groups, of which the largest of each speaks; Goodfellow et al., ICML 2013, arXiv:1302.4389."""

    def __init__(self, before: int, units: int, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(before, units * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, units)``."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


def maxout(
    *, classes: int, channels: int, size: int, units: int = 1600, pieces: int = 5, dropout: float = 0.5
) -> nn.Sequential:
    """Maxout network of the FGSM paper: two hidden layers of 1,600 units with dropout; made for MNIST."""
    inputs = channels * size * size
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),  # of the input, as in the maxout paper
        *(Maxout(inputs, units, pieces), nn.Dropout(dropout)),
        *(Maxout(units, units, pieces), nn.Dropout(dropout)),
        nn.Linear(units, classes),
    )


def _halved(size: int, times: int, name: str) -> int:
    side: int = size >> times
    if side < 1:
        raise BadInput(f"{name} halves images {times} times, got {size}x{size}: take digits_cnn")
    return side
