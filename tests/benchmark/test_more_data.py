"""Fashion-MNIST, CIFAR-100 and SVHN from small files that lie as torchvision lays them."""

import gzip
import hashlib
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from benchmark.architectures import build
from benchmark.data import CorruptData, ImageData, MissingData, check, describe, description, idx, load, names, svhn
from benchmark.data import sources as cifar
from benchmark.data.augment import Style, crop_and_flip, draw_moves
from benchmark.errors import BadInput

NEW = ["cifar100", "fashion_mnist", "svhn", "svhn_extra"]
FIRST_FILE = {
    "cifar100": "cifar-100-python/train",
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "svhn": "train_32x32.mat",
    "svhn_extra": "train_32x32.mat",
}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def draw(*shape: int, below: int = 256) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, below, shape, dtype=np.uint8)


@pytest.fixture
def fashion_mnist(tmp_path, monkeypatch):
    """20 training and 10 test images, whose sums take the place of the published ones."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        images, labels = draw(n, 28, 28), draw(n, below=10)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBiii", 0, 8, 3, *images.shape) + images.tobytes()
        )
        content = struct.pack(">HBBi", 0, 8, 1, n) + labels.tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(content)
        monkeypatch.setitem(idx._COUNTS, part, n)
        monkeypatch.setitem(idx._FASHION_MNIST, f"FashionMNIST/raw/{part}-labels-idx1-ubyte", md5(content))
        whole = images.astype(int)
        monkeypatch.setitem(idx._FASHION_MNIST_TOTALS, part, (int(whole.sum()), int((whole**2).sum())))
    return tmp_path


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    contents = {"meta": {"fine_label_names": [f"class {number}" for number in range(100)]}}
    for part, n in (("train", 20), ("test", 10)):
        labels = draw(n, below=100).tolist()
        contents[part] = {"data": draw(n, 3072), "fine_labels": labels, "coarse_labels": [0] * n}
    sums = {}
    for file, content in contents.items():
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = md5((folder / file).read_bytes())
        monkeypatch.setitem(cifar._CIFAR100, f"cifar-100-python/{file}", sums[file])
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setitem(datasets.CIFAR100.meta, "md5", sums["meta"])
    return tmp_path


@pytest.fixture
def house_numbers(tmp_path, monkeypatch):
    """12 training, 8 extra and 5 test images, labelled 1 to 10 as the MATLAB files are."""
    for part, n in (("train", 12), ("extra", 8), ("test", 5)):
        file = tmp_path / f"{part}_32x32.mat"
        labels = (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None]
        savemat(file, {"X": draw(32, 32, 3, n), "y": labels}, do_compression=True)
        monkeypatch.setitem(svhn._MD5, file.name, md5(file.read_bytes()))
        url, name, _ = datasets.SVHN.split_list[part]
        monkeypatch.setitem(datasets.SVHN.split_list, part, [url, name, md5(file.read_bytes())])
    known = description._KNOWN["svhn_extra"]
    monkeypatch.setitem(description._KNOWN, "svhn_extra", replace(known, extra_from=12))
    return tmp_path


@pytest.fixture
def folder(request, name):
    """Hold the small files of the set called ``name``."""
    return request.getfixturevalue("house_numbers" if name.startswith("svhn") else name)


def small(name: str, root, **settings):
    return load(name, root, **({"validation_images": 3} | settings))


# Reading


REFERENCE = {
    "cifar100": lambda root: [datasets.CIFAR100(root, train=train) for train in (True, False)],
    "fashion_mnist": lambda root: [datasets.FashionMNIST(root, train=train) for train in (True, False)],
    "svhn": lambda root: [datasets.SVHN(root, split=split) for split in ("train", "test")],
}


@pytest.mark.parametrize("name", REFERENCE)
def test_images_labels_and_their_order_are_those_of_torchvision(name, folder):
    splits = small(name, folder)
    check(splits)
    train, test = REFERENCE[name](folder)
    assert len(splits.train) + len(splits.validation) == len(train)
    for part, reference in ((splits.train, train), (splits.validation, train), (splits.test, test)):
        for pixels, label, number in zip(part.images, part.labels, part.index, strict=True):
            image, expected = reference[int(number)]
            theirs = torch.from_numpy(np.array(image))
            assert torch.equal(pixels, theirs[None] if theirs.ndim == 2 else theirs.permute(2, 0, 1))
            assert label == expected


@pytest.mark.parametrize("name", NEW)
def test_the_first_of_the_fixed_order_are_held_out(name, folder):
    splits = small(name, folder)
    proper = 20 if name in ("cifar100", "fashion_mnist") else 12
    order = np.random.RandomState(0).permutation(proper).tolist()
    assert splits.validation.index.tolist() == order[:3]
    assert splits.train.index.tolist()[: proper - 3] == order[3:]
    assert small(name, folder, train_images=4).train.index.tolist() == order[3:7]


def test_the_house_number_0_is_class_0(house_numbers):
    test = small("svhn", house_numbers).test
    assert test.labels.tolist() == [1, 2, 3, 4, 5]
    train = load("svhn", house_numbers, validation_images=1)
    labels = dict(zip(train.train.index.tolist(), train.train.labels.tolist(), strict=True))
    assert [labels[number] for number in (9, 10)] == [0, 1]


def test_the_extra_images_come_behind_those_of_svhn_and_are_never_held_out(house_numbers):
    alone, both = small("svhn", house_numbers), small("svhn_extra", house_numbers)
    assert torch.equal(both.validation.images, alone.validation.images)
    assert torch.equal(both.test.images, alone.test.images)
    assert torch.equal(both.train.images[:9], alone.train.images)
    assert torch.equal(both.train.index[:9], alone.train.index)
    extra = datasets.SVHN(house_numbers, split="extra")
    assert sorted(both.train.index[9:].tolist()) == list(range(12, 20))
    for pixels, label, number in zip(both.train.images[9:], both.train.labels[9:], both.train.index[9:], strict=True):
        assert torch.equal(pixels, torch.from_numpy(extra.data[number - 12]))
        assert label == extra.labels[number - 12]
    assert both.train.images.dtype == torch.uint8
    assert both.train.images.is_contiguous()


def test_the_extra_file_is_wanted_only_by_the_set_that_has_it(house_numbers):
    (house_numbers / "extra_32x32.mat").unlink()
    small("svhn", house_numbers)
    with pytest.raises(MissingData, match=r"svhn_extra is not in .*: found no extra_32x32.mat"):
        small("svhn_extra", house_numbers)


@pytest.mark.filterwarnings("error")
def test_a_cache_of_earlier_torchvisions_is_not_read_in_place_of_the_files(fashion_mnist):
    processed = fashion_mnist / "FashionMNIST" / "processed"
    processed.mkdir()
    for file in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), processed / file)
    assert len(small("fashion_mnist", fashion_mnist).train) == 17


# Missing and damaged


@pytest.mark.parametrize("name", NEW)
def test_a_missing_set_says_where_it_looked_and_the_three_ways_on(name, tmp_path):
    with pytest.raises(MissingData) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {tmp_path}: found no {FIRST_FILE[name]}\n")
    for way in ("--data-root FOLDER", "--download", "atbench run quickstart"):
        assert way in message


@pytest.mark.parametrize("name", NEW)
def test_the_command_line_says_what_is_missing_and_ends_with_2(name, tmp_path, atbench, capsys):
    change = f"dataset.name={name}"
    network = "network.name=preact_resnet18"
    assert (
        atbench("run", "quickstart", "--set", change, network, "--data-root", tmp_path, "--output", tmp_path / "r") == 2
    )
    said = capsys.readouterr().err
    assert f"{name} is not in {tmp_path}" in said
    assert "Traceback" not in said


def files_of(name: str) -> list[str]:
    raw = [f"FashionMNIST/raw/{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return {
        "cifar100": ["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"],
        "fashion_mnist": [f"{file}-ubyte" for file in raw],
        "svhn": ["train_32x32.mat", "test_32x32.mat"],
        "svhn_extra": ["train_32x32.mat", "extra_32x32.mat", "test_32x32.mat"],
    }[name]


FILES = [(name, file) for name in NEW for file in files_of(name)]


@pytest.mark.parametrize(("name", "file"), FILES)
@pytest.mark.parametrize("damage", ["cut off", "one byte", "another file", "empty"])
def test_a_damaged_file_is_named_with_the_mend_and_an_absent_one_is_missing(name, file, damage, folder):
    path = folder / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    damaged = {"cut off": content[:-1], "one byte": content, "another file": b"<html>404</html>", "empty": b""}[damage]
    path.write_bytes(damaged)
    with pytest.raises(CorruptData) as caught:
        small(name, folder)
    message = str(caught.value)
    assert message.startswith(f"{name} is damaged: {path} ")
    assert "delete the file, then --download" in message
    assert not isinstance(caught.value, MissingData)
    path.unlink()
    with pytest.raises(MissingData, match=f"{name} is not in .*: found no {file}"):
        small(name, folder)


def test_the_images_of_mnist_are_not_those_of_fashion_mnist(fashion_mnist):
    file = fashion_mnist / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    other = struct.pack(">HBBiii", 0, 8, 3, 10, 28, 28) + bytes(7840)
    file.write_bytes(other)
    with pytest.raises(CorruptData, match=r"t10k-images-idx3-ubyte has pixels and squares .* \(0, 0\)"):
        small("fashion_mnist", fashion_mnist)
    file.write_bytes(struct.pack(">HBBiii", 0, 8, 3, 28, 28, 10) + bytes(7840))
    with pytest.raises(CorruptData, match=r"starts with 000008030000001c.* published file with 000008030000000a"):
        small("fashion_mnist", fashion_mnist)


def test_beside_their_archive_the_images_are_held_to_it(fashion_mnist, monkeypatch):
    file = fashion_mnist / "FashionMNIST/raw/train-images-idx3-ubyte"
    archive = file.with_name(f"{file.name}.gz")
    content = file.read_bytes()
    archive.write_bytes(gzip.compress(content))
    monkeypatch.setitem(idx._FASHION_MNIST_ARCHIVES, "train", md5(archive.read_bytes()))
    small("fashion_mnist", fashion_mnist)
    images = content[16:]
    file.write_bytes(content[:16] + images[784:] + images[:784])  # the totals stay
    with pytest.raises(CorruptData, match=r"ubyte is not what train-images-idx3-ubyte.gz holds"):
        small("fashion_mnist", fashion_mnist)
    file.write_bytes(content)
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(CorruptData, match=r"train-images-idx3-ubyte.gz has the MD5 sum"):
        small("fashion_mnist", fashion_mnist)


def test_the_published_totals_are_the_published_mean_and_deviation():
    for (total, squares), images, mean, std in (
        (idx._FASHION_MNIST_TOTALS["train"], 60_000, 0.2860405969887955, 0.35302424451492237),
        (idx._FASHION_MNIST_TOTALS["t10k"], 10_000, 0.28684928071228494, 0.35244415324743994),
    ):
        pixels = images * 28 * 28
        found = total / pixels / 255
        assert found == pytest.approx(mean, rel=1e-15)
        assert (squares / pixels / 255**2 - found**2) ** 0.5 == pytest.approx(std, rel=1e-14)
    assert describe("fashion_mnist").mean == (0.2860,)
    assert describe("fashion_mnist").std == (0.3530,)


@pytest.mark.parametrize("name", NEW)
def test_a_set_is_downloaded_only_when_asked_for(name, tmp_path, monkeypatch):
    def unreachable(self):
        raise OSError("the network is unreachable")

    for dataset in (datasets.CIFAR100, datasets.FashionMNIST, datasets.SVHN):
        monkeypatch.setattr(dataset, "download", unreachable)
    with pytest.raises(MissingData):
        load(name, tmp_path)
    with pytest.raises(
        BadInput, match=rf"{name} could not be downloaded to .*: the network is unreachable\n.*--data-root"
    ):
        load(name, tmp_path, download=True)


@pytest.mark.parametrize("name", NEW)
def test_what_is_there_is_not_downloaded_again(name, folder, monkeypatch):
    def refuse(self):
        raise AssertionError("nothing is missing")

    for dataset in (datasets.CIFAR100, datasets.FashionMNIST, datasets.SVHN):
        monkeypatch.setattr(dataset, "download", refuse)
    small(name, folder, download=True)


@pytest.mark.parametrize("name", ["svhn", "svhn_extra"])
def test_only_the_missing_file_of_svhn_is_downloaded(name, folder, monkeypatch):
    (folder / "test_32x32.mat").rename(folder / "kept")
    asked = []

    def restore(self):
        asked.append(self.split)
        (folder / "kept").rename(folder / "test_32x32.mat")

    monkeypatch.setattr(datasets.SVHN, "download", restore)
    small(name, folder, download=True)
    assert asked == ["test"]


# The checksums themselves


def test_the_sums_are_those_of_torchvision():
    both = [*datasets.CIFAR100.train_list, *datasets.CIFAR100.test_list]
    meta = datasets.CIFAR100.meta
    assert {f"cifar-100-python/{f}": s for f, s in [*both, (meta["filename"], meta["md5"])]} == cifar._CIFAR100
    assert {file: total for _, file, total in datasets.SVHN.split_list.values()} == svhn._MD5
    archives = dict(datasets.FashionMNIST.resources)
    assert {p: archives[f"{p}-images-idx3-ubyte.gz"] for p in ("train", "t10k")} == idx._FASHION_MNIST_ARCHIVES


# What may be done to the images


def test_what_is_known_of_each_set():
    known = {name: describe(name) for name in NEW}
    assert [known[name].classes for name in NEW] == [100, 10, 10, 10]
    assert [known[name].augmentation for name in NEW] == ["crop4+flip", "none", "crop4", "crop4"]
    assert [known[name].extra_from for name in NEW] == [None, None, None, 73_257]
    assert known["svhn_extra"].mean == known["svhn"].mean


@pytest.mark.parametrize("name", NEW)
def test_house_numbers_are_cropped_and_never_mirrored(name, folder):
    module = ImageData(small(name, folder), batch_size=4, seed=0, augment=True)
    assert module.augments == (name != "fashion_mnist")
    moves = module._epoch_moves(0)
    assert bool(moves.mirror.any()) == (name == "cifar100")
    assert (len(set(moves.top.tolist())) > 1) == module.augments


def test_without_mirroring_the_crops_are_the_same():
    both, crops = (draw_moves(500, seed=0, epoch=1, style=Style(flips=flips)) for flips in (True, False))
    assert torch.equal(both.top, crops.top)
    assert torch.equal(both.left, crops.left)
    assert both.mirror.any()
    assert not crops.mirror.any()
    ramp = torch.arange(32.0).expand(500, 1, 32, 32)
    steps = crop_and_flip(ramp + 1, crops).diff(dim=3)[:, :, 4:28, 4:27]  # rows and columns without padding
    assert (steps == 1).all()  # brightness still rises to the right


# Networks


@pytest.mark.parametrize("network", ["digits_cnn", "mnist_small", "small_cnn", "resnet8", "preact_resnet18"])
@pytest.mark.parametrize("name", names())
def test_every_set_has_the_networks_that_its_size_allows(name, network):
    known = describe(name)
    shape = {"classes": known.classes, "channels": known.channels, "size": known.size}
    if (name, network) == ("digits", "small_cnn"):
        with pytest.raises(BadInput, match="at least 16x16 pixels, got 8x8: take digits_cnn"):
            build(network, **shape)
        return
    built = build(network, **shape, mean=known.mean, std=known.std).eval()
    with torch.no_grad():
        assert built(torch.rand(2, known.channels, known.size, known.size)).shape == (2, known.classes)
