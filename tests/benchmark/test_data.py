import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn import functional as F

from benchmark.data import (
    CorruptData,
    Description,
    ImageData,
    Images,
    MissingData,
    Splits,
    TensorData,
    check,
    describe,
    load,
    names,
    sources,
)
from benchmark.data.augment import Moves, Style, crop_and_flip, draw_moves
from benchmark.data.sampler import EpochSampler
from benchmark.errors import BadInput

COLOUR = Description("tiny", "noise", 4, 3, 8, (0.5,) * 3, (0.3,) * 3, augmentation="crop4+flip")


@pytest.fixture
def real():
    folder = os.environ.get("ATBENCH_DATA")
    if not folder:
        pytest.skip("needs real images: set ATBENCH_DATA to a folder that torchvision reads")
    return Path(folder)


def noise(n: int, first: int = 0) -> Images:
    draw = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 4, torch.arange(first, first + n))


def tiny() -> Splits:
    return Splits(COLOUR, train=noise(37, first=5), validation=noise(5), test=noise(6))


# What a description says


def test_every_set_describes_itself_in_one_line():
    assert names() == ["cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "svhn", "svhn_extra"]
    for name in names():
        description = describe(name)
        assert (description.name, len(description.mean), len(description.std)) == (name, *[description.channels] * 2)
        assert description.summary
        assert "\n" not in description.summary


def test_only_photographs_may_be_mirrored():
    assert [name for name in names() if describe(name).moves.flips] == ["cifar10", "cifar100"]


def test_a_misspelt_set_suggests_the_nearest():
    with pytest.raises(BadInput, match="no data set is called 'cifar1O'; did you mean cifar10\\?"):
        load("cifar1O")


# Digits


@pytest.mark.parametrize("fold", range(5))
def test_each_fold_of_digits_divides_all_images(fold):
    splits = load("digits", fold=fold)
    check(splits)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1197, 200, 400]
    numbers = torch.cat([splits.train.index, splits.validation.index, splits.test.index])
    assert torch.equal(numbers.sort().values, torch.arange(1797))


def test_the_folds_test_every_digit_and_share_few():
    tested = torch.cat([load("digits", fold=fold).test.index for fold in range(5)])
    times = tested.bincount(minlength=1797)
    assert (int(times.min()), int(times.max())) == (1, 2)
    assert int((times == 2).sum()) == 5 * 400 - 1797


def test_digits_are_integers_whose_index_finds_them_in_the_whole_set():
    whole, test = sources.digits(), load("digits", fold=3).test
    assert test.images.dtype == torch.uint8
    assert torch.equal(whole.images[test.index], test.images)
    assert torch.equal(whole.labels[test.index], test.labels)
    pixels = whole.pixels()
    assert (pixels.min(), pixels.max(), whole.levels) == (0, 1, 16)


@pytest.mark.parametrize("fold", range(5))
def test_the_normalisation_of_digits_fits_every_folds_training_images(fold):
    pixels, description = load("digits", fold=fold).train.pixels(), describe("digits")
    assert pixels.mean().item() == pytest.approx(description.mean[0], abs=5e-4)
    assert pixels.std(correction=0).item() == pytest.approx(description.std[0], abs=5e-4)


def test_the_split_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    first, second = load("digits"), load("digits")
    assert torch.equal(first.train.index, second.train.index)
    assert torch.equal(before, torch.get_rng_state())


