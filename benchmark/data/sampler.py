"""The order of an epoch, fixed by the seed and the epoch's number."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from attacks.randomness import key


class EpochSampler(Sampler[int]):
    """Shuffle ``length`` positions anew each epoch and deal them out to ``ranks`` processes.

    The order depends on ``(seed, epoch)`` alone, so an epoch replayed after a kill is the same epoch. Lightning calls
    ``set_epoch`` before each. Where the ranks do not divide ``length``, the first positions of the order are dealt
    twice, so that every rank takes the same number of steps.
    """

    def __init__(self, length: int, *, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.length, self.seed, self.rank, self.ranks = length, seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.ranks)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(key("order", self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        dealt = order.repeat(self.ranks)[: len(self) * self.ranks]  # enough for fewer images than ranks, too
        return iter(dealt[self.rank :: self.ranks].tolist())
