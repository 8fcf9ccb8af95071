"""The other images of the training set, for methods that compare an image with such as are not in its batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from attacks.errors import BadInput
from methods.draws import Draws
from methods.records import Batch
from methods.unlabelled import HIDDEN

CHUNK = 1000  # items whose labels are read at once


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images to draw from, by position 0..N-1; whoever draws keys the draws, so nothing here is state.

    Args:
        labels: of all images, int64 ``(N,)``.
        index: their sample indices, int64 ``(N,)``; None where the data have none.
        read: positions ``(m,)`` to the batch of these images, made as a training batch is made, augmentation included;
            told the number of a pass over the data as well, with the augmentation of that one.
    """

    labels: Tensor
    index: Tensor | None
    read: Callable[..., Batch]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_batch(cls, batch: Batch) -> "TrainingSet":
        """Take a batch for the whole set: all there is without a trainer."""
        return cls(batch.y, batch.index, lambda at, _=None: Batch(batch.x[at], batch.y[at], batch.index[at]))

    @classmethod
    def of_trainer(cls, method: pl.LightningModule, *, instead: str = "") -> "TrainingSet":
        """Take what the trainer of ``method`` trains on; every device has all of it, whatever its share of an epoch.

        The labels are read once: from the data set's ``targets`` (torchvision's sets have them), else item by item.
        A sampler's ``indices`` (of a ``SubsetRandomSampler``) limit the set; images whose label is hidden are left out.

        Args:
            instead: what else may be done where this is impossible, for the error.

        Raises:
            BadInput: where the trainer has no single DataLoader over a data set with positions.
        """
        loader = method.trainer.train_dataloader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            kind = loader.dataset if isinstance(loader, DataLoader) else loader
            several = f" of {len(loader)} loaders" if isinstance(loader, dict | list) else ""
            raise BadInput(
                f"{type(method).__name__} draws images from the whole training set: give the Trainer one DataLoader "
                f"over a data set that has __len__ and __getitem__, but found a "
                f"{type(kind).__name__}{several}{'; or ' if instead else ''}{instead}"
            )
        labels, index = _labels(loader)
        positions = torch.arange(len(labels))
        if isinstance(limited := getattr(loader.sampler, "indices", None), Sequence | Tensor):
            positions = torch.as_tensor(limited)
        positions = positions[labels[positions] != HIDDEN]
        device = method.device
        return cls(
            labels[positions].to(device),
            None if index is None else index[positions].to(device),
            lambda at, number=None: _as_in_training(method, loader, positions[at.cpu()].tolist(), number),
        )

    def another_of_its_class(self, batch: Batch, draws: Draws) -> Tensor:
        """Draw for each image of ``batch`` the position ``(n,)`` of another one of its class.

        It is the image itself only where its class has no other, or where the set has no sample indices to tell by.
        """
        order, ascending = self._by_class
        first, end = torch.searchsorted(ascending, batch.y), torch.searchsorted(ascending, batch.y, right=True)
        own = self._place_in_class(batch, first)
        others = end - first - (own >= 0).long()
        share = (draws.uniform(batch.x, shape=(len(batch.y), 1, 1, 1)).flatten().double() + 1) / 2
        drawn = (share * others).long().clamp(max=others - 1)
        place = torch.where(others > 0, drawn + ((own >= 0) & (drawn >= own)).long(), 0)
        return order[(first + place).clamp(max=len(self) - 1)]

    def _place_in_class(self, batch: Batch, first: Tensor) -> Tensor:
        """Tell which of its class's images each of ``batch`` is ``(n,)``, counted from 0; -1 where that is unknown."""
        if self.index is None:
            return torch.full_like(batch.y, -1)
        positions, ascending = self._by_index
        at = torch.searchsorted(ascending, batch.index).clamp(max=len(self) - 1)
        mine = positions[at]
        known = (ascending[at] == batch.index) & (self.labels[mine] == batch.y)
        return torch.where(known, self._place[mine] - first, -1)

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor]:
        """Positions in the order of their labels, and the labels in that order."""
        order = self.labels.argsort(stable=True)
        return order, self.labels[order]

    @cached_property
    def _by_index(self) -> tuple[Tensor, Tensor]:
        assert self.index is not None
        order = self.index.argsort()
        return order, self.index[order]

    @cached_property
    def _place(self) -> Tensor:
        """Where each position stands in the order of the labels."""
        order, _ = self._by_class
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return place


def image_shape(method: pl.LightningModule) -> tuple[int, int, int]:
    """Give channels, height and width of the images that the trainer of ``method`` trains on, before it begins to.

    For networks whose shape follows from the images: they are made in ``setup``, before weights are restored.
    """
    method.trainer.fit_loop.setup_data()  # else later in the same way
    loader: Any = method.trainer.train_dataloader
    with torch.random.fork_rng(devices=[]):
        positions = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        x = Batch.of(_read(loader, [0]) if positions else next(iter(loader))).x
    channels, height, width = x.shape[1:]
    return channels, height, width


def _labels(loader: DataLoader[Any]) -> tuple[Tensor, Tensor | None]:
    """Give label and sample index of every position of the loader's data set, without moving the global generator."""
    if (targets := _targets(loader.dataset)) is not None:
        return targets, None
    items: list[Batch] = []
    numbered = False
    with torch.random.fork_rng(devices=[]):  # an augmentation may draw; a resumed run must not know of it
        for positions in torch.arange(len(loader.dataset)).split(CHUNK):  # type: ignore[arg-type] # it has a length
            raw = _read(loader, positions.tolist())
            numbered = len(raw) > 2
            items.append(Batch.of(raw))
    labels, index = (torch.cat([part.cpu() for part in parts]) for parts in list(zip(*items, strict=True))[1:])
    return labels, index if numbered else None


def _targets(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    targets = getattr(dataset, "targets", None)
    return None if targets is None or len(targets) != len(dataset) else torch.as_tensor(targets)


def _read(loader: DataLoader[Any], positions: list[int]) -> Any:
    """Fetch items and put them together, as a worker of the loader does."""
    dataset: Any = loader.dataset
    together = hasattr(dataset, "__getitems__")
    collate: Callable[[Any], Any] = loader.collate_fn
    return collate(dataset.__getitems__(positions) if together else [dataset[at] for at in positions])


def _as_in_training(
    method: pl.LightningModule, loader: DataLoader[Any], positions: list[int], number: int | None = None
) -> Batch:
    """Do what Lightning does with a training batch, the data module's augmentation on the device included."""
    hooks: Any = getattr(method.trainer, "datamodule", None) or method
    with _in_pass(loader.sampler, number):
        raw = method.trainer.precision_plugin.convert_input(_read(loader, positions))
        raw = hooks.on_before_batch_transfer(raw, 0)
        return Batch.of(hooks.on_after_batch_transfer(method.transfer_batch_to_device(raw, method.device, 0), 0))


@contextmanager
def _in_pass(sampler: Any, number: int | None) -> Iterator[None]:
    """Let a sampler that counts epochs, by which the harness augments, be in another one inside the block."""
    present = getattr(sampler, "epoch", None)
    if number is None or present is None or not hasattr(sampler, "set_epoch"):
        yield
        return
    sampler.set_epoch(number)
    try:
        yield
    finally:
        sampler.set_epoch(present)
