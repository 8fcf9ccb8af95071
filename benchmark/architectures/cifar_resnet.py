"""The narrow CIFAR ResNets of He et al. (2016): three stages, depth 6n + 2."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.architectures.choices import one_of

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Take every second pixel and append channels of zeros: the paper's option A, which has no parameters."""

    def __init__(self, extra: int, stride: int = 2) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, c + extra, ceil(h / stride), ceil(w / stride))``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, and a shortcut around them; ReLU after the sum."""

    def __init__(self, before: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if before != width:  # in this family the width changes wherever the stride is 2
            projection = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
            self.shortcut = PadShortcut(width - before, stride) if shortcut == "A" else projection

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, width, h / stride, w / stride)``."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem of w channels, three stages of ``blocks`` blocks at k w, 2k w, 4k w, global pooling, a linear layer.

    k is ``widening``, 1 in the paper.

    Convolutions start as He et al. (2015) say. Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2.
    """

    def __init__(
        self, *, classes: int, channels: int, blocks: int, width: int, shortcut: Shortcut, widening: int = 1
    ) -> None:
        super().__init__()
        one_of("shortcut", shortcut, ("A", "B"))
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        wide = widening * width
        self.layer1 = self._stage(width, wide, blocks, 1, shortcut)
        self.layer2 = self._stage(wide, 2 * wide, blocks, 2, shortcut)
        self.layer3 = self._stage(2 * wide, 4 * wide, blocks, 2, shortcut)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(4 * wide, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(before: int, width: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        later = [Block(width, width, 1, shortcut) for _ in range(blocks - 1)]
        return nn.Sequential(Block(before, width, stride, shortcut), *later)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of any size."""
        stem = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.pool(self.layer3(self.layer2(self.layer1(stem)))))


def resnet8(*, classes: int, channels: int, size: int, width: int = 16, shortcut: Shortcut = "A") -> CifarResNet:
    """CIFAR ResNet of depth 8 (16/32/64, parameter-free shortcuts); the network of cifar10-laptop."""
    return CifarResNet(classes=classes, channels=channels, blocks=1, width=width, shortcut=shortcut)


def resnet20(*, classes: int, channels: int, size: int, width: int = 16, shortcut: Shortcut = "A") -> CifarResNet:
    """CIFAR ResNet of depth 20 (16/32/64, parameter-free shortcuts; He et al., CVPR 2016)."""
    return CifarResNet(classes=classes, channels=channels, blocks=3, width=width, shortcut=shortcut)


def resnet32(
    *, classes: int, channels: int, size: int, width: int = 16, shortcut: Shortcut = "A", widening: int = 1
) -> CifarResNet:
    """CIFAR ResNet of depth 32; with widening 10 and shortcut B the customized one of Zhai et al. (2019)."""
    return CifarResNet(classes=classes, channels=channels, blocks=5, width=width, shortcut=shortcut, widening=widening)
