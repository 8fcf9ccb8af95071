"""What a person hands over as images and labels, turned into the tensors that are stored, or refused in a sentence."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmark.errors import BadInput

Array = np.ndarray | Tensor | Sequence[int]


def as_images(images: Array, part: str = "images") -> Tensor:
    """Return uint8 ``(n, c, h, w)``, sharing memory where it can; raises BadInput for any other type or shape."""
    tensor = _tensor(images, part)
    if tensor.dtype != torch.uint8:
        hint = "multiply pixels in [0, 1] by 255 and round them" if tensor.is_floating_point() else "convert them"
        raise BadInput(f"{part} must be uint8, got {_word(tensor.dtype)}: {hint}")
    shape = tuple(tensor.shape)
    if tensor.ndim == 3:
        raise BadInput(f"{part} must have shape (n, c, h, w), got {shape}: give grey images[:, None]")
    if tensor.ndim != 4:
        raise BadInput(f"{part} must have shape (n, c, h, w), got {shape}")
    if shape[2] != shape[3]:
        last = shape[1] == shape[2]
        hint = "move the channels forward, (n, h, w, c) to (n, c, h, w)" if last else "crop or pad them to squares"
        raise BadInput(f"{part} must be square, got shape {shape}, read as (n, c, h, w): {hint}")
    return tensor


def as_labels(labels: Array, part: str = "labels") -> Tensor:
    """Return int64 ``(n,)`` from whole numbers of any type; raises BadInput for fractions and for other shapes."""
    tensor = _tensor(labels, part)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise BadInput(f"{part} must be whole numbers, got {_word(tensor.dtype)}")
    if tensor.ndim != 1:
        raise BadInput(f"{part} must have shape (n,), one label per image; got {tuple(tensor.shape)}")
    return tensor.to(torch.int64)


def mean_and_std(images: Tensor, levels: int = 255) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return both per channel, in [0, 1] pixel units, of uint8 images ``(n, c, h, w)``, from exact counts."""
    level = torch.arange(256, dtype=torch.float64) / levels
    means, stds = [], []
    for channel in images.transpose(0, 1):
        counts = channel.flatten().bincount(minlength=256).double().cpu()
        mean = (counts * level).sum() / counts.sum()
        means.append(mean.item())
        stds.append(((counts * (level - mean) ** 2).sum() / counts.sum()).sqrt().item())
    return tuple(means), tuple(stds)


def _tensor(values: Array, part: str) -> Tensor:
    try:
        if isinstance(values, Tensor):
            return values.detach().cpu()
        return torch.from_numpy(np.require(values, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{part} must be a NumPy array or a tensor: {error}") from None


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
