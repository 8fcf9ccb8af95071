"""Images as they are stored: integers, labels, and each image's number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.data.description import Description
from benchmark.errors import BadInput


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images; ``images / levels`` is in [0, 1].

    Args:
        images: uint8 ``(n, c, h, w)``, from 0 to ``levels``.
        labels: int64 ``(n,)``.
        index: int64 ``(n,)``, each image's number in its whole set. A split is a selection, so its largest index may
            exceed ``n``: size a table kept per image by ``index.max() + 1``.
        levels: the brightest pixel, 255 for photographs and 16 for scikit-learn's digits.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    levels: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> "Images":
        """Select rows, in the order of ``positions`` ``(m,)``."""
        return Images(self.images[positions], self.labels[positions], self.index[positions], self.levels)

    def to(self, device: torch.device | str) -> "Images":
        """Move everything to ``device``."""
        return Images(self.images.to(device), self.labels.to(device), self.index.to(device), self.levels)

    def pixels(self) -> Tensor:
        """Return the images as float32 in [0, 1]; exactly what torchvision's ``ToTensor`` gives for 255 levels."""
        return self.images.to(torch.float32).div(self.levels)


@dataclass(frozen=True, eq=False)
class Splits:
    """One data set in three parts; no validation or test image is a training image.

    ``train`` and ``validation`` share one numbering; ``test`` has its own where the data set comes with a test set.
    """

    description: Description
    train: Images
    validation: Images
    test: Images


def check(splits: Splits) -> None:
    """Raise BadInput where a part does not fit the description, or training and validation share an image."""
    description = splits.description
    for part in ("train", "validation", "test"):
        _check_part(f"the {part} part of {description.name}", getattr(splits, part), description)
    shared = torch.isin(splits.train.index, splits.validation.index)
    if shared.any():
        raise BadInput(
            f"training and validation of {description.name} share {int(shared.sum())} images, such as index "
            f"{int(splits.train.index[shared][0])}: held-out images must not be trained on"
        )


def _check_part(part: str, found: Images, description: Description) -> None:
    side, n = description.size, len(found.labels)
    shape = (n, description.channels, side, side)
    if n == 0:
        raise BadInput(f"{part} is empty: give it at least one image")
    if found.images.dtype != torch.uint8 or tuple(found.images.shape) != shape:
        raise BadInput(
            f"{part} must hold uint8 images of shape {shape}, one per label; "
            f"got {found.images.dtype} of shape {tuple(found.images.shape)}"
        )
    if found.labels.dtype != torch.int64 or found.labels.shape != (n,):
        raise BadInput(
            f"{part} must hold int64 labels (n,), got {found.labels.dtype} of shape {tuple(found.labels.shape)}"
        )
    if found.index.dtype != torch.int64 or found.index.shape != (n,) or len(found.index.unique()) != n:
        raise BadInput(f"{part} must number its {n} images by int64 without repeats: index (n,) does not")
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or high >= description.classes:
        raise BadInput(
            f"{part} must have labels from 0 to {description.classes - 1}, found {low} to {high}: "
            "renumber them, or describe the set with more classes"
        )
    brightest = int(found.images.max())
    if brightest > found.levels:
        raise BadInput(f"{part} has a pixel of {brightest}, above its levels={found.levels}: pixels would exceed 1")
