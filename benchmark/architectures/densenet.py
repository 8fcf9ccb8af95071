"""DenseNet-161 in the CIFAR form that Curriculum Adversarial Training was measured with."""

import torch
from torch import Tensor, nn

BLOCKS = (6, 12, 36, 24)


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to four times the growth; again, 3x3 to the growth; joined to the input."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, growth + before, h, w)``, the new channels first."""
        new = self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))
        return torch.cat([new, x], 1)


class DenseNet(nn.Module):
    """A 3x3 stem without max-pooling, four dense blocks, halved in channels and sides between, pooling, linear.

    Source: Huang et al., CVPR 2017, arXiv:1608.06993, changed for 32x32 images as github.com/kuangliu/pytorch-cifar
    does, whose module names are not kept.
    """

    def __init__(self, *, classes: int, channels: int, growth: int) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        for place, layers in enumerate(BLOCKS):
            for _ in range(layers):
                parts.append(Layer(width, growth))
                width += growth
            if place < len(BLOCKS) - 1:
                half = width // 2
                halved = nn.Conv2d(width, half, 1, bias=False)
                parts.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), halved, nn.AvgPool2d(2)))
                width = half
        self.body = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, h, w)`` of 8 pixels a side or more."""
        return self.linear(self.pool(self.relu(self.bn(self.body(self.conv1(x))))))


def densenet161(*, classes: int, channels: int, size: int, growth: int = 48) -> DenseNet:
    """DenseNet-161 with a 3x3 stem and no max-pooling (growth 48); the CIFAR network of curriculum training."""
    return DenseNet(classes=classes, channels=channels, growth=growth)
