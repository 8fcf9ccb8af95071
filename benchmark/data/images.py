"""Images as they are stored: integers, labels, and each image's number."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from benchmark.data.arrays import Array, as_images, as_labels, mean_and_std
from benchmark.data.description import Augmentation, Description, names
from benchmark.errors import BadInput

Pair = tuple[Array, Array]  # images and their labels


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

    @classmethod
    def of(cls, images: Array, labels: Array, *, first: int = 0, levels: int = 255, part: str = "the") -> "Images":
        """Number uint8 images ``(n, c, h, w)`` from ``first`` on; arrays or tensors, labels of any whole type.

        Raises:
            BadInput: for another type or shape; the sentence calls them ``part`` images and labels.
        """
        pixels, classes = as_images(images, f"{part} images"), as_labels(labels, f"{part} labels")
        if len(pixels) != len(classes):
            raise BadInput(f"{part} images and labels must be as many, got {len(pixels)} and {len(classes)}")
        return cls(pixels, classes, torch.arange(first, first + len(pixels)), levels)

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

    @classmethod
    def of(
        cls,
        name: str,
        *,
        train: Pair,
        test: Pair,
        validation: Pair | None = None,
        held_out: int | None = None,
        classes: int | None = None,
        augmentation: Augmentation = "none",
        levels: int = 255,
        summary: str = "a set of one's own",
    ) -> "Splits":
        """Make a data set of one's own out of arrays: ``(images, labels)`` for each part.

        Images are uint8 ``(n, c, h, w)``, square and of one size; arrays or tensors. Where no ``validation`` is given,
        the first ``held_out`` of :func:`fixed_order` are taken out of ``train``, as for the published sets. Training
        images are numbered as they were given, validation images of one's own behind them. Mean and standard deviation
        are those of the images that are trained on.

        Args:
            name: what results are filed under; not that of a set that ``atbench list datasets`` shows.
            held_out: how many, where ``validation`` is None; None for a tenth of the training images, 1,000 at most.
            classes: None for the largest training label + 1.
            augmentation: what may be done to training images: "none", "crop4" or "crop4+flip".
            levels: the brightest pixel.

        Raises:
            BadInput: for what does not fit together; see also :func:`check`.
        """
        if not name or name in names():
            raise BadInput(f"a data set of one's own needs a name of its own, got {name!r}: call it my_{name or 'set'}")
        if validation is not None and held_out is not None:
            raise BadInput(f"{name}: give validation images, or held_out={held_out} to take them from train, not both")
        if augmentation not in get_args(Augmentation):
            raise BadInput(f"{name}: augmentation is one of {', '.join(get_args(Augmentation))}, got {augmentation!r}")
        trained = Images.of(*_pair(train, "train"), levels=levels, part=f"{name}: training")
        if validation is not None:
            pair = _pair(validation, "validation")
            held = Images.of(*pair, first=len(trained), levels=levels, part=f"{name}: validation")
        else:
            trained, held = _hold_out(name, trained, held_out)
        tested = Images.of(*_pair(test, "test"), levels=levels, part=f"{name}: test")
        if not len(trained):
            raise BadInput(f"{name} has no training images: give it at least one")
        classes = int(trained.labels.max()) + 1 if classes is None else classes
        if classes < 2:
            raise BadInput(f"{name} needs at least 2 classes, labelled from 0 on; got {classes}")
        flat = trained.images.amin((0, 2, 3)) == trained.images.amax((0, 2, 3))
        if flat.any():
            channel = int(flat.nonzero()[0])
            raise BadInput(f"channel {channel} of {name} has one value in every training image: leave it out")
        mean, std = mean_and_std(trained.images, levels)
        description = Description(
            name=name,
            summary=summary,
            classes=classes,
            channels=trained.images.shape[1],
            size=trained.images.shape[2],
            mean=mean,
            std=std,
            augmentation=augmentation,
        )
        splits = cls(description, trained, held, tested)
        check(splits)
        return splits


def fixed_order(images: int) -> np.ndarray:
    """Return the order in which every data set is divided, the same for ever: a frozen generator's permutation."""
    return np.random.RandomState(0).permutation(images)


def _pair(pair: Pair, argument: str) -> Pair:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise BadInput(f"{argument} is a pair (images, labels), got {type(pair).__name__}")
    return pair


def _hold_out(name: str, images: Images, held_out: int | None) -> tuple[Images, Images]:
    """Return (training, validation) images."""
    wanted = min(1_000, max(1, len(images) // 10)) if held_out is None else held_out
    if not 1 <= wanted < len(images):
        raise BadInput(
            f"{name} has {len(images)} training images, of which {wanted} cannot be held out: hold out at least 1 and "
            "leave at least 1"
        )
    order = torch.from_numpy(fixed_order(len(images)))
    return images.take(order[wanted:]), images.take(order[:wanted])


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
