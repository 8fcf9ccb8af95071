"""Images from elsewhere, for methods that learn without labels: a folder, an .npz file, or another data set.

A folder holds image files, in folders below it as well, and may hold ``pseudo_labels.csv`` with the columns ``file``
and ``label``. An .npz file holds ``images``, uint8 from 0 to 255 of shape ``(n, h, w, c)``, ``(n, c, h, w)`` or, grey,
``(n, h, w)``, and may hold ``pseudo_labels`` ``(n,)``. A pseudo-label of -1 is none. All images have the size and the
channels of the training images; nothing is scaled or cropped.
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data.arrays import as_labels
from benchmark.data.description import Description, names
from benchmark.errors import BadInput
from methods.unlabelled import HIDDEN

PSEUDO_LABELS = "pseudo_labels.csv"
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True, eq=False)
class ExtraImages:
    """Images ``(n, c, h, w)``, uint8 from 0 to 255, and labels that somebody guessed, int64 ``(n,)``, -1 for none."""

    images: Tensor
    pseudo_labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: Tensor) -> "ExtraImages":
        """Select rows, in the order of ``positions`` ``(m,)``."""
        return ExtraImages(self.images[positions], self.pseudo_labels[positions])

    @cached_property
    def digest(self) -> str:
        """Hash what is in it."""
        told = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        for part in (self.images, self.pseudo_labels):
            told.update(part.contiguous().numpy().tobytes())
        return told.hexdigest()[:16]


def is_dataset(source: str) -> bool:
    """Tell whether ``source`` is the name of a data set, and not a path."""
    return source in names()


def read(source: str, like: Description) -> ExtraImages:
    """Read a folder or an .npz file; ``like`` says what size and how many channels and classes are expected.

    Raises:
        BadInput: for a path that is neither, no images, another size, or labels that are no classes of the set.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise BadInput(
            f"dataset.unlabelled.extra is a folder of images, an .npz file or one of {', '.join(names())}, but there "
            f"is no {path.absolute()}"
        )
    return _read(path.absolute(), path.stat().st_mtime_ns, like)


@lru_cache(maxsize=2)  # asked for by name, training and teacher
def _read(path: Path, changed: int, like: Description) -> ExtraImages:
    found = _folder(path, like.channels) if path.is_dir() else _npz(path)
    shape = (len(found), like.channels, like.size, like.size)
    if tuple(found.images.shape) != shape:
        raise BadInput(
            f"{path} must hold images like those of {like.name}, {like.channels} channel(s) of "
            f"{like.size}x{like.size}, but found shape {tuple(found.images.shape)}, read as (n, c, h, w)"
        )
    low, high = int(found.pseudo_labels.min()), int(found.pseudo_labels.max())
    if low < HIDDEN or high >= like.classes:
        raise BadInput(
            f"{path} must have pseudo-labels from 0 to {like.classes - 1}, or -1 for none, but found {low} to {high}"
        )
    return found


def _folder(path: Path, channels: int) -> ExtraImages:
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS)
    if not files:
        raise BadInput(f"{path} must hold images ({' '.join(_ENDINGS)}), but found none")
    pictures = []
    for file in files:
        try:
            with Image.open(file) as opened:
                pictures.append(np.asarray(opened.convert("L" if channels == 1 else "RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise BadInput(f"{file} cannot be read as an image: {error}") from None
        if pictures[-1].shape != pictures[0].shape:
            sizes = [f"{one.shape[1]}x{one.shape[0]}" for one in (pictures[0], pictures[-1])]
            raise BadInput(
                f"{path} must hold images of one size, but {files[0].name} has {sizes[0]}, {file} {sizes[1]}"
            )
    names_of = [file.relative_to(path).as_posix() for file in files]
    return ExtraImages(_channels_first(np.stack(pictures), path), _labels_of(path / PSEUDO_LABELS, names_of))


def _labels_of(path: Path, files: list[str]) -> Tensor:
    """Read the labels of ``files`` where there is a table of them; of a file that it does not name there is none."""
    labels = torch.full((len(files),), HIDDEN, dtype=torch.int64)
    if not path.is_file():
        return labels
    place = {name: number for number, name in enumerate(files)}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames is None or not {"file", "label"} <= set(rows.fieldnames):
            raise BadInput(f"{path} must have the columns file and label, but found {', '.join(rows.fieldnames or [])}")
        for row in rows:
            if row["file"] not in place:
                raise BadInput(f"{path} names {row['file']!r}, which is not among the images of {path.parent}")
            try:
                labels[place[row["file"]]] = int(row["label"])
            except (TypeError, ValueError):
                raise BadInput(
                    f"{path} must give whole numbers, but found {row['label']!r} for {row['file']}"
                ) from None
    return labels


def _npz(path: Path) -> ExtraImages:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in ("images", "pseudo_labels") if name in content.files}
            there = list(content.files)
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a lone array, of np.save
        raise BadInput(f"{path} cannot be read as an .npz file: {error}") from None
    if "images" not in arrays:
        raise BadInput(
            f"{path} must hold 'images', and may hold 'pseudo_labels', but found {', '.join(there) or 'none'}"
        )
    images = _channels_first(arrays["images"], path)
    if "pseudo_labels" not in arrays:
        return ExtraImages(images, torch.full((len(images),), HIDDEN, dtype=torch.int64))
    labels = as_labels(arrays["pseudo_labels"], f"{path}: pseudo_labels")
    if len(labels) != len(images):
        raise BadInput(f"{path} must hold as many pseudo-labels as images, but found {len(labels)} and {len(images)}")
    return ExtraImages(images, labels)


def _channels_first(images: np.ndarray, path: Path) -> Tensor:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise BadInput(
            f"{path} must hold uint8 images from 0 to 255, (n, h, w, c), (n, c, h, w) or (n, h, w), at least one, but "
            f"found {images.dtype} of shape {images.shape}"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3) and images.shape[1] == images.shape[2]:
        images = images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))
