"""Read MNIST and Fashion-MNIST from their IDX files, after a check of each.

An IDX file of bytes starts with 0, 0, 8, the number of its axes and their lengths, big-endian 32 bits each; the bytes
follow in C order (Y. LeCun's page on MNIST). Read here and not by torchvision, which prefers a cache of earlier
versions, ``processed/training.pt``, to the files that were checked.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.errors import corrupt
from benchmark.data.files import fetch, verify, verify_by_archive
from benchmark.data.images import Images

_SIDE = 28
_COUNTS = {"train": 60_000, "t10k": 10_000}
# MD5 of the unpacked files, taken from archives whose own sums are the ones in torchvision.datasets.MNIST.
_MNIST = {
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# The sums of the labels were taken in the same way. No sum of the unpacked images was to be had: two totals stand in.
_FASHION_MNIST: dict[str, str | None] = {
    "FashionMNIST/raw/train-images-idx3-ubyte": None,
    "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": None,
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
# MD5 of the archives that hold the images, in torchvision.datasets.FashionMNIST.
_FASHION_MNIST_ARCHIVES = {"train": "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "t10k": "bef4ecab320f06d8554ea6380940ec79"}
# All pixels added up, and their squares. Mean and standard deviation are published to 16 digits (0.2860405969887955 and
# 0.35302424451492237 for training, 0.28684928071228494 and 0.35244415324743994 for test), and multiplied out they are
# whole numbers, which chance would not make them.
_FASHION_MNIST_TOTALS = {"train": (3_431_114_169, 631_470_052_347), "t10k": (573_469_082, 105_272_563_536)}


def mnist(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read MNIST as (60,000 training images, 10,000 test images).

    Raises:
        MissingData: a file is absent and ``download`` is False.
        CorruptData: a file is not the published one.
        BadInput: the download failed.
    """
    if download:
        _download("mnist", "MNIST", root, _MNIST)
    verify("mnist", root, _MNIST)
    return _part("mnist", root / "MNIST/raw", "train"), _part("mnist", root / "MNIST/raw", "t10k")


def fashion_mnist(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read Fashion-MNIST as (60,000 training images, 10,000 test images); errors as in :func:`mnist`.

    Labels are compared with known sums. An image file must have its header and length and the published totals, which a
    changed byte or another data set's file has not; images in another order are noticed only beside their archive.
    """
    name, raw = "fashion_mnist", root / "FashionMNIST/raw"
    if download:
        _download(name, "FashionMNIST", root, _FASHION_MNIST)
    verify(name, root, _FASHION_MNIST)
    parts = []
    for part, archive in _FASHION_MNIST_ARCHIVES.items():
        file = raw / f"{part}-images-idx3-ubyte"
        verify_by_archive(name, file, archive)
        parts.append(_part(name, raw, part))
        found, published = _totals(parts[-1].images.numpy()), _FASHION_MNIST_TOTALS[part]
        if found != published:
            raise corrupt(
                name, file, f"has pixels and squares that add up to {found}, those of the published file to {published}"
            )
    train, test = parts
    return train, test


def _download(name: str, dataset: str, root: Path, files: dict[str, Any]) -> None:
    from torchvision import datasets  # seconds of import that only a download has to wait for

    fetch(name, root, files, lambda: getattr(datasets, dataset)(root, download=True))


def _part(name: str, raw: Path, part: str) -> Images:
    count = _COUNTS[part]
    images = _read(name, raw / f"{part}-images-idx3-ubyte", (count, _SIDE, _SIDE))
    return Images.of(images[:, None], _read(name, raw / f"{part}-labels-idx1-ubyte", (count,)))


def _read(name: str, file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read one file of bytes, which must have this shape; raises CorruptData."""
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}i", *shape)
    length = len(header) + math.prod(shape)
    if file.stat().st_size != length:
        raise corrupt(name, file, f"has {file.stat().st_size:,} bytes, the published file {length:,}")
    content = file.read_bytes()
    if not content.startswith(header):
        raise corrupt(name, file, f"starts with {content[: len(header)].hex()}, the published file with {header.hex()}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _totals(images: np.ndarray) -> tuple[int, int]:
    counts = np.bincount(images.ravel(), minlength=256)
    level = np.arange(256)
    return int(counts @ level), int(counts @ level**2)
