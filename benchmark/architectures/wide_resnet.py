"""Wide ResNets: pre-activation, depth 6n + 4, stages widened by a factor."""

import re
from collections import OrderedDict

from torch import Tensor, nn

from benchmark.errors import BadInput


class Block(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, dropout between; a 1x1 projection where widths differ.

    The projection sees the activated input, an identity shortcut the raw one, as in the authors' code.
    """

    def __init__(self, before: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        # nn.Dropout(0) would still draw from the global generator.
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(before, width, 1, stride=stride, bias=False) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, width, h / stride, w / stride)``."""
        active = self.relu1(self.bn1(x))
        beside = x if self.convShortcut is None else self.convShortcut(active)
        return beside + self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of n blocks at 16k, 32k, 64k channels, BatchNorm, ReLU, pooling, linear.

    The depth is 6n + 4, or 6n + 2 in the counting of Madry et al., who leave the projections out: their 32 layers are
    our 34 (their own network also has leaky ReLUs and parameter-free shortcuts, which this one has not).
    Initialisation and module names as in the TRADES code, but without the ``sub_block1`` that it builds and never
    calls (drop those keys before loading). Source: Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146.
    """

    def __init__(self, *, classes: int, channels: int, depth: int, width: int, dropout: float) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest not in (0, 2):
            raise BadInput(
                f"a Wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), or 6n + 2 where the projections are "
                f"not counted (32), got depth {depth}"
            )
        if not 0 <= dropout < 1:
            raise BadInput(f"setting dropout of a Wide ResNet must be in [0, 1), got {dropout}")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = self._stage(16, 16 * width, blocks, 1, dropout)
        self.block2 = self._stage(16 * width, 32 * width, blocks, 2, dropout)
        self.block3 = self._stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(before: int, width: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
        later = [Block(width, width, 1, dropout) for _ in range(blocks - 1)]
        return nn.Sequential(OrderedDict(layer=nn.Sequential(Block(before, width, stride, dropout), *later)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of any size."""
        features = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(self.relu(self.bn1(features))))


def wrn(
    *, classes: int, channels: int, size: int, depth: int = 34, width: int = 10, dropout: float = 0.0
) -> WideResNet:
    """Wide ResNet of any depth 6n + 4 and widening factor; wrn-D-K for short (Zagoruyko & Komodakis, BMVC 2016)."""
    return WideResNet(classes=classes, channels=channels, depth=depth, width=width, dropout=dropout)


def depth_and_width(name: str) -> tuple[int, int] | None:
    """Read ``wrn-D-K`` as (D, K); None where ``name`` has another form."""
    found = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    return (int(found[1]), int(found[2])) if found else None
