"""Which training images keep their label: the protocol ``hidden-labels(N, seed)`` of semi-supervised methods."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.data.images import Images
from benchmark.errors import BadInput
from methods.unlabelled import HIDDEN

LabelChoice = Literal["stratified", "permutation", "file"]


class Diagnostics:
    """Holds the labels that were taken away, and answers nothing but how often others guess them."""

    def __init__(self, hidden: Images) -> None:
        self._truth = dict(zip(hidden.index.tolist(), hidden.labels.tolist(), strict=True))

    def accuracy(self, index: Tensor, labels: Tensor) -> float:
        """Give the share of ``labels`` ``(n,)`` that are right for the unlabelled images ``index`` ``(n,)``.

        Images from elsewhere, whose label nobody knows, do not count; NaN where there are no others.
        """
        right, known = self.right(index, labels)
        return right / known if known else math.nan

    def right(self, index: Tensor, labels: Tensor) -> tuple[int, int]:
        """Count those that are, and those that could be."""
        truth = [self._truth.get(image, HIDDEN) for image in index.tolist()]
        right = sum(known == label for known, label in zip(truth, labels.tolist(), strict=True))
        return right, sum(known != HIDDEN for known in truth)

    def also(self, hidden: Images) -> "Diagnostics":
        """Hold the labels of further images, where they have one."""
        both = Diagnostics(hidden)
        both._truth = {**{image: label for image, label in both._truth.items() if label != HIDDEN}, **self._truth}
        return both


@dataclass(frozen=True, eq=False)
class HiddenLabels:
    """Training images of which only some show their label.

    Args:
        train: all of them, in their old order; the label is -1 where it is hidden. Further unlabelled ones come behind.
        labelled, unlabelled: positions in ``train``, D and U; together every row once.
        diagnostics: knows the hidden labels; no method sees it.
        images: how many of ``train`` are the training set proper, whose number an epoch's length follows from.
        given: pseudo-labels that came with images from elsewhere: their index and label, ``(n,)`` each.
    """

    train: Images
    labelled: Tensor
    unlabelled: Tensor
    diagnostics: Diagnostics
    images: int
    given: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, train: Images, labelled: Sequence[int]) -> "HiddenLabels":
        """Hide the labels of all ``train`` images whose index is not among ``labelled``."""
        kept = torch.isin(train.index, torch.tensor(labelled, dtype=torch.int64))
        unlabelled = (~kept).nonzero().flatten()
        return cls(
            replace(train, labels=torch.where(kept, train.labels, HIDDEN)),
            kept.nonzero().flatten(),
            unlabelled,
            Diagnostics(train.take(unlabelled)),
            len(train),
        )

    @property
    def proper(self) -> Images:
        """The training set proper."""
        return self.train.take(torch.arange(self.images))

    def beside(self, more: Images) -> "HiddenLabels":
        """Add the images of ``more`` to the unlabelled ones, whatever labels they have."""
        train, hidden = self.train, torch.full_like(more.labels, HIDDEN)
        return replace(
            self,
            train=Images(
                torch.cat([train.images, more.images]),
                torch.cat([train.labels, hidden]),
                torch.cat([train.index, more.index]),
                train.levels,
            ),
            unlabelled=torch.cat([self.unlabelled, len(train) + torch.arange(len(more))]),
            diagnostics=self.diagnostics.also(more),
        )


def choose_labelled(
    index: Tensor, y: Tensor, labels: int, *, classes: int, seed: int, choice: LabelChoice = "stratified"
) -> tuple[int, ...]:
    """Choose D: the indices of the ``labels`` training images that keep their label, ascending.

    The images are taken in the order of their index and permuted by ``numpy.random.RandomState(seed)``, so that neither
    batches nor devices have a say.

    Args:
        index, y: of all training images ``(m,)``, in any order.
        choice: ``stratified``, the first N/K of each of the K classes in the permutation; ``permutation``, its first N
            (ssdrl's code); ``file``, the first N in the order of the index, nothing drawn (zhai's).

    Raises:
        BadInput: N exceeds the images or is no multiple of the classes, or a class has fewer than N/K images.
    """
    if not 1 <= labels <= len(y):
        raise BadInput(
            f"dataset.labels is at most the number of training images, {len(y)}, and at least 1, but found {labels}"
        )
    if labels == len(y):
        return tuple(sorted(index.tolist()))
    ascending = index.argsort()
    order = np.arange(len(y)) if choice == "file" else np.random.RandomState(seed).permutation(len(y))
    permuted = ascending[torch.from_numpy(order)]
    if choice == "stratified":
        permuted = permuted[_first_of_each_class(y[permuted], labels, classes)]
    return tuple(sorted(index[permuted[:labels]].tolist()))


def _first_of_each_class(y: Tensor, labels: int, classes: int) -> Tensor:
    each, rest = divmod(labels, classes)
    if rest:
        raise BadInput(
            f"dataset.labels is a multiple of the {classes} classes, each of which keeps as many labels, but found "
            f"{labels}: take {each * classes or classes}, or set dataset.label_choice to permutation"
        )
    positions = [(y == label).nonzero().flatten() for label in range(classes)]
    few = min(range(classes), key=lambda label: len(positions[label]))
    if len(positions[few]) < each:
        raise BadInput(
            f"{labels} labels ask for {each} training images of each class, but class {few} has {len(positions[few])}: "
            "lower dataset.labels"
        )
    return torch.cat([those[:each] for those in positions])


def usual_labels(images: int, classes: int) -> int:
    """Give the labels that a data set keeps where nothing is said: a sixth of its images, as of digits, evenly."""
    return classes * max(1, images // (6 * classes))


def digest(labelled: Sequence[int]) -> str:
    """Hash the indices of D."""
    return hashlib.sha256(" ".join(map(str, labelled)).encode()).hexdigest()[:16]
