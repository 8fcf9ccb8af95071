"""A data set made by hand out of arrays."""

import numpy as np
import pytest
import torch

from benchmark.data import ImageData, Splits, check, fixed_order
from benchmark.data.arrays import mean_and_std
from benchmark.errors import BadInput


def arrays(n: int, channels: int = 3, side: int = 8, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(n)
    return draw.integers(0, 256, (n, channels, side, side), dtype=np.uint8), np.arange(n) % classes


def make(**settings) -> Splits:
    return Splits.of("shapes", **({"train": arrays(60), "test": arrays(20)} | settings))


def test_arrays_become_a_set_that_trains():
    splits = make()
    check(splits)
    known = splits.description
    assert (known.name, known.classes, known.channels, known.size, known.moves.flips) == ("shapes", 4, 3, 8, False)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [54, 6, 20]
    batch = next(iter(ImageData(splits, batch_size=8, seed=0).train_dataloader()))
    assert (batch.x.shape, batch.x.dtype, batch.y.dtype) == ((8, 3, 8, 8), torch.float32, torch.int64)


def test_held_out_images_are_the_first_of_the_fixed_order_and_keep_their_numbers():
    images, labels = arrays(60)
    splits = make(held_out=7)
    order = np.random.RandomState(0).permutation(60)
    assert np.array_equal(order, fixed_order(60))
    assert splits.validation.index.tolist() == order[:7].tolist()
    assert splits.train.index.tolist() == order[7:].tolist()
    for part in (splits.train, splits.validation):
        assert np.array_equal(part.images.numpy(), images[part.index])
        assert np.array_equal(part.labels.numpy(), labels[part.index])
    assert splits.test.index.tolist() == list(range(20))


@pytest.mark.parametrize(("n", "expected"), [(2, 1), (9, 1), (60, 6), (20_000, 1_000)])
def test_a_tenth_is_held_out_but_never_more_than_a_thousand(n, expected):
    splits = make(
        train=arrays(n, channels=1, side=2, classes=2), test=arrays(4, channels=1, side=2, classes=2), classes=4
    )
    assert len(splits.validation) == expected


def test_validation_images_of_ones_own_are_numbered_behind_the_training_images():
    splits = make(validation=arrays(5))
    assert splits.train.index.tolist() == list(range(60))
    assert splits.validation.index.tolist() == list(range(60, 65))
    assert np.array_equal(splits.train.images.numpy(), arrays(60)[0])


def test_the_normalisation_is_that_of_the_images_trained_on():
    splits = make(held_out=10)
    pixels = splits.train.pixels().double()
    assert splits.description.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-7)
    assert splits.description.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-7)


def test_the_normalisation_counts_in_levels():
    images = torch.tensor([0, 4, 8, 4], dtype=torch.uint8).view(1, 1, 2, 2)
    (mean,), (std,) = mean_and_std(images, levels=16)
    assert (mean, std) == pytest.approx((0.25, 0.125**0.5 / 2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "form",
    [
        lambda images, labels: (torch.from_numpy(images), torch.from_numpy(labels).to(torch.uint8)),
        lambda images, labels: [images, labels.tolist()],
        lambda images, labels: (
            np.moveaxis(np.ascontiguousarray(np.moveaxis(images, 1, 3)), 3, 1),
            labels.astype("u8"),
        ),
        lambda images, labels: (np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape), labels[::-1][::-1]),
    ],
    ids=["tensors", "lists", "strided", "read-only"],
)
def test_tensors_lists_and_views_make_the_same_set(form):
    plain, other = make(), make(train=form(*arrays(60)), test=form(*arrays(20)))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(plain, part).images, getattr(other, part).images)
        assert torch.equal(getattr(plain, part).labels, getattr(other, part).labels)
    assert plain.description == other.description


def test_moves_are_made_as_the_set_allows():
    kinds = ("none", "crop4", "crop4+flip")
    modules = [ImageData(make(augmentation=kind), batch_size=4, seed=0, augment=True) for kind in kinds]
    assert [module.augments for module in modules] == [False, True, True]
    assert [bool(module._epoch_moves(0).mirror.any()) for module in modules] == [False, False, True]


IMAGES, LABELS = arrays(60)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"train": (IMAGES / 255, LABELS)}, "training images must be uint8, got float64: multiply pixels .* by 255"),
        ({"train": (IMAGES.astype(int), LABELS)}, "training images must be uint8, got int64: convert them"),
        (
            {"test": (IMAGES[:, 0], LABELS)},
            r"test images must have shape \(n, c, h, w\), got \(60, 8, 8\): .*\[:, None\]",
        ),
        ({"test": (IMAGES.reshape(60, -1), LABELS)}, r"must have shape \(n, c, h, w\), got \(60, 192\)"),
        (
            {"train": (np.moveaxis(IMAGES, 1, 3), LABELS)},
            r"must be square, .* \(60, 8, 8, 3\).*: move the channels forward",
        ),
        ({"train": (IMAGES[..., 1:], LABELS)}, r"must be square, got shape \(60, 3, 8, 7\).*: crop or pad"),
        (
            {"test": (IMAGES[..., 1:, 1:], LABELS)},
            r"test part of shapes must hold uint8 images of shape \(60, 3, 8, 8\)",
        ),
        ({"train": (IMAGES, LABELS[1:])}, "training images and labels must be as many, got 60 and 59"),
        ({"train": (IMAGES, LABELS / 2)}, "training labels must be whole numbers, got float64"),
        ({"train": (IMAGES, np.eye(60, dtype=int))}, r"one label per image; got \(60, 60\)"),
        ({"train": (IMAGES, ["cat"] * 60)}, "training labels must be a NumPy array or a tensor"),
        ({"test": (IMAGES, LABELS + 1)}, "test part of shapes must have labels from 0 to 3, found 1 to 4"),
        ({"train": (IMAGES, LABELS - 1), "classes": 4}, "labels from 0 to 3, found -1 to 2"),
        ({"train": (IMAGES, LABELS * 0)}, "shapes needs at least 2 classes, labelled from 0 on; got 1"),
        ({"train": IMAGES}, r"train is a pair \(images, labels\), got ndarray"),
        ({"train": (IMAGES[:0], LABELS[:0]), "validation": (IMAGES, LABELS)}, "shapes has no training images"),
        ({"train": (IMAGES[:1], LABELS[:1])}, "1 training images, of which 1 cannot be held out"),
        ({"held_out": 0}, "of which 0 cannot be held out"),
        ({"held_out": 60}, "of which 60 cannot be held out"),
        ({"held_out": 5, "validation": (IMAGES, LABELS)}, "give validation images, or held_out=5"),
        ({"validation": (IMAGES[:0], LABELS[:0])}, "validation part of shapes is empty"),
        (
            {"augmentation": "turn"},
            r"augmentation is one of none, .*, got 'turn'",
        ),
        ({"levels": 16}, "above its levels=16"),
        ({"train": (IMAGES * np.uint8([1, 0, 1])[:, None, None], LABELS)}, "channel 1 of shapes has one value"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        make(**settings)


@pytest.mark.parametrize("name", ["", "cifar10"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(BadInput, match="needs a name of its own"):
        Splits.of(name, train=arrays(60), test=arrays(20))
