"""Unlabelled images beside those whose labels are hidden: from where they come, and that nobody learns too much."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmark import suite
from benchmark.data import HiddenLabels, ImageData, describe, extra, load
from benchmark.data.hidden_labels import choose_labelled
from benchmark.data.unlabelled import Unlabelled, add
from benchmark.errors import BadInput
from benchmark.experiment import plan
from benchmark.label_hiding import hide
from benchmark.report.summary import summarise
from benchmark.report.table import readable_leaderboard
from benchmark.training import train
from methods.unlabelled import HIDDEN
from tests.benchmark.make_report import radii, write_card, write_evidence, write_suite
from tests.benchmark.test_hidden_labels import served

SMALL = {
    "recipe.epochs": 2,
    "dataset.train_images": 96,
    "dataset.validation_images": 30,
    "dataset.labels": 30,
    "inner_steps": 1,
    "methods": {"uat": None},
}
DIGITS = describe("digits")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def experiment(**changes):
    return plan(suite.load("quickstart", SMALL | {key.replace("__", "."): value for key, value in changes.items()}))[0]


@pytest.fixture
def archive(tmp_path):
    """40 grey images, half of them with a pseudo-label."""
    path = tmp_path / "pool.npz"
    np.savez(path, images=draw(40, 8, 8), pseudo_labels=np.where(np.arange(40) < 20, np.arange(40) % 10, HIDDEN))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three grey images, one in a folder of its own; one has a pseudo-label."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    for name, pixels in zip(("b.png", "a.PNG", "more/c.bmp"), draw(3, 8, 8), strict=True):
        Image.fromarray(pixels).save(path / name)
    (path / "pseudo_labels.csv").write_text("file,label,sureness\nmore/c.bmp,7,0.9\n")
    (path / "notes.txt").write_text("not an image")
    return path


# Reading


def test_a_folder_gives_its_images_in_the_order_of_their_names_with_the_labels_of_its_table(folder):
    found = extra.read(str(folder), DIGITS)
    assert found.images.numpy().tolist() == draw(3, 8, 8)[[1, 0, 2]][:, None].tolist()
    assert found.pseudo_labels.tolist() == [HIDDEN, HIDDEN, 7]
    (folder / "pseudo_labels.csv").unlink()
    assert extra._folder(folder, 1).pseudo_labels.tolist() == [HIDDEN] * 3


def test_images_of_a_folder_are_made_grey_or_coloured_as_the_set_is(folder):
    assert extra._folder(folder, 3).images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize("shape", [(4, 32, 32, 3), (4, 3, 32, 32)])
def test_an_archive_may_have_its_channels_first_or_last(shape, tmp_path):
    images = draw(*shape)
    np.savez(tmp_path / "x.npz", images=images)
    found = extra.read(str(tmp_path / "x.npz"), describe("cifar10"))
    expected = images if shape[1] == 3 else images.transpose(0, 3, 1, 2)
    assert torch.equal(found.images, torch.from_numpy(np.ascontiguousarray(expected)))
    assert (found.pseudo_labels == HIDDEN).all()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"pictures": draw(3, 8, 8)}, "must hold 'images', and may hold 'pseudo_labels', but found pictures"),
        ({"images": draw(3, 8, 8) / 255}, r"uint8 images from 0 to 255, .* found float64 of shape \(3, 8, 8\)"),
        ({"images": draw(0, 8, 8)}, "at least one"),
        ({"images": draw(3, 9, 9)}, r"like those of digits, 1 channel\(s\) of 8x8, but found shape \(3, 1, 9, 9\)"),
        ({"images": draw(3, 8, 8), "pseudo_labels": np.arange(2)}, "as many pseudo-labels as images, .* 2 and 3"),
        (
            {"images": draw(3, 8, 8), "pseudo_labels": np.arange(3) + 8},
            "from 0 to 9, or -1 for none, but found 8 to 10",
        ),
        ({"images": draw(3, 8, 8), "pseudo_labels": np.ones(3)}, "pseudo_labels must be whole numbers"),
    ],
)
def test_an_archive_that_is_no_pool_is_refused(content, sentence, tmp_path):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(BadInput, match=sentence):
        extra.read(str(tmp_path / "x.npz"), DIGITS)


def test_a_path_that_is_no_pool_is_refused(tmp_path, folder):
    with pytest.raises(
        BadInput, match=r"a folder of images, an .npz file or one of cifar10, .* but there is no /nowhere"
    ):
        extra.read("/nowhere", DIGITS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"must hold images .* but found none"):
        extra.read(str(tmp_path / "empty"), DIGITS)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(BadInput, match=r"cannot be read as an .npz file"):
        extra.read(str(tmp_path / "x.npz"), DIGITS)
    (folder / "pseudo_labels.csv").write_text("file,label\nz.png,1\n")
    with pytest.raises(BadInput, match=r"names 'z.png', which is not among the images"):
        extra.read(str(folder), DIGITS)
    (folder / "pseudo_labels.csv").write_text("file,class\nb.png,1\n")
    with pytest.raises(BadInput, match=r"must have the columns file and label, but found file, class"):
        extra._folder(folder, 1)
    (folder / "pseudo_labels.csv").write_text("file,label\nb.png,cat\n")
    with pytest.raises(BadInput, match=r"must give whole numbers, but found 'cat' for b.png"):
        extra._folder(folder, 1)
    Image.fromarray(draw(9, 8)).save(folder / "d.png")
    with pytest.raises(BadInput, match=r"images of one size, but a.PNG has 8x8, .*d.png 8x9"):
        extra._folder(folder, 1)
    (folder / "a.PNG").write_bytes(b"half a picture")
    with pytest.raises(BadInput, match=r"a.PNG cannot be read as an image"):
        extra._folder(folder, 1)


# What it does to the pools


def hidden_digits(choice, *, seed=0, train_images=96, **settings):
    splits = load("digits", train_images=train_images)
    labelled = choose_labelled(splits.train.index, splits.train.labels, 30, classes=10, seed=seed)
    others = {"whole": lambda: load("digits").train, "other": lambda name: load(name).train}
    return splits, add(choice, splits, HiddenLabels.of(splits.train, labelled), seed=seed, **(others | settings))


def test_extra_images_are_numbered_behind_the_set_show_no_label_and_make_no_epoch_longer(archive):
    splits, hidden = hidden_digits(Unlabelled(extra=str(archive)))
    assert (len(hidden.train), hidden.images, len(hidden.unlabelled)) == (96 + 40, 96, 66 + 40)
    assert hidden.train.labels[96:].tolist() == [HIDDEN] * 40
    assert hidden.train.index[96:].tolist() == list(range(1797, 1797 + 40))  # the last digit has the number 1796
    assert hidden.train.images.max() <= 16
    data = ImageData(splits, batch_size=32, seed=0, hidden=hidden, labelled_rows=lambda size, labels, images: size // 2)
    batches = served(data, epochs=20)
    assert len(batches) == 20 * 3  # the ceiling of 96 / 32
    assert len(data.splits.train) == 96
    seen = {image: y for index, labels in batches for image, y in zip(index, labels, strict=True)}
    assert {image for image in seen if image >= 1797} == set(range(1797, 1837))
    assert {seen[image] for image in range(1797, 1837)} == {HIDDEN}


def test_brightness_is_brought_to_the_levels_of_the_set(archive):
    _, hidden = hidden_digits(Unlabelled(extra=str(archive)))
    expected = np.rint(draw(40, 8, 8)[:, None] * 16.0 / 255)
    assert hidden.train.images[96:].numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_unlabelled_images_may_come_from_elsewhere(share, archive):
    _, hidden = hidden_digits(Unlabelled(extra=str(archive), share=share))
    foreign = len(hidden.train) - 96
    assert foreign / len(hidden.unlabelled) == pytest.approx(share, abs=0.01)
    if share:
        _, other = hidden_digits(Unlabelled(extra=str(archive), share=share), seed=1)
        assert not torch.equal(hidden.train.images[96:], other.train.images[96:])
    with pytest.raises(BadInput, match=r"a share of 0.5 asks for 66 images of .*pool.npz, but it has 40: lower"):
        hidden_digits(Unlabelled(extra=str(archive), share=0.5))


def test_another_data_set_of_the_same_shape_may_stand_in_and_one_of_another_shape_may_not():
    _, hidden = hidden_digits(Unlabelled(extra="digits"))
    assert len(hidden.train) == 96 + 1197
    assert (hidden.train.labels[96:] == HIDDEN).all()
    assert torch.equal(hidden.train.images[96:], load("digits").train.images)  # 17 levels both
    other = replace(load("digits").train, images=torch.zeros(1197, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(BadInput, match=r"the images of cifar10 have shape \(3, 32, 32\), those of digits \(1, 8, 8\)"):
        hidden_digits(Unlabelled(extra="cifar10"), other=lambda name: other)


def test_the_training_images_that_a_suite_leaves_out_may_be_used_without_their_labels():
    _, hidden = hidden_digits(Unlabelled(rest=True))
    whole = load("digits")
    assert hidden.train.index.sort().values.tolist() == whole.train.index.sort().values.tolist()
    assert not torch.isin(hidden.train.index, torch.cat([whole.validation.index, whole.test.index])).any()
    truth = whole.train.labels[torch.isin(whole.train.index, hidden.train.index[96:])]
    at = hidden.train.index[96:]
    position = torch.tensor([whole.train.index.tolist().index(image) for image in at.tolist()])
    assert hidden.diagnostics.right(at, whole.train.labels[position]) == (len(truth), len(truth))


def test_labelled_images_may_stand_in_both_pools_and_test_images_where_that_is_asked_for():
    splits, hidden = hidden_digits(Unlabelled(with_labelled=True))
    assert torch.equal(hidden.train.index[96:], splits.train.index[hidden.labelled])
    assert (hidden.train.labels[96:] == HIDDEN).all()
    assert (hidden.train.labels[hidden.labelled] != HIDDEN).all()
    _, transductive = hidden_digits(Unlabelled(transductive=True))
    assert torch.equal(transductive.train.images[96:], splits.test.images)
    assert (transductive.train.labels[96:] == HIDDEN).all()
    assert not torch.isin(transductive.train.index[96:], splits.train.index).any()
    _, plain = hidden_digits(Unlabelled())
    assert not torch.isin(plain.train.index, splits.test.index).any()


def test_nobody_knows_the_labels_of_images_from_elsewhere_and_they_do_not_count(archive):
    _, hidden = hidden_digits(Unlabelled(extra=str(archive)))
    index = hidden.train.index[hidden.unlabelled]
    assert hidden.diagnostics.right(index, torch.zeros_like(index))[1] == 66
    assert 0 < hidden.diagnostics.accuracy(index, torch.zeros_like(index)) < 0.5
    assert np.isnan(hidden.diagnostics.accuracy(index[-40:], index[-40:]))


# Experiments


def test_what_lies_in_the_pool_is_in_the_name_and_where_it_lies_is_not(archive, tmp_path):
    plain, one = experiment(), experiment(dataset__unlabelled={"extra": str(archive)})
    copy = tmp_path / "copy.npz"
    copy.write_bytes(archive.read_bytes())
    assert experiment(dataset__unlabelled={"extra": str(copy)}).name == one.name != plain.name
    assert one.teacher.name != plain.teacher.name
    assert one.labelled == plain.labelled
    np.savez(archive, images=draw(40, 8, 8, seed=1))
    assert experiment(dataset__unlabelled={"extra": str(archive)}).name != one.name
    assert "pool" not in plain.identity()["dataset"]
    natural = [experiment(methods={"natural": None}, dataset__unlabelled=pool) for pool in ({}, {"extra": str(copy)})]
    assert natural[0].name == natural[1].name


def test_a_suite_names_a_pool_beside_its_file_and_says_so_when_it_is_written_out(archive):
    file = archive.parent / "mine.yaml"
    file.write_text(
        "based_on: quickstart\nname: mine\ndataset: {labels: 30, unlabelled: {extra: pool.npz, share: 0.2}}\n"
    )
    found = suite.load(str(file))
    assert found.dataset.unlabelled == Unlabelled(extra=str(archive), share=0.2)
    assert found.as_plain()["dataset"]["unlabelled"]["extra"] == str(archive)
    assert "unlabelled" not in suite.load("quickstart").as_plain()["dataset"]


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        ({"share": 0.2}, "share is a share of images from elsewhere: give dataset.unlabelled.extra"),
        ({"extra": "digits", "share": 1.0}, r"share lies in \[0, 1\), but found 1.0"),
        ({"extras": "digits"}, "extras"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(pool, sentence):
    with pytest.raises(BadInput, match=sentence):
        experiment(dataset__unlabelled=pool)


def test_rst_keeps_its_pools_apart():
    with pytest.raises(BadInput, match=r"rst samples .* apart: set dataset.unlabelled.with_labelled to false"):
        experiment(methods={"rst": None}, dataset__unlabelled={"with_labelled": True})
    experiment(dataset__unlabelled={"with_labelled": True})


def test_pseudo_labels_that_come_with_the_pool_take_the_place_of_the_teachers(archive, tmp_path, monkeypatch):
    learned = []
    from methods import UAT

    learn = UAT.learn_from
    monkeypatch.setattr(
        UAT, "learn_from", lambda self, index, labels: (learned.append(self), learn(self, index, labels))[1]
    )
    of = experiment(dataset__unlabelled={"extra": str(archive)})
    card = train(of, tmp_path / "runs" / of.name)
    assert (card["training_images"], card["more_unlabelled_images"], card["unlabelled_images"]) == (96, 40, 106)
    assert card["data_note"].endswith("in-distribution unlabelled data; extra data: pool.npz")
    first = torch.arange(1797, 1797 + 20)
    assert learned[0].pseudo_labels.of(first).tolist() == [number % 10 for number in range(20)]
    assert (learned[0].pseudo_labels.of(first + 20) != HIDDEN).all()  # the teacher's
    assert card["forward_passes"] == 2 * 3  # T + 2 an epoch of 96 images, as without the pool


def test_hidden_labels_of_the_pool_change_no_weight(tmp_path, monkeypatch):
    of = experiment(methods={"zhai": None}, dataset__unlabelled={"rest": True, "transductive": True})
    plain = train(of, tmp_path / "plain" / of.name)

    def scrambled(*words, **settings):
        made = hide(*words, **settings)
        truth = {image: (label + 1) % 10 for image, label in made.diagnostics._truth.items()}
        made.diagnostics._truth = truth
        return made

    monkeypatch.setattr("benchmark.label_hiding.hide", scrambled)
    other = train(of, tmp_path / "scrambled" / of.name)
    assert other["weights"]["last"]["sha256"] == plain["weights"]["last"]["sha256"]
    found = [card["history"][-1]["pseudo_label_accuracy"] for card in (plain, other)]
    assert found[0] != found[1]
    assert plain["transductive"]


def test_pseudo_labels_of_a_methods_own_are_judged_over_the_epoch(tmp_path):
    of = experiment(methods={"zhai": None})
    card = train(of, tmp_path / of.name)
    for line in card["history"]:
        assert 0 < line["pseudo_label_accuracy"] < 1
        assert 0.1 <= line["majority_share"] <= 1
        assert line["majority_class"] in range(10)
    assert card["remarks"]["majority_share"] == card["history"][-1]["majority_share"]


@pytest.mark.parametrize(("name", "plain"), [("uat", "pgd_at"), ("zhai", "pgd_at")])
def test_with_all_labels_nothing_is_unlabelled_and_no_teacher_is_asked(name, plain, tmp_path):
    own = {"variant": "ft"} if name == "uat" else None
    of = experiment(methods={name: own}, dataset__labels=96)
    card = train(of, tmp_path / "runs" / of.name)
    theirs = train(experiment(methods={plain: None}), tmp_path / "theirs")
    assert (card["labels"], card["unlabelled_images"]) == (96, 0)
    assert "teacher" not in card
    assert (card["forward_passes"], card["backward_passes"]) == (theirs["forward_passes"], theirs["backward_passes"])
    if name == "uat":  # bit for bit PGD training
        assert card["weights"]["last"]["sha256"] == theirs["weights"]["last"]["sha256"]


# Reports


def test_a_transductive_row_is_never_ranked_and_says_what_it_is(tmp_path):
    write_suite(tmp_path, ("uat", "zhai"), images=40)
    told = {"comparison_class": "D", "labels": 30, "validation_labels": 30, "category": "semi-supervised"}
    note = "transductive: trained on the test images, without their labels"
    for method, more in (("uat", {"data_note": "n"}), ("zhai", {"data_note": note, "transductive": True})):
        write_evidence(tmp_path, write_card(tmp_path, method, **told, **more), radii(0.3, 40, 0), epsilons=[0.15])
    summary = summarise(tmp_path)
    ranked = summary.leaderboard[summary.leaderboard.rank_low.notna()]
    assert set(ranked.method) == {"uat"}
    table = readable_leaderboard(summary).set_index(["method", "checkpoint"])
    assert "transductive, not ranked" in table.remark["zhai", "last"]
    assert note in table.remark["zhai", "last"]


def test_a_second_lower_end_has_lines_of_its_own_and_no_effect_is_called_by_its_name(tmp_path):
    from benchmark.report.table import readable_recovered

    write_suite(tmp_path, ("pgd_at", "zhai"), images=200)
    beside = {"teacher": "natural@30", "lower": "pgd_at@30", "oracle": "pgd_at", "lower_too": "zhai/lam_0@30"}
    told = {
        "comparison_class": "D",
        "labels": 30,
        "validation_labels": 30,
        "data_note": "n",
        "category": "semi-supervised",
    }
    for method, radius in {"pgd_at": 0.3, "zhai": 0.2, "pgd_at@30": 0.14, "zhai/lam_0@30": 0.2}.items():
        more = {} if method == "pgd_at" else told | {"reference": "@" in method}
        more |= {"beside": beside} if method == "zhai" else {}
        write_evidence(tmp_path, write_card(tmp_path, method, **more), radii(radius, 200, 0), epsilons=[0.15])
    summary = summarise(tmp_path)
    assert set(summary.recovered.lower) == {"pgd_at@30", "zhai/lam_0@30"}
    words = readable_recovered(summary)
    words = words[(words.checkpoint == "last") & (words.attack == "PGD-20")]
    assert words.remark.tolist() == ["", "no measurable effect at this size"]
    assert isinstance(summary.recovered, pd.DataFrame)
