"""The Lightning module that feeds one data set's splits to training, validation and test."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmark.data.augment import Moves, crop_and_flip, draw_moves
from benchmark.data.description import Augmentation
from benchmark.data.hidden_labels import HiddenLabels
from benchmark.data.images import Images, Splits, check
from benchmark.data.pools import PoolData, PoolSampler
from benchmark.data.sampler import EpochSampler
from benchmark.data.tensors import TensorData
from methods.base import Batch


class ImageData(pl.LightningDataModule):
    """Serve ``splits`` from the training device, in an order and with an augmentation fixed by seed and epoch.

    Nothing here draws from a global generator, and an epoch replayed after a kill is the same epoch. Use
    ``Trainer(use_distributed_sampler=False)``: the training and the held-out images are dealt out to the ranks here,
    while test images go to every rank, in order.

    Args:
        batch_size: images per step and rank; the last batch of an epoch may be smaller.
        augment: whether training images are moved as the set's description says; sets that allow none stay as they are.
            Or the name of another augmentation, which a recipe may ask for.
        hidden: which labels are hidden; they are taken out of :attr:`splits` here, before any method sees them. Every
            batch has its full size then, and an epoch is the ceiling of all training images over the batch.
        labelled_rows: of a batch's size, the number of labels and of all images, how many of its rows are labelled; by
            default all of them, so that the unlabelled images are not used.
        redraws: whether unlabelled images are drawn with replacement, or in shuffled passes as the labelled ones.

    Raises:
        BadInput: the splits do not fit their description; see :func:`benchmark.data.check`.
    """

    def __init__(
        self,
        splits: Splits,
        *,
        batch_size: int,
        seed: int,
        augment: bool | Augmentation = True,
        hidden: HiddenLabels | None = None,
        labelled_rows: Callable[[int, int, int], int] | None = None,
        redraws: bool = False,
    ) -> None:
        super().__init__()
        check(splits)
        if isinstance(augment, str):
            splits = replace(splits, description=replace(splits.description, augmentation=augment))
        self.splits = splits if hidden is None else replace(splits, train=hidden.proper)
        self.hidden, self.labelled_rows, self.redraws = hidden, labelled_rows, redraws
        self.batch_size, self.seed = batch_size, seed
        self.augments = augment is not False and splits.description.augmentation != "none"
        self._device = torch.device("cpu")
        self._sampler: EpochSampler | None = None
        self._moves: tuple[int, Moves] | None = None  # an epoch and what was drawn for it

    def setup(self, stage: str | None = None) -> None:
        """Choose the trainer's device; the images move there, as uint8, with the first loader that wants them."""
        if self.trainer is not None:
            self._device = self.trainer.strategy.root_device

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of the training images, shuffled by (seed, epoch)."""
        rank, ranks = self._rank()
        if self.hidden is not None and len(self.hidden.unlabelled):
            return self._pools(self.hidden, rank, ranks)
        self._sampler = EpochSampler(len(self.splits.train), seed=self.seed, rank=rank, ranks=ranks)
        return self._loader(self.splits.train, sampler=self._sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of the held-out training images, in order: each image goes to one rank."""
        rank, ranks = self._rank()
        return self._loader(self.splits.validation.take(torch.arange(rank, len(self.splits.validation), ranks)))

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test images in order."""
        return self._loader(self.splits.test)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Move the training images of ``batch``, once they are on the device."""
        if not self.augments or self._sampler is None or self.trainer is None or not self.trainer.training:
            return batch
        moves = self._epoch_moves(self._sampler.epoch)  # the sampler's, so that order and moves never disagree
        return batch._replace(x=crop_and_flip(batch.x, moves.of(batch.index)))

    @property
    def rows_per_epoch(self) -> int:
        """Images that one epoch's batches hold, repetitions counted: what passes are divided by."""
        images, whole = len(self.splits.train), self.batch_size * self._rank()[1]
        pooled = self.hidden is not None and len(self.hidden.unlabelled) > 0
        return -(-images // whole) * whole if pooled else images

    def _pools(self, hidden: HiddenLabels, rank: int, ranks: int) -> DataLoader[Batch]:
        whole, images, labels = self.batch_size * ranks, len(hidden.train), len(hidden.labelled)
        steps = -(-hidden.images // whole)  # further images make no epoch longer
        alone = self.labelled_rows is None
        sampler = PoolSampler(
            hidden.labelled,
            hidden.unlabelled[:0] if alone else hidden.unlabelled,
            labelled_rows=whole if self.labelled_rows is None else self.labelled_rows(whole, labels, images),
            batch_size=whole,
            steps=steps,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            redraws=self.redraws,
        )
        style = self.splits.description.moves if self.augments else None
        data = PoolData(hidden.train.to(self._device), sampler, style=style)
        return self._loader(data, sampler=sampler)

    def _epoch_moves(self, epoch: int) -> Moves:
        if self._moves is None or self._moves[0] != epoch:
            images = int(self.splits.train.index.max()) + 1
            style = self.splits.description.moves
            self._moves = epoch, draw_moves(images, seed=self.seed, epoch=epoch, style=style, device=self._device)
        return self._moves[1]

    def _loader(self, images: Images | PoolData, **settings: Any) -> DataLoader[Batch]:
        return DataLoader(
            images if isinstance(images, PoolData) else TensorData(images.to(self._device)),
            batch_size=self.batch_size,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # an iterator draws a seed for workers; not from the global generator
            **settings,
        )


def _as_it_is(batch: Any) -> Any:
    """Keep the batch that ``TensorData.__getitems__`` has already put together."""
    return batch