def test_a_subset_keeps_the_held_out_images():
    whole, subset = load("digits"), load("digits", train_images=100, validation_images=200)
    assert torch.equal(subset.validation.index, whole.validation.index)
    assert torch.equal(subset.train.index, whole.train.index[:100])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fold": 5}, "digits has 5 fold.* got fold 5"),
        ({"train_images": 1198}, "1397 images .* asked for 1198 and 200"),
        ({"train_images": 0}, "each must be at least 1"),
        ({"validation_images": 1397}, "asked for 0 and 1397"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        load("digits", **arguments)


# Real images


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cifar10", (49_000, 1_000, 10_000)),
        ("cifar100", (49_000, 1_000, 10_000)),
        ("fashion_mnist", (55_000, 5_000, 10_000)),
        ("mnist", (55_000, 5_000, 10_000)),
        ("svhn", (72_257, 1_000, 26_032)),
        ("svhn_extra", (603_388, 1_000, 26_032)),
    ],
)
def test_the_published_sets_have_the_protocols_sizes_and_known_statistics(real, name, sizes):
    try:
        splits, description = load(name, real), describe(name)
    except MissingData as error:
        pytest.skip(str(error).splitlines()[0])
    check(splits)
    parts = (splits.train, splits.validation, splits.test)
    assert tuple(len(part) for part in parts) == sizes
    assert all((part.levels, int(part.images.max())) == (255, 255) for part in parts)
    proper = splits.train.index < (description.extra_from or sum(sizes))
    # The constants are those of the training set, held-out images and all, but without the extra ones.
    whole = torch.cat([splits.train.images[proper], splits.validation.images])
    for channel, (mean, std) in enumerate(zip(description.mean, description.std, strict=True)):
        counts = whole[:, channel].flatten().bincount(minlength=256).double()
        level = torch.arange(256, dtype=torch.float64) / 255
        found = (counts * level).sum() / counts.sum()
        spread = ((counts * (level - found) ** 2).sum() / counts.sum()).sqrt()
        assert (found.item(), spread.item()) == pytest.approx((mean, std), abs=6e-5)
    numbers = torch.cat([splits.train.index, splits.validation.index])
    assert torch.equal(numbers.sort().values, torch.arange(sum(sizes[:2])))


def test_images_are_exactly_those_of_torchvision(real):
    from torchvision.datasets import CIFAR10
    from torchvision.transforms.functional import to_tensor

    reference, found = CIFAR10(real, train=True), load("cifar10", real, train_images=10_000).train
    x, y, index = TensorData(found).__getitems__([0, 17, 9_999])
    for pixels, label, number in zip(x, y, index, strict=True):
        image, expected = reference[int(number)]
        assert torch.equal(pixels, to_tensor(image))
        assert label == expected


def test_mnist_is_exactly_that_of_torchvision(real):
    from torchvision.datasets import MNIST

    splits = load("mnist", real)
    for part, reference in ((splits.train, MNIST(real, train=True)), (splits.test, MNIST(real, train=False))):
        assert torch.equal(part.images, reference.data[part.index, None])
        assert torch.equal(part.labels, reference.targets[part.index])


def test_a_truncated_file_is_damaged_and_an_absent_one_missing(real, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    shutil.copytree(real / "MNIST" / "raw", folder)
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(CorruptData, match=r"mnist is damaged: .*t10k-labels-idx1-ubyte has the MD5 sum"):
        load("mnist", tmp_path)
    labels.unlink()
    with pytest.raises(MissingData, match="found no MNIST/raw/t10k-labels-idx1-ubyte"):
        load("mnist", tmp_path)


# Missing, damaged, downloaded


def test_a_missing_set_says_where_it_looked_and_the_three_ways_on(tmp_path):
    with pytest.raises(MissingData) as caught:
        load("cifar10", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"cifar10 is not in {tmp_path}: found no cifar-10-batches-py/data_batch_1")
    for way in ("--data-root FOLDER", "--download", "atbench run quickstart"):
        assert way in message
    assert isinstance(caught.value, BadInput)
    assert isinstance(caught.value, FileNotFoundError)


def test_without_a_root_the_environment_says_where_to_look(tmp_path, monkeypatch):
    monkeypatch.setenv("ATBENCH_DATA", str(tmp_path / "here"))
    with pytest.raises(MissingData, match=str(tmp_path / "here")):
        load("mnist")


def test_a_damaged_file_is_named_with_the_mend(tmp_path):
    for file in sources._CIFAR10:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"not a pickle")
    with pytest.raises(CorruptData, match=r"damaged: .*data_batch_1 has the MD5 sum .*\n.*\n.*delete the file"):
        load("cifar10", tmp_path)


