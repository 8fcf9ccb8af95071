"""Draws for evaluation that depend on a key alone: (seed, sample index, attack, restart, draw), never on the batch.

The raw words come from Philox, a counter-based generator whose stream NumPy guarantees; what turns words into numbers
is written here, because NumPy may change its own conversions between versions.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def key(*parts: str | int) -> int:
    """Hash names and numbers into 64 bits, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(like: Tensor, index: Iterable[int], *names: str | int) -> Tensor:
    """Draw U[-1, 1) for images ``like`` ``(n, ...)`` whose sample indices are ``index`` ``(n,)``, keyed by ``names``.

    Row ``i`` depends on ``index[i]``, ``names`` and the shape of one image only. Returns ``like``'s dtype and device.
    """
    stream = key(*names)
    size = int(np.prod(like.shape[1:]))
    rows = [np.random.Philox(key=[stream, int(i)]).random_raw(size) for i in index]
    words = np.stack(rows) if rows else np.empty((0, size), dtype=np.uint64)
    # 24 bits: exact in float32, so that every dtype holds the same number.
    values = (words >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0
    return torch.from_numpy(values).reshape(like.shape).to(like)


def normal(like: Tensor, index: Iterable[int], *names: str | int) -> Tensor:
    """Draw N(0, 1) like :func:`uniform`, through the inverse of the normal distribution."""
    halves = uniform(like.to(torch.float64), index, *names)
    return torch.special.ndtri((halves + 1 + 2.0**-24) / 2).to(like)
