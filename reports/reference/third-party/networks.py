"""Builders of networks that others trained, for `atbench evaluate --model networks.py:trades_mnist`; images in [0, 1].

Weights: `trades_mnist_smallcnn.pt` of github.com/yaodongyu/TRADES (commit f94f414), `kw_mnist_01.pth` of
github.com/locuslab/convex_adversarial (commit 2cd8149).
"""

from torch import nn

from benchmark.architectures.mnist_small import mnist_small
from benchmark.architectures.small_cnn import small_cnn


def trades_mnist() -> nn.Module:
    """The small CNN of TRADES, for MNIST."""
    return small_cnn(classes=10, channels=1, size=28)


def kw_mnist() -> nn.Module:
    """The small network of Wong and Kolter, for MNIST."""
    return mnist_small(classes=10, channels=1, size=28)
