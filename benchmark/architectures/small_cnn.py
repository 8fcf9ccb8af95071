"""SmallCNN, the MNIST network of TRADES and of Carlini & Wagner before it."""

from collections import OrderedDict

from torch import Tensor, nn

from benchmark.errors import BadInput


class SmallCNN(nn.Module):
    """Four unpadded 3x3 convolutions in two pooled pairs, then three linear layers with dropout after the first.

    Module names are those of the published weights. As in the original, the last layer starts at zero (so do the
    convolutions' biases) and the convolutions as He et al. (2015) say.
    Source: Zhang et al., ICML 2019, arXiv:1901.08573.
    """

    def __init__(self, *, classes: int, channels: int, size: int, dropout: float) -> None:
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2  # each pair of unpadded convolutions takes 4 pixels, each pool halves
        if side < 1:
            raise BadInput(f"small_cnn needs images of at least 16x16 pixels, got {size}x{size}: take digits_cnn")
        self.feature_extractor = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 32, 3),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 3),
                relu2=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, 3),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(64, 64, 3),
                relu4=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(64 * side * side, 200),
                relu1=nn.ReLU(),
                drop=nn.Dropout(dropout),
                fc2=nn.Linear(200, 200),
                relu2=nn.ReLU(),
                fc3=nn.Linear(200, classes),
            )
        )
        for name, parameter in self.named_parameters():
            if "conv" in name and name.endswith("weight"):
                nn.init.kaiming_normal_(parameter)
            elif "conv" in name or "fc3" in name:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for images ``(n, c, size, size)``."""
        return self.classifier(self.feature_extractor(x))


def small_cnn(*, classes: int, channels: int, size: int, dropout: float = 0.5) -> SmallCNN:
    """SmallCNN of TRADES: four 3x3 convolutions (32/32/64/64), two hidden layers of 200, dropout; made for MNIST."""
    return SmallCNN(classes=classes, channels=channels, size=size, dropout=dropout)
