"""ResNet-18 in the wide CIFAR form that TRADES, MART and many others train, and its larger sister of 50 layers."""

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


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the width; else as :class:`Block`."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu3 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or before != 4 * width:
            projection = nn.Conv2d(before, 4 * width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, 4 width, h / stride, w / stride)``."""
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet50(nn.Module):
    """A 3x3 stem without max-pooling, stages of 3, 4, 6 and 3 bottlenecks at 64 to 512, average pooling, linear.

    PyTorch's default initialisation. Source: as :class:`ResNet18`; the CIFAR network of MadryLab/robustness.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        before, stages = 64, list[nn.Module]()
        for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
            stage = []
            for place in range(blocks):
                stage.append(Bottleneck(before, width, 2 if place == 0 and width > 64 else 1))
                before = 4 * width
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of any size."""
        stem = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.pool(self.layer4(self.layer3(self.layer2(self.layer1(stem))))))


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


def resnet50(*, classes: int, channels: int, size: int) -> ResNet50:
    """ResNet-50 with a 3x3 stem and no max-pooling (64 to 2,048 channels); the CIFAR network of Madry's library."""
    return ResNet50(classes=classes, channels=channels)
