"""The small convolutional network of Wong & Kolter for MNIST, used by FGSM-RS and ``mnist-common``."""

from torch import nn

from benchmark.errors import BadInput


def mnist_small(*, classes: int, channels: int, size: int, width: int = 16, hidden: int = 100) -> nn.Sequential:
    """Two 4x4 convolutions (16/32, stride 2) and a hidden layer of 100; made for MNIST.

    A plain ``Sequential`` with the positions of the published weights.
    Source: Wong & Kolter, ICML 2018, arXiv:1711.00851; Wong, Rice & Kolter, ICLR 2020, arXiv:2001.03994.
    """
    side = size // 4  # a 4x4 convolution with stride 2 and padding 1 halves the side, rounding down
    if side < 1:
        raise BadInput(f"mnist_small needs images of at least 4x4 pixels, got {size}x{size}: take digits_cnn")
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
