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


def tramer_a(*, classes: int, channels: int, size: int) -> nn.Sequential:
    """Network A of ensemble adversarial training: two 5x5 convolutions (64/64), a hidden layer of 128, dropout."""
    layers = [nn.Conv2d(channels, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 5), nn.ReLU()]
    return _as_in_keras(*layers, *_hidden_128(64, _left(size, 8, "tramer_a"), classes))


def tramer_b(*, classes: int, channels: int, size: int) -> nn.Sequential:
    """Network B of ensemble adversarial training: dropout, convolutions of 8x8, 6x6 and 5x5 (64/128/128), dropout."""
    side = (-(-size // 2) - 6) // 2 + 1 - 4  # halved with padding, halved without, and four pixels less
    _left(side, 0, "tramer_b", size)
    before = max((-(-size // 2) - 1) * 2 + 8 - size, 0)  # Keras pads what is missing, the odd pixel behind the image
    pad = nn.ZeroPad2d((before // 2, before - before // 2, before // 2, before - before // 2))
    layers = [pad, nn.Conv2d(channels, 64, 8, stride=2), nn.ReLU(), nn.Conv2d(64, 128, 6, stride=2), nn.ReLU()]
    layers += [nn.Conv2d(128, 128, 5), nn.ReLU(), nn.Dropout(0.5)]
    return _as_in_keras(nn.Dropout(0.2), *layers, nn.Flatten(), nn.Linear(128 * side * side, classes))


def tramer_c(*, classes: int, channels: int, size: int) -> nn.Sequential:
    """Network C of ensemble adversarial training: two 3x3 convolutions (128/64), a hidden layer of 128, dropout."""
    layers = [nn.Conv2d(channels, 128, 3), nn.ReLU(), nn.Conv2d(128, 64, 3), nn.ReLU()]
    return _as_in_keras(*layers, *_hidden_128(64, _left(size, 4, "tramer_c"), classes))


def tramer_d(*, classes: int, channels: int, size: int) -> nn.Sequential:
    """Network D of ensemble adversarial training: four hidden layers of 300 with dropout, no convolution."""
    layers, units = list[nn.Module](), channels * size * size
    for _ in range(4):
        layers += [nn.Linear(units, 300), nn.ReLU(), nn.Dropout(0.5)]
        units = 300
    network = _as_in_keras(nn.Flatten(), *layers, nn.Linear(units, classes))
    for layer in network[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return network


def _hidden_128(channels: int, side: int, classes: int) -> list[nn.Module]:
    hidden = [nn.Flatten(), nn.Linear(channels * side * side, 128), nn.ReLU()]
    return [nn.Dropout(0.25), *hidden, nn.Dropout(0.5), nn.Linear(128, classes)]


def _as_in_keras(*layers: nn.Module) -> nn.Sequential:
    """Draw weights as Keras does by default, after Glorot and Bengio (2010), with biases of 0."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))
    return nn.Sequential(*layers)


def _left(size: int, taken: int, name: str, whole: int | None = None) -> int:
    """Give the side that is left of images when unpadded convolutions have ``taken`` so many pixels."""
    if size - taken < 1:
        whole = size if whole is None else whole
        raise BadInput(f"{name} has unpadded convolutions, for which {whole}x{whole} images are too small: digits_cnn")
    return size - taken


def _halved(size: int, times: int, name: str) -> int:
    side: int = size >> times
    if side < 1:
        raise BadInput(f"{name} halves images {times} times, got {size}x{size}: take digits_cnn")
    return side