def test_a_set_is_downloaded_only_when_asked_for(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def unreachable(self):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(MNIST, "download", unreachable)
    with pytest.raises(MissingData):
        load("mnist", tmp_path)
    with pytest.raises(
        BadInput, match=r"mnist could not be downloaded to .*: the network is unreachable\n.*--data-root"
    ):
        load("mnist", tmp_path, download=True)


# A user's own images


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("train", {"labels": torch.arange(37)}, "labels from 0 to 3, found 0 to 36: renumber"),
        (
            "test",
            {"labels": torch.full((6,), -1)},
            "the test part of tiny must have labels from 0 to 3, found -1 to -1",
        ),
        ("test", {"labels": torch.zeros(6)}, r"int64 labels \(n,\), got torch.float32"),
        ("test", {"images": torch.zeros(6, 3, 8, 9, dtype=torch.uint8)}, r"shape \(6, 3, 8, 8\).* \(6, 3, 8, 9\)"),
        ("validation", {"images": torch.rand(5, 3, 8, 8)}, "must hold uint8 images .* got torch.float32"),
        ("validation", {"index": torch.zeros(5, dtype=torch.int64)}, "without repeats"),
        ("validation", {"index": torch.arange(4, 9)}, "share 4 images, such as index 5"),
        ("train", {"levels": 16}, "above its levels=16"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_sentence(part, change, sentence):
    splits = tiny()
    wrong = replace(splits, **{part: replace(getattr(splits, part), **change)})
    with pytest.raises(BadInput, match=sentence):
        ImageData(wrong, batch_size=4, seed=0)


def test_an_empty_part_is_refused():
    splits = tiny()
    with pytest.raises(BadInput, match="the train part of tiny is empty"):
        check(replace(splits, train=splits.train.take(torch.arange(0))))


# Batches


def test_a_batch_holds_pixels_labels_and_numbers():
    images = noise(9, first=100)
    x, y, index = TensorData(images).__getitems__([8, 0, 3])
    assert (x.shape, x.dtype, y.dtype, index.dtype) == ((3, 3, 8, 8), torch.float32, torch.int64, torch.int64)
    assert index.tolist() == [108, 100, 103]
    assert torch.equal(x * 255, images.images[[8, 0, 3]].float())
    single = TensorData(images)[3]
    assert torch.equal(single.x, x[2])
    assert single.index == 103


@given(length=st.integers(1, 60), ranks=st.integers(1, 9), epoch=st.integers(0, 5))
def test_the_ranks_take_equal_shares_that_cover_an_epoch(length, ranks, epoch):
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(length, seed=1, rank=rank, ranks=ranks)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert {position for share in shares for position in share} == set(range(length))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert order(0, 3) == order(0, 3)
    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4  # seed + epoch as a key would give three


@given(data=st.data(), n=st.integers(1, 5), side=st.integers(1, 9))
def test_a_moved_image_is_the_crop_that_was_asked_for(data, n, side):
    draws = [data.draw(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans())) for _ in range(n)]
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))
    moved = crop_and_flip(x, Moves(*(torch.tensor(column) for column in zip(*draws, strict=True))))
    for image, result, (top, left, mirror) in zip(x, moved, draws, strict=True):
        crop = F.pad(image, (4, 4, 4, 4))[:, top : top + side, left : left + side]
        assert torch.equal(result, crop.flip(2) if mirror else crop)


def test_moves_belong_to_the_image_and_cover_their_range():
    moves = draw_moves(5_000, seed=0, epoch=2)
    assert set(moves.top.tolist()) == set(moves.left.tolist()) == set(range(9))
    assert 0.45 < moves.mirror.float().mean() < 0.55
    again = draw_moves(5_000, seed=0, epoch=2).of(torch.tensor([7, 3]))
    assert again.top.tolist() == moves.top[[7, 3]].tolist()
    assert not torch.equal(moves.top, draw_moves(5_000, seed=0, epoch=3).top)


# Under Lightning


