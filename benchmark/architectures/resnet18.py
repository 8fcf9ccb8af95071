"""ResNet-18 in the wide CIFAR form that TRADES, MART and many others train."""

from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, and a 1x1 projection where the shape changes; ReLU after the sum."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, width, h / stride, w / stride)``."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class ResNet18(nn.Module):
    """A 3x3 stem without max-pooling, four stages of two blocks at 64 to 512 channels, average pooling, linear.

    PyTorch's default initialisation and the module names of the TRADES and MART code, so that their weights load.
    Source: He et al., CVPR 2016, arXiv:1512.03385, changed for 32x32 images as github.com/kuangliu/pytorch-cifar does.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of any size."""
        stem = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.pool(self.layer4(self.layer3(self.layer2(self.layer1(stem))))))


def resnet18(*, classes: int, channels: int, size: int) -> ResNet18:
    """ResNet-18 with a 3x3 stem and no max-pooling (64 to 512 channels); the CIFAR network of TRADES and MART."""
    return ResNet18(classes=classes, channels=channels)
