"""Images of the training set that are not in the batch: found, numbered, augmented and drawn as they should be."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from attacks import BadInput, ThreatModel
from benchmark.data import HiddenLabels, ImageData, Splits
from methods import TLA, Natural
from methods.base import Batch
from methods.draws import Draws
from methods.training_set import TrainingSet
from tests.methods.tools import EPSILON, images, loader, network, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)


class Looking(Natural):
    """Takes the trainer's training set when training begins, and says what each step's batch looks like in it."""

    def on_train_start(self):
        self.seen = TrainingSet.of_trainer(self)
        self.compared = []

    def training_loss(self, batch):
        if self.seen.index is not None:
            at = (self.seen.index[None] == batch.index[:, None]).long().argmax(1)
            again = self.seen.read(at)
            self.compared.append(torch.equal(again.x, batch.x) and torch.equal(again.y, batch.y))
        return super().training_loss(batch)


def look(data, *, epochs=1, **settings):
    """The training set that a trainer on ``data`` gives."""
    method = Looking(network(), THREAT)
    run = trainer(epochs, **settings)
    if isinstance(data, pl.LightningDataModule):
        run.fit(method, datamodule=data)
    else:
        run.fit(method, data)
    return method.seen, method


def splits(augmentation="crop4+flip", count=30):
    def part(seed, count):
        x, y = images(count, seed)
        return (255 * x).round().to(torch.uint8), y

    return Splits.of(
        "my_patches", train=part(1, count), validation=part(2, 6), test=part(3, 6), augmentation=augmentation
    )


def a_set(labels, index=None):
    return TrainingSet(torch.tensor(labels), index, lambda at: at)


def drawn(whole, y, index, times=200):
    draws, batch = Draws(0), Batch(torch.zeros(len(y), 1, 8, 8), torch.tensor(y), torch.tensor(index))
    return torch.stack([whole.another_of_its_class(batch, draws) for _ in range(times)])


@pytest.mark.parametrize("indexed", [True, False])
def test_pairs_and_triples_of_an_ordinary_loader_are_read_by_position(indexed):
    whole, _ = look(loader(indexed=indexed))
    x, y = images()
    assert torch.equal(whole.labels, y)
    assert (whole.index is not None) == indexed
    at = torch.tensor([5, 0, 5])
    assert torch.equal(whole.read(at).x, x[at])
    assert torch.equal(whole.read(at).y, y[at])


@pytest.mark.parametrize("augmentation", ["none", "crop4+flip"])
def test_images_of_the_harness_are_read_with_the_augmentation_that_the_batch_has(augmentation):
    data = ImageData(splits(augmentation), batch_size=8, seed=0)
    whole, method = look(data, epochs=2, use_distributed_sampler=False)
    assert len(whole) == 30
    assert method.compared == [True] * 8


def test_images_whose_label_is_hidden_are_left_out():
    plain = splits("crop4")
    hidden = HiddenLabels.of(plain.train, plain.train.index[::3].tolist())
    data = ImageData(plain, batch_size=8, seed=0, hidden=hidden)
    whole, _ = look(data, use_distributed_sampler=False)
    assert torch.equal(whole.index, plain.train.index[::3])
    assert torch.equal(whole.labels, plain.train.labels[::3])
    batch = whole.read(torch.tensor([1, 4]))
    assert torch.equal(batch.index, whole.index[[1, 4]])
    assert torch.equal(batch.y, whole.labels[[1, 4]])


def test_a_sampler_that_names_its_indices_limits_the_set():
    data = TensorDataset(*images(), torch.arange(24))
    whole, _ = look(DataLoader(data, batch_size=4, sampler=SubsetRandomSampler([3, 7, 9, 20])))
    assert whole.index.tolist() == [3, 7, 9, 20]
    assert torch.equal(whole.read(torch.tensor([2])).x[0], images()[0][9])


class WithTargets(Dataset):
    """As torchvision's sets are; reading an item is dear."""

    def __init__(self):
        self.x, y = images()
        self.targets = y.tolist()
        self.read = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, at):
        self.read += 1
        return self.x[at], self.targets[at]


@pytest.mark.parametrize("part", [None, [4, 2, 9, 11]])
def test_labels_are_taken_from_targets_without_reading_the_images(part):
    data = WithTargets()
    whole, _ = look(DataLoader(data if part is None else Subset(data, part), batch_size=4))
    assert data.read == (24 if part is None else 4)  # for the one epoch
    assert whole.labels.tolist() == [data.targets[at] for at in (range(24) if part is None else part)]
    assert whole.index is None


class Noisy(TensorDataset):
    """Augments on the CPU, with torch's global generator."""

    def __getitem__(self, at):
        x, y = super().__getitem__(at)
        return x + 0.01 * torch.randn_like(x), y


def test_reading_the_labels_does_not_move_the_global_generator():
    data = Noisy(*images())
    method = Natural(network(), THREAT)
    run = trainer(1, limit_train_batches=1)
    run.fit(method, DataLoader(data, batch_size=4))
    before = torch.get_rng_state()
    whole = TrainingSet.of_trainer(method)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(whole.labels, images()[1])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*images(), strict=True))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (DataLoader(Stream(), batch_size=4), "but found a Stream"),
        ({"a": loader(), "b": loader()}, "but found a dict of 2 loaders"),
    ],
)
def test_data_without_positions_are_refused_in_one_sentence(data, found):
    method = TLA(network(), THREAT)
    with pytest.raises(
        BadInput, match=f"TLA draws images from the whole training set: .*, {found}; or set pool_size to 0"
    ):
        trainer(max_steps=2).fit(method, data)


def test_another_image_of_the_class_is_any_but_the_image_itself():
    whole = a_set([0, 1, 0, 2, 0, 1], torch.tensor([10, 11, 12, 13, 14, 15]))
    found = drawn(whole, y=[0, 1, 2, 0], index=[12, 11, 13, 10])
    assert set(found[:, 0].tolist()) == {0, 4}
    assert set(found[:, 1].tolist()) == {5}
    assert set(found[:, 2].tolist()) == {3}  # its class has no other
    assert set(found[:, 3].tolist()) == {2, 4}
    share = (found[:, 0] == 0).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.15)


def test_without_sample_indices_any_image_of_the_class_is_drawn():
    found = drawn(a_set([0, 1, 0, 2, 0]), y=[0, 2], index=[0, 1])
    assert set(found[:, 0].tolist()) == {0, 2, 4}
    assert set(found[:, 1].tolist()) == {3}


def test_an_image_that_is_not_in_the_set_gets_any_of_its_class():
    whole = a_set([0, 1, 0], torch.tensor([10, 11, 12]))
    assert set(drawn(whole, y=[0], index=[99])[:, 0].tolist()) == {0, 2}


def test_a_batch_can_stand_in_for_the_set():
    x, y = images()
    batch = Batch.of((x, y))
    whole = TrainingSet.of_batch(batch)
    at = whole.another_of_its_class(batch, Draws(0))
    assert (y[at] == y).all()
    assert (at != batch.index).all()
    assert torch.equal(whole.read(at).x, x[at])