class Recorder(pl.LightningModule):
    """Keep each training batch it sees, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 8 * 8, 4)
        self.seen: dict[int, list] = {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).append((batch.x.clone(), batch.index.clone()))
        return F.cross_entropy(self.layer(batch.x.flatten(1)), batch.y)

    def validation_step(self, batch, _):
        self.validated = batch
        return self.layer(batch.x.flatten(1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path, epochs: int, data: ImageData, resume: Path | None = None) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[ModelCheckpoint(folder, save_last=True)],
    )
    trainer.fit(recorder, data, ckpt_path=resume)
    return recorder


def data(**settings) -> ImageData:
    return ImageData(tiny(), **({"batch_size": 8, "seed": 0, "augment": True} | settings))


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning.*")
def test_a_resumed_run_sees_the_epochs_of_an_undisturbed_one(tmp_path):
    whole = train(tmp_path / "whole", 3, data())
    train(tmp_path / "part", 2, data())
    resumed = train(tmp_path / "part", 3, data(), resume=tmp_path / "part" / "last.ckpt")
    assert set(resumed.seen) == {2}
    for (x, index), (other_x, other_index) in zip(whole.seen[2], resumed.seen[2], strict=True):
        assert torch.equal(index, other_index)
        assert torch.equal(x, other_x)
    orders = [torch.cat([index for _, index in batches]) for batches in whole.seen.values()]
    assert all(torch.equal(order.sort().values, torch.arange(5, 42)) for order in orders)  # drop_last is off
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning.*")
def test_only_training_images_are_moved_and_each_by_its_own_draw(tmp_path):
    module, splits = data(), tiny()
    recorder = train(tmp_path, 1, module)
    moves = draw_moves(42, seed=0, epoch=0)
    for x, index in recorder.seen[0]:
        original = splits.train.take(index - 5).pixels()
        assert torch.equal(x, crop_and_flip(original, moves.of(index)))
    assert torch.equal(recorder.validated.x, splits.validation.pixels())
    assert recorder.validated.index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning.*")
def test_images_stay_as_they_are_where_augmentation_is_off(tmp_path):
    recorder = train(tmp_path, 1, data(augment=False))
    x, index = recorder.seen[0][0]
    assert torch.equal(x, tiny().train.take(index - 5).pixels())


def test_sets_that_allow_no_augmentation_are_never_augmented():
    assert not ImageData(load("digits"), batch_size=64, seed=0, augment=True).augments


def test_loading_an_epoch_leaves_the_global_generator_alone():
    module = data()
    before = torch.get_rng_state()
    batches = [batch for loader in (module.train_dataloader(), module.val_dataloader()) for batch in loader]
    assert sum(len(batch.y) for batch in batches) == 37 + 5
    assert torch.equal(before, torch.get_rng_state())


def test_test_images_come_in_order():
    numbers = torch.cat([batch.index for batch in data().test_dataloader()])
    assert numbers.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("name", "padding", "reflect"),
    [("crop2+flip", 2, False), ("crop4-reflect+flip", 4, True), ("crop4", 4, False), ("flip", 0, False)],
)
def test_a_recipe_may_move_images_in_another_way(name, padding, reflect):
    style = replace(COLOUR, augmentation=name).moves
    assert style == Style(padding=padding, reflect=reflect, flips="flip" in name)
    moves = draw_moves(3_000, seed=0, epoch=0, style=style)
    assert (int(moves.top.min()), int(moves.top.max())) == (0, 2 * padding)
    x = torch.rand(1, 3, 8, 8)
    corner = Moves(*(torch.tensor([value]) for value in (0, 0, False)), style)
    moved = crop_and_flip(x, corner)
    assert torch.equal(moved[:, :, padding:, padding:], x[:, :, : 8 - padding, : 8 - padding])
    edge = x[:, :, 1 : padding + 1, : 8 - padding].flip(2) if reflect else torch.zeros(1, 3, padding, 8 - padding)
    assert torch.equal(moved[:, :, :padding, padding:], edge)


def test_a_suites_augmentation_is_taken_before_the_data_sets_own():
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 4
    splits = Splits.of("tiny", train=(pixels[:8], labels[:8]), test=(pixels[8:], labels[8:]), held_out=2)
    for augment, expected in ((True, False), (False, False), ("crop2+flip", True)):
        assert ImageData(splits, batch_size=4, seed=0, augment=augment).augments == expected
