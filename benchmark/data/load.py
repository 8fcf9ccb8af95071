"""Split a data set into training, held-out and test images as the protocol says."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data import idx, own, sources, svhn
from benchmark.data.description import Description, describe
from benchmark.data.errors import unreadable
from benchmark.data.images import Images, Splits, fixed_order
from benchmark.errors import BadInput
from benchmark.user_code import UserCode

FOLDS = 5  # of digits
_DIGITS_TEST, _DIGITS_HELD_OUT = 400, 200
_READERS: dict[str, Callable[..., tuple[Images, Images]]] = {
    "mnist": idx.mnist,
    "fashion_mnist": idx.fashion_mnist,
    "cifar10": sources.cifar10,
    "cifar100": sources.cifar100,
    "svhn": svhn.svhn,
    "svhn_extra": svhn.svhn_extra,
}
_HELD_OUT = {
    "mnist": 5_000,
    "fashion_mnist": 5_000,
    "cifar10": 1_000,
    "cifar100": 1_000,
    "svhn": 1_000,
    "svhn_extra": 1_000,
}


def load(
    name: str,
    root: Path | None = None,
    *,
    download: bool = False,
    fold: int = 0,
    train_images: int | None = None,
    validation_images: int | None = None,
    code: UserCode | None = None,
) -> Splits:
    """Read ``name`` and split it the same way every time; nothing is drawn, nothing is fetched unless asked for.

    The order is ``numpy.random.RandomState(0).permutation``. digits: fold k tests on the 400 images from position
    ``k * 1797 // 5`` on (cyclic), holds out the next 200 and trains on the other 1,197; five times 400 is more than
    1,797, so neighbouring folds share 40 or 41 test images. The other sets: the first 5,000 (mnist, fashion_mnist) or
    1,000 (cifar10, cifar100, svhn) are held out, the rest is trained on, and the published test set is the test set;
    for CIFAR-10 this is the split of locuslab/robust_overfitting. Methods with few labels train on 1,000 of SVHN, so
    holding out 5,000 more for the choice of an epoch would hide what they cost. svhn_extra is for methods that want the
    extra images: it holds out what svhn does, trains on the rest of svhn, and behind that on the extra images in an
    order of their own. Subsets are not stratified: classes are as frequent as chance makes them.

    Args:
        root: the folder that torchvision reads from; None takes the environment's ATBENCH_DATA, else ``./data``.
        download: fetch a missing set into ``root``.
        fold: which fifth of digits is tested on, 0 to 4; the other sets have fold 0 only.
        train_images, validation_images: how many to take, where not all of the protocol's.
        code: of a user's own data set, which is read and split by :mod:`benchmark.data.own`.

    Raises:
        BadInput: unknown name, fold out of range, more images asked for than there are, a failed download.
        MissingData, CorruptData: kinds of BadInput; a file is absent, or is not the published one.
    """
    if code is not None:
        return own.load(code, fold=fold, train_images=train_images, validation_images=validation_images)
    description = describe(name)
    if not description.readable:
        raise unreadable(name)
    folds = FOLDS if name == "digits" else 1
    if not 0 <= fold < folds:
        raise BadInput(f"{name} has {folds} fold(s), counted from 0; got fold {fold}")
    if name == "digits":
        everything = sources.digits()
        order = np.roll(fixed_order(len(everything)), -(fold * len(everything) // FOLDS))
        test = everything.take(torch.from_numpy(order[:_DIGITS_TEST]))
        rest, held_out = order[_DIGITS_TEST:], _DIGITS_HELD_OUT
    else:
        folder = root if root is not None else Path(os.environ.get("ATBENCH_DATA", "data"))
        everything, test = _READERS[name](folder, download=download)
        rest, held_out = _order(everything, description), _HELD_OUT[name]
    train, validation = _divide(name, rest, train_images, held_out if validation_images is None else validation_images)
    return Splits(description, everything.take(train), everything.take(validation), test)


def _order(images: Images, description: Description) -> np.ndarray:
    """Order the set proper, and behind it the extra images that some sets have."""
    proper = len(images) if description.extra_from is None else description.extra_from
    return np.concatenate([fixed_order(proper), proper + fixed_order(len(images) - proper)])


def _divide(name: str, order: np.ndarray, train_images: int | None, held_out: int) -> tuple[Tensor, Tensor]:
    """Hold out the first of ``order`` and train on the next; returns (training, held-out) positions."""
    wanted = len(order) - held_out if train_images is None else train_images
    if wanted < 1 or held_out < 1 or wanted + held_out > len(order):
        raise BadInput(
            f"{name} has {len(order)} images for training and validation together: asked for {wanted} and {held_out}, "
            "of which each must be at least 1"
        )
    positions = torch.from_numpy(order)
    return positions[held_out : held_out + wanted], positions[:held_out]
