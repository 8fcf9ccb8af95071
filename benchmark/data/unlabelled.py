"""Which images are unlabelled beside those whose labels are hidden, and what must be said of them on every row."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.data import extra
from benchmark.data.description import Description
from benchmark.data.extra import ExtraImages
from benchmark.data.hidden_labels import HiddenLabels
from benchmark.data.images import Images, Splits
from benchmark.errors import BadInput
from methods.unlabelled import HIDDEN

_LEVELS = 255  # of extra images


@dataclass(frozen=True)
class Unlabelled:
    """What the unlabelled pool holds beside the training images whose labels are hidden; by default nothing.

    Args:
        extra: images from elsewhere: a folder, an .npz file (:mod:`benchmark.data.extra`), or the name of another data
            set of the same shape, whose training images stand in for uncurated data. Their labels are not looked at;
            pseudo-labels that come with them take the place of a teacher's.
        share: of the whole pool that is to come from ``extra``, which is cut down to it, by the run's seed; None for
            all of it.
        rest: the training images that the suite leaves out (``dataset.train_images``).
        with_labelled: the labelled images, too, without their labels.
        transductive: the TEST images without their labels; such a run is marked and never ranked.
    """

    extra: str | None = None
    share: float | None = None
    rest: bool = False
    with_labelled: bool = False
    transductive: bool = False

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share < 1:
            raise BadInput(f"dataset.unlabelled.share lies in [0, 1), but found {self.share}")
        if self.share is not None and self.extra is None:
            raise BadInput(
                "dataset.unlabelled.share is a share of images from elsewhere: give dataset.unlabelled.extra"
            )

    @property
    def notes(self) -> list[str]:
        """What every row of such a run says."""
        share = "" if self.share is None else f", {100 * self.share:.0f}% of the unlabelled images"
        return [
            *([f"extra data: {Path(self.extra).name}{share}"] if self.extra else []),
            *(["more data: training images that the suite leaves out, without labels"] if self.rest else []),
            *(["labelled images also stand in the unlabelled pool"] if self.with_labelled else []),
            *(["transductive: trained on the test images, without their labels"] if self.transductive else []),
        ]


def pool_identity(choice: Unlabelled, like: Description) -> dict[str, Any]:
    """Give what of ``choice`` the weights of a run depend on: of a path what lies there, not where; {} by default."""
    if choice == Unlabelled():
        return {}
    told = asdict(choice)
    if choice.extra is not None and not extra.is_dataset(choice.extra):
        told["extra"] = extra.read(choice.extra, like).digest
    return {"pool": told}


def add(
    choice: Unlabelled,
    splits: Splits,
    hidden: HiddenLabels,
    *,
    seed: int,
    whole: Callable[[], Images],
    other: Callable[[str], Images],
) -> HiddenLabels:
    """Give ``hidden`` with what ``choice`` adds to its unlabelled pool, behind its own images.

    Images of the set keep their number; others are numbered behind all of its. The order is rest, labelled, test,
    extra.

    Args:
        whole: gives all images that might have been trained on. other: those of another data set, by its name.
    """
    after = 1 + int(torch.cat([splits.train.index, splits.validation.index, splits.test.index]).max())
    after = max(after, 1 + int(whole().index.max())) if choice.rest else after
    more = []
    if choice.rest:
        every = whole()
        taken = torch.isin(every.index, torch.cat([splits.train.index, splits.validation.index]))
        more.append(every.take((~taken).nonzero().flatten()))
    if choice.with_labelled:
        more.append(splits.train.take(hidden.labelled))
    if choice.transductive:
        test = splits.test
        more.append(replace(test, index=after + torch.arange(len(test))))
        after += len(test)
    found = hidden
    for images in more:
        found = found.beside(images)
    if choice.extra is None:
        return found
    pool = read_extra(choice.extra, splits, other)
    if choice.share is not None:
        wanted = round(choice.share / (1 - choice.share) * len(found.unlabelled))
        if wanted > len(pool):
            raise BadInput(
                f"a share of {choice.share} asks for {wanted} images of {choice.extra}, but it has {len(pool)}: lower "
                "dataset.unlabelled.share"
            )
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(pool)))
        pool = pool.take(order[:wanted])
    index = after + torch.arange(len(pool))
    pixels = _of_levels(pool.images, splits.train.levels)
    labels = torch.full((len(pool),), HIDDEN, dtype=torch.int64)
    found = found.beside(Images(pixels, labels, index, splits.train.levels))
    given = pool.pseudo_labels != HIDDEN
    return replace(found, given=(index[given], pool.pseudo_labels[given]))


def read_extra(source: str, splits: Splits, other: Callable[[str], Images]) -> ExtraImages:
    """Read a path, or the training images of a data set by its name, all labels left out."""
    if not extra.is_dataset(source):
        return extra.read(source, splits.description)
    found = other(source)
    if found.images.shape[1:] != splits.train.images.shape[1:]:
        raise BadInput(
            f"dataset.unlabelled.extra: the images of {source} have shape {tuple(found.images.shape[1:])}, those of "
            f"{splits.description.name} {tuple(splits.train.images.shape[1:])}: take a set of the same shape"
        )
    labels = torch.full((len(found),), HIDDEN, dtype=torch.int64)
    return ExtraImages(_of_levels(found.images, _LEVELS, found.levels), labels)


def _of_levels(images: Tensor, levels: int, before: int = _LEVELS) -> Tensor:
    """Scale the brightness of uint8 images to ``levels``, rounded; digits have 16."""
    if levels == before:
        return images
    return images.double().mul(levels / before).round().to(torch.uint8)
