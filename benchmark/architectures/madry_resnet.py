"""The wide ResNet of the MadryLab challenge, w32-10, in which half of the early literature measures."""

from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.errors import BadInput

SLOPE = 0.1  # of every leaky ReLU


class Shortcut(nn.Module):
    """Average-pool by the stride and put zero channels on both sides; it has no parameters."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.before, self.after = (width - before) // 2, width - before - (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, width, h / stride, w / stride)``."""
        return F.pad(self.pool(x), (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """BatchNorm and leaky ReLU before each of two 3x3 convolutions, and a shortcut around them.

    Args:
        first: of its stage: the shortcut starts behind the first BatchNorm and activation, else before them.
    """

    def __init__(self, before: int, width: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.LeakyReLU(SLOPE)
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.LeakyReLU(SLOPE)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = Shortcut(before, width, stride) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, width, h / stride, w / stride)``."""
        active = self.relu1(self.bn1(x))
        beside = self.shortcut(active if self.first else x)
        return beside + self.conv2(self.relu2(self.bn2(self.conv1(active))))


class MadryResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages at 16k, 32k, 64k, BatchNorm, leaky ReLU, average pooling, linear.

    Leaky ReLUs of slope 0.1, shortcuts without parameters, convolutions drawn as He et al. (2015) say by their fan-out,
    the last layer by Glorot and Bengio's uniform rule. The authors put per-image standardisation in front: setting
    ``normalise: per_image``.
    Source: Madry et al., ICLR 2018, arXiv:1706.06083, and github.com/MadryLab/cifar10_challenge.
    """

    def __init__(self, *, classes: int, channels: int, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stage1 = self._stage(16, 16 * width, blocks, 1)
        self.stage2 = self._stage(16 * width, 32 * width, blocks, 2)
        self.stage3 = self._stage(32 * width, 64 * width, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.LeakyReLU(SLOPE)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @staticmethod
    def _stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        later = [Block(width, width, 1, first=False) for _ in range(blocks - 1)]
        return nn.Sequential(Block(before, width, stride, first=True), *later)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of any size."""
        features = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.linear(self.pool(self.relu(self.bn(features))))


def madry_resnet(*, classes: int, channels: int, size: int, depth: int = 32, width: int = 10) -> MadryResNet:
    """Wide ResNet of the MadryLab challenge: w32-10 with leaky ReLUs and parameter-free shortcuts."""
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise BadInput(f"madry_resnet has depth 6n + 2 (8, 14, 20, 26, 32, ...), got depth {depth}")
    return MadryResNet(classes=classes, channels=channels, blocks=blocks, width=width)
