"""Read whole data sets from where they live: scikit-learn's package, or torchvision's files after a check of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.errors import corrupt
from benchmark.data.files import fetch, verify
from benchmark.data.images import Images

# MD5 of the unpacked files, those of torchvision.datasets.CIFAR10 and CIFAR100.
_CIFAR10 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100 = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}


def digits() -> Images:
    """Read scikit-learn's 1,797 digits, 8x8 pixels of 17 levels, in their published order."""
    from sklearn.datasets import load_digits  # a second of import that the other sets need not wait for

    bunch = load_digits()
    return Images.of(bunch.images.astype(np.uint8)[:, None], bunch.target, levels=16)


def cifar10(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read CIFAR-10 as (50,000 training images, 10,000 test images).

    Raises:
        MissingData: a file is absent and ``download`` is False.
        CorruptData: a file is not the published one.
        BadInput: the download failed.
    """
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, _CIFAR10, root, download=download)


def cifar100(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read CIFAR-100 with its 100 fine labels, in the form and with the errors of :func:`cifar10`."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, _CIFAR100, root, download=download)


def _cifar(name: str, dataset: Any, files: Mapping[str, str], root: Path, *, download: bool) -> tuple[Images, Images]:
    """Return torchvision's training and test part, after every file was seen to be right."""
    if download:
        fetch(name, root, files, lambda: dataset(root, download=True))
    verify(name, root, files)
    try:
        parts = [dataset(root, train=train, download=False) for train in (True, False)]
    except Exception as error:  # files that are the published ones, and yet torchvision cannot make sense of them
        raise corrupt(name, root, f"cannot be read by torchvision: {error}") from error
    train, test = (Images.of(part.data.transpose(0, 3, 1, 2), part.targets) for part in parts)
    return train, test
