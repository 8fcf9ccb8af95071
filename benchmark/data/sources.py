"""Read whole data sets from where they live: scikit-learn's package, or torchvision's files after a check of each."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.data.errors import corrupt, missing
from benchmark.data.images import Images
from benchmark.errors import BadInput

# MD5 of the unpacked files; those of CIFAR-10 are also in torchvision.datasets.CIFAR10, those of MNIST were taken from
# archives whose own sums are the ones in torchvision.datasets.MNIST.
_CIFAR10 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_MNIST = {
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def digits() -> Images:
    """Read scikit-learn's 1,797 digits, 8x8 pixels of 17 levels, in their published order."""
    from sklearn.datasets import load_digits  # a second of import that the other sets need not wait for

    bunch = load_digits()
    return _numbered(bunch.images.astype(np.uint8)[:, None], bunch.target, levels=16)


def cifar10(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read CIFAR-10 as (50,000 training images, 10,000 test images).

    Raises:
        MissingData: a file is absent and ``download`` is False, or the download failed.
        CorruptData: a file is not the published one.
    """
    from torchvision.datasets import CIFAR10

    parts = _read("cifar10", CIFAR10, _CIFAR10, root, download=download)
    train, test = (_numbered(part.data.transpose(0, 3, 1, 2), part.targets) for part in parts)
    return train, test


def mnist(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read MNIST as (60,000 training images, 10,000 test images); errors as in :func:`cifar10`."""
    from torchvision.datasets import MNIST

    parts = _read("mnist", MNIST, _MNIST, root, download=download)
    train, test = (_numbered(part.data.numpy()[:, None], part.targets.numpy()) for part in parts)
    return train, test


def verify(name: str, root: Path, files: dict[str, str]) -> None:
    """Compare the MD5 of each file under ``root`` with the published one; the first that is absent or wrong raises."""
    for file in files:
        if not (root / file).is_file():
            raise missing(name, root, file)
    for file, expected in files.items():
        with (root / file).open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != expected:
            raise corrupt(name, root / file, f"has the MD5 sum {found}, the published file {expected}")


def _read(name: str, dataset: Any, files: dict[str, str], root: Path, *, download: bool) -> list[Any]:
    """Return torchvision's training and test part, after every file was seen to be right."""
    if download and not all((root / file).is_file() for file in files):
        _download(name, dataset, root)
    verify(name, root, files)
    try:
        return [dataset(root, train=train, download=False) for train in (True, False)]
    except Exception as error:  # a legacy cache beside the files, for instance, which torchvision prefers to them
        raise corrupt(name, root, f"cannot be read by torchvision: {error}") from error


def _download(name: str, dataset: Any, root: Path) -> None:
    try:
        dataset(root, download=True)
    except Exception as error:  # whatever the network, the mirror or the disk came up with
        raise BadInput(
            f"{name} could not be downloaded to {root.absolute()}: {error}\n"
            f"  without a network: fetch it elsewhere, then --data-root FOLDER"
        ) from error


def _numbered(images: np.ndarray, labels: Any, levels: int = 255) -> Images:
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return Images(pixels, torch.as_tensor(labels, dtype=torch.int64), torch.arange(len(pixels)), levels)
