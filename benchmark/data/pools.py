"""Batches out of two pools, labelled and unlabelled images, in an order fixed by seed, epoch and step."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from attacks.randomness import key
from benchmark.data.augment import Moves, Style, crop_and_flip, draw_moves
from benchmark.data.images import Images
from methods.base import Batch

Row = tuple[int, int]  # an image's position, and the place in the epoch at which it is drawn


class PoolSampler(Sampler[Row]):
    """Draw every batch of an epoch from two pools, and deal its rows out to ``ranks`` processes.

    The labelled part comes from passes over the labelled images, each shuffled anew, that run on over the borders of
    batches and epochs: no image repeats inside a pass, and every batch has its full size. So does the unlabelled part,
    or it is drawn uniformly with replacement. Then the batch is shuffled. All of it depends on (seed, epoch, step)
    alone, so an epoch replayed after a kill is the same epoch, and the ranks share one batch, of each pool as many rows
    give or take one. Where they do not divide it, the first rows dealt are dealt twice.

    Args:
        labelled, unlabelled: positions of the images of each pool.
        labelled_rows: of ``batch_size``, the rows of a batch over all ranks.
        steps: batches an epoch.
        redraws: whether unlabelled images are drawn with replacement.
    """

    def __init__(
        self,
        labelled: Tensor,
        unlabelled: Tensor,
        *,
        labelled_rows: int,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        redraws: bool = False,
    ) -> None:
        self.labelled, self.unlabelled = labelled.cpu(), unlabelled.cpu()
        self.labelled_rows = labelled_rows if len(unlabelled) else batch_size
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.rank, self.ranks = rank, ranks
        self.redraws = redraws
        self.epoch = 0
        self._is_labelled = set(self.labelled.tolist())
        self._passes = _Passes(self.labelled, seed, "labelled"), _Passes(self.unlabelled, seed, "unlabelled")

    @property
    def share(self) -> int:
        """Rows of each batch that one rank takes."""
        return -(-self.batch_size // self.ranks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.share

    def __iter__(self) -> Iterator[Row]:
        for step in range(self.steps):
            rows = list(enumerate(self.batch(step).tolist(), start=step * self.batch_size))
            if self.ranks > 1:  # so that no rank is left without rows of one pool
                rows.sort(key=lambda row: row[1] not in self._is_labelled)
            dealt = (rows * self.ranks)[: self.share * self.ranks]
            yield from ((position, slot) for slot, position in dealt[self.rank :: self.ranks])

    def batch(self, step: int) -> Tensor:
        """Give the positions ``(batch_size,)`` of this epoch's batch number ``step``."""
        drawn, before = self.batch_size - self.labelled_rows, self.epoch * self.steps + step
        known, others = self._passes[0].places(before * self.labelled_rows, self.labelled_rows), self.unlabelled[:0]
        if self.redraws:
            generator = self._generator("unlabelled", step)
            others = self.unlabelled[torch.randint(max(1, len(self.unlabelled)), (drawn,), generator=generator)]
        elif drawn:
            others = self._passes[1].places(before * drawn, drawn)
        both = torch.cat([known, others])
        return both[torch.randperm(len(both), generator=self._generator("mixed", step))]

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(key(purpose, self.seed, self.epoch, step))


class _Passes:
    """An endless row of passes over ``positions``, each shuffled anew by its number."""

    def __init__(self, positions: Tensor, seed: int, pool: str) -> None:
        self.positions, self.seed, self.pool = positions, seed, pool
        self._last = -1, positions  # the last pass that was shuffled, and its order

    def places(self, start: int, count: int) -> Tensor:
        """Give the positions ``(count,)`` from place ``start`` of the row on."""
        found = [self.positions[:0]]
        while count > 0:
            number, within = divmod(start, len(self.positions))
            part = self._shuffled(number)[within : within + count]
            found.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(found)

    def _shuffled(self, number: int) -> Tensor:
        if self._last[0] != number:
            generator = torch.Generator().manual_seed(key(f"{self.pool} pass", self.seed, number))
            self._last = number, self.positions[torch.randperm(len(self.positions), generator=generator)]
        return self._last[1]


class PoolData(Dataset[Batch]):
    """Serve the rows of a :class:`PoolSampler` as batches ``(x, y, index)``; y is -1 where the label is hidden.

    An image that is drawn several times in an epoch is moved differently each time, hence by its place in the epoch.
    A plain position is served too, moved by the draw of the place that has its number.

    Args:
        style: how images are moved; None leaves them as they are.
    """

    def __init__(self, images: Images, sampler: PoolSampler, *, style: Style | None = None) -> None:
        self.images, self.sampler, self.style = images, sampler, style
        self._moves: tuple[int, Moves] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: Row | int) -> Batch:
        """Return one image ``(c, h, w)`` with its label and number, both scalars."""
        return Batch(*(rows[0] for rows in self.__getitems__([row])))

    def __getitems__(self, rows: Sequence[Row | int]) -> Batch:
        """Return the images of ``rows`` as one batch of shapes ``(n, c, h, w)``, ``(n,)``, ``(n,)``."""
        device = self.images.images.device
        pairs = [row if isinstance(row, tuple) else (row, row) for row in rows]
        positions, slots = torch.tensor(pairs, device=device).unbind(1)
        taken = self.images.take(positions)
        x = taken.pixels()
        if self.style is not None:
            x = crop_and_flip(x, self._epoch_moves(self.style).of(slots))
        return Batch(x, taken.labels, taken.index)

    def _epoch_moves(self, style: Style) -> Moves:
        sampler = self.sampler
        if self._moves is None or self._moves[0] != sampler.epoch:
            slots, device = sampler.steps * sampler.batch_size, self.images.images.device
            moves = draw_moves(slots, seed=sampler.seed, epoch=sampler.epoch, style=style, device=device)
            self._moves = sampler.epoch, moves
        return self._moves[1]
