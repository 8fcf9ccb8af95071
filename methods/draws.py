"""The one source of training randomness: draws keyed by (seed, epoch, step, rank, purpose)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from attacks.randomness import key


class Draws:
    """Random numbers for one training run; a step that is replayed after a kill draws the same numbers again.

    Every draw has its own stream, keyed by the run's seed, the moment (:meth:`begin`), the kind of draw and how many of
    that kind came before in the step. Nothing depends on, or touches, the global generators. A test replaces an
    instance by anything with these methods that returns scripted tensors.

    ``like`` gives dtype and device, and the shape unless ``shape`` is given.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.begin(epoch=0, step=0)

    def begin(self, *, epoch: int, step: int, rank: int = 0) -> None:
        """Start the draws of one training step of one device."""
        self._moment = (epoch, step, rank)
        self._drawn: Counter[str] = Counter()

    def uniform(self, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Draw U[-1, 1); scale it to the interval that is wanted."""
        generator = self._generator("uniform", like.device)
        return 2 * torch.rand(_shape(like, shape), generator=generator, dtype=like.dtype, device=like.device) - 1

    def normal(self, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Draw N(0, 1)."""
        generator = self._generator("normal", like.device)
        return torch.randn(_shape(like, shape), generator=generator, dtype=like.dtype, device=like.device)

    def integers(self, high: int, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Draw whole numbers 0..high-1, int64."""
        generator = self._generator("integers", like.device)
        return torch.randint(high, _shape(like, shape), generator=generator, device=like.device)

    def shared_integer(self, high: int) -> int:
        """Draw a whole number 0..high-1 that is the same on all devices, which share a step."""
        self._drawn["shared"] += 1
        epoch, step, _ = self._moment
        return key(self.seed, epoch, step, "shared", self._drawn["shared"]) % high

    def permutation(self, size: int, like: Tensor) -> Tensor:
        """Draw an order of 0..size-1, int64 ``(size,)``."""
        return torch.randperm(size, generator=self._generator("permutation", like.device), device=like.device)

    def bernoulli(self, probability: float, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Draw 1 with ``probability``, else 0, in the dtype of ``like``."""
        generator = self._generator("bernoulli", like.device)
        chance = torch.rand(_shape(like, shape), generator=generator, dtype=torch.float64, device=like.device)
        return (chance < probability).to(like.dtype)

    def beta(self, a: float, b: float, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Draw Beta(a, b)."""
        return torch.from_numpy(self._numpy("beta").beta(a, b, _shape(like, shape))).to(like)

    def dirichlet(self, concentration: Sequence[float], like: Tensor, shape: Sequence[int] = ()) -> Tensor:
        """Draw points of the simplex, ``(*shape, len(concentration))``."""
        return torch.from_numpy(self._numpy("dirichlet").dirichlet(concentration, tuple(shape))).to(like)

    def _key(self, kind: str) -> int:
        self._drawn[kind] += 1
        return key(self.seed, *self._moment, kind, self._drawn[kind])

    def _generator(self, kind: str, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self._key(kind) >> 1)  # manual_seed takes 63 bits

    def _numpy(self, kind: str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._key(kind)))


@contextmanager
def seeded(*words: int | str) -> Iterator[None]:
    """Key the global generator of the CPU to ``words`` inside the block, for new layers; others do not notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(*words) >> 1)
        yield


def _shape(like: Tensor, shape: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(like.shape if shape is None else shape)
