"""PreActResNet-18, the CIFAR network of FGSM-RS, of robust overfitting and of ``cifar10-common``."""

from typing import Literal

from torch import Tensor, nn

from benchmark.architectures.choices import one_of

Shortcut = Literal["preact", "raw"]


class Block(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; where the shape changes, a 1x1 projection beside them.

    Args:
        shortcut: what the projection sees, ``relu(bn1(x))`` ("preact") or the block's own input ("raw"). Identity
            shortcuts carry the block's input in both.
    """

    def __init__(self, before: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.projects_raw = shortcut == "raw"
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, width, h / stride, w / stride)``."""
        active = self.relu1(self.bn1(x))
        beside = x
        if self.shortcut is not None:
            beside = self.shortcut(x if self.projects_raw else active)
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + beside


class PreActResNet18(nn.Module):
    """A 3x3 stem, four stages of two pre-activation blocks, BatchNorm and ReLU, average pooling, a linear layer.

    PyTorch's default initialisation and the module names of the public code, so that its weights load. The readings
    differ: locuslab/robust_overfitting projects ``relu(bn1(x))`` and closes with BatchNorm and ReLU (our default),
    locuslab/fast_adversarial projects the raw input, kuangliu/pytorch-cifar (and MSD) leaves the last pair out.
    Source: He et al., ECCV 2016, arXiv:1603.05027.
    """

    def __init__(self, *, classes: int, channels: int, shortcut: Shortcut, final_norm: bool) -> None:
        super().__init__()
        one_of("shortcut", shortcut, ("preact", "raw"))
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Block(64, 64, 1, shortcut), Block(64, 64, 1, shortcut))
        self.layer2 = nn.Sequential(Block(64, 128, 2, shortcut), Block(128, 128, 1, shortcut))
        self.layer3 = nn.Sequential(Block(128, 256, 2, shortcut), Block(256, 256, 1, shortcut))
        self.layer4 = nn.Sequential(Block(256, 512, 2, shortcut), Block(512, 512, 1, shortcut))
        self.bn = nn.BatchNorm2d(512) if final_norm else nn.Identity()
        self.relu = nn.ReLU() if final_norm else nn.Identity()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of any size."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(self.pool(self.relu(self.bn(features))))


def preact_resnet18(
    *, classes: int, channels: int, size: int, shortcut: Shortcut = "preact", final_norm: bool = True
) -> PreActResNet18:
    """Pre-activation ResNet-18 with a 3x3 stem (64 to 512 channels); the network of cifar10-common."""
    return PreActResNet18(classes=classes, channels=channels, shortcut=shortcut, final_norm=final_norm)
