"""Read SVHN, alone or with its extra part, from the MATLAB files, after a check of each.

Source: Netzer et al., NIPS workshop on deep learning 2011, http://ufldl.stanford.edu/housenumbers/.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmark.data.files import fetch, verify
from benchmark.data.images import Images

_MD5 = {  # those of torchvision.datasets.SVHN
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}


def svhn(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read SVHN as (73,257 training images, 26,032 test images).

    Raises:
        MissingData: a file is absent and ``download`` is False.
        CorruptData: a file is not the published one.
        BadInput: the download failed.
    """
    train, test = _verified("svhn", root, ("train", "test"), download=download)
    return _images([train]), _images([test])


def svhn_extra(root: Path, *, download: bool = False) -> tuple[Images, Images]:
    """Read SVHN as (73,257 training and then 531,131 extra images, 26,032 test images); errors as in :func:`svhn`.

    The training images keep the numbers that they have without the extra ones, so that image 17 of ``svhn`` is image 17
    here. The images are 1.9 GB, and twice that for the time of reading.
    """
    train, extra, test = _verified("svhn_extra", root, ("train", "extra", "test"), download=download)
    return _images([train, extra]), _images([test])


def _verified(name: str, root: Path, parts: tuple[str, ...], *, download: bool) -> list[Path]:
    files = {part: f"{part}_32x32.mat" for part in parts}
    if download:
        from torchvision.datasets import SVHN  # seconds of import that only a download has to wait for

        for part, file in files.items():
            fetch(name, root, [file], partial(SVHN, root, split=part, download=True))
    verify(name, root, {file: _MD5[file] for file in files.values()})
    return [root / file for file in files.values()]


def _images(files: list[Path]) -> Images:
    """Put the images of ``files`` behind each other, with one copy of each in memory and one more of the whole."""
    from scipy.io import loadmat

    contents = [loadmat(file, variable_names=["X", "y"]) for file in files]
    labels = np.concatenate([content["y"].reshape(-1) for content in contents]).astype(np.int64) % 10  # 10 stands for 0
    images = torch.empty(len(labels), 3, 32, 32, dtype=torch.uint8)
    filled = 0
    for content in contents:
        pixels = torch.from_numpy(content.pop("X")).permute(3, 2, 0, 1)  # stored as (h, w, c, n)
        images[filled : filled + len(pixels)] = pixels
        filled += len(pixels)
    return Images.of(images, labels)
