"""Which labels are hidden, and in which batches the images are served: the checks of the protocol without downloads."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from benchmark import suite
from benchmark.data import HiddenLabels, ImageData, load
from benchmark.data.augment import Style
from benchmark.data.hidden_labels import choose_labelled, digest
from benchmark.data.pools import PoolData, PoolSampler
from benchmark.errors import BadInput
from benchmark.experiment import plan
from benchmark.storage import sha256
from benchmark.training import train
from methods.unlabelled import HIDDEN

SMALL = {
    "recipe.epochs": 2,
    "dataset.train_images": 96,
    "dataset.validation_images": 30,
    "dataset.labels": 30,
    "inner_steps": 1,
    "methods": {"rst": None},
}


def choose(splits, labels=200, **settings):
    return choose_labelled(splits.train.index, splits.train.labels, labels, classes=10, **({"seed": 0} | settings))


def experiment(**changes):
    changed = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    (found,) = plan(suite.load("quickstart", changed))
    return found


def half(batch_size, labels, images):
    return batch_size - batch_size // 2


class Recorder(pl.LightningModule):
    """Trains nothing and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((batch.index.tolist(), batch.y.tolist()))
        return self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def served(data, epochs=1):
    recorder = Recorder()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    loop = {"max_epochs": epochs, "accelerator": "cpu", "use_distributed_sampler": False, "limit_val_batches": 0}
    pl.Trainer(**loop, **quiet, enable_model_summary=False).fit(recorder, datamodule=data)
    return recorder.seen


# The choice of D


@pytest.mark.parametrize("fold", range(5))
@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_keeps_as_many_labels_and_labelled_unlabelled_and_held_out_images_are_disjoint(fold, seed):
    splits = load("digits", fold=fold)
    labelled = choose(splits, seed=seed)
    hidden = HiddenLabels.of(splits.train, labelled)
    shown = hidden.train.labels[hidden.labelled]
    assert torch.bincount(shown).tolist() == [20] * 10
    assert hidden.train.index[hidden.labelled].sort().values.tolist() == list(labelled)
    parts = [hidden.train.index[hidden.labelled], hidden.train.index[hidden.unlabelled], splits.validation.index]
    together = torch.cat([*parts, splits.test.index])
    assert len(together) == len(together.unique()) == 1797
    assert torch.cat(parts[:2]).sort().values.equal(splits.train.index.sort().values)
    assert (splits.validation.labels != HIDDEN).all()


def test_the_choice_is_the_same_on_every_machine_and_another_for_another_seed():
    splits = load("digits")
    assert digest(choose(splits)) == digest(choose(load("digits")))
    assert choose(splits)[:6] == (3, 11, 15, 20, 25, 32)  # as first drawn: NumPy keeps RandomState for ever
    assert choose(splits, seed=0) != choose(splits, seed=1)


def test_the_choice_takes_the_images_in_the_order_of_their_index_whatever_order_they_lie_in():
    splits = load("digits")
    mixed = splits.train.take(torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(3)))
    assert choose(replace(splits, train=mixed)) == choose(splits)


def test_the_other_two_choices_are_the_first_of_the_permutation_and_the_first_of_the_file():
    index, y = torch.tensor([7, 3, 5, 9]), torch.tensor([0, 0, 0, 1])
    chosen = {
        choice: choose_labelled(index, y, 2, classes=2, seed=0, choice=choice) for choice in ("file", "permutation")
    }
    assert chosen["file"] == (3, 5)
    assert chosen["permutation"] == (7, 9)  # RandomState(0).permutation(4) is 2, 3, 1, 0
    assert choose_labelled(index, y, 4, classes=2, seed=0) == (3, 5, 7, 9)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (1198, "at most the number of training images, 1197, .* found 1198"),
        (205, "a multiple of the 10 classes, .* found 205: take 200, or set dataset.label_choice to permutation"),
        (1190, "1190 labels ask for 119 training images of each class, but class 8 has 105"),
    ],
)
def test_labels_that_cannot_be_chosen_are_refused(labels, sentence):
    with pytest.raises(BadInput, match=sentence):
        choose(load("digits"), labels)


# What is served


def test_no_unlabelled_image_shows_a_label_and_no_held_out_or_test_image_is_trained_on():
    splits = load("digits")
    labelled = choose(splits)
    data = ImageData(
        splits,
        batch_size=64,
        seed=0,
        hidden=HiddenLabels.of(splits.train, labelled),
        labelled_rows=half,
    )
    truth = dict(zip(splits.train.index.tolist(), splits.train.labels.tolist(), strict=True))
    batches = served(data, epochs=2)
    assert len(batches) == 2 * 19  # the ceiling of 1,197 / 64
    for index, y in batches:
        assert len(index) == 64
        assert sum(image in labelled for image in index) == 32
        assert y == [truth[image] if image in labelled else HIDDEN for image in index]
    assert (data.splits.train.labels == HIDDEN).sum() == 997  # whoever asks the data module finds none either
    assert data.rows_per_epoch == 19 * 64


def test_a_reference_trains_on_the_labelled_images_alone_in_as_many_steps():
    splits = load("digits")
    labelled = choose(splits)
    batches = served(ImageData(splits, batch_size=64, seed=0, hidden=HiddenLabels.of(splits.train, labelled)))
    assert [len(index) for index, _ in batches] == [64] * 19
    assert {image for index, _ in batches for image in index} == set(labelled)


def test_with_all_labels_the_batches_are_those_of_ordinary_training():
    splits = load("digits")
    hidden = HiddenLabels.of(splits.train, choose(splits, 1197))
    assert len(hidden.unlabelled) == 0
    plain = served(ImageData(splits, batch_size=64, seed=0))
    assert served(ImageData(splits, batch_size=64, seed=0, hidden=hidden, labelled_rows=half)) == plain
    assert served(ImageData(splits, batch_size=64, seed=0, hidden=hidden)) == plain


# The sampler


def sampler(labelled=10, unlabelled=30, **settings):
    positions = torch.arange(labelled + unlabelled)
    shape = {"labelled_rows": 4, "batch_size": 8, "steps": 5, "seed": 0}
    return PoolSampler(positions[:labelled], positions[labelled:], **(shape | settings))


def epochs(of, count=4):
    rows = []
    for epoch in range(count):
        of.set_epoch(epoch)
        rows.append([position for position, _ in of])
    return rows


def test_labelled_images_come_in_shuffled_passes_without_repeats_that_run_on_over_epochs():
    of = sampler()
    flat = [position for epoch in range(4) for step in range(5) for position in _labelled(of, epoch, step)]
    passes = [flat[start : start + 10] for start in range(0, 80, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 8


def _labelled(of, epoch, step):
    of.set_epoch(epoch)
    start = (epoch * of.steps + step) * of.labelled_rows
    drawn = of._passes[0].places(start, of.labelled_rows).tolist()
    assert sorted(drawn) == sorted(position for position in of.batch(step).tolist() if position < 10)
    return drawn


def test_unlabelled_images_are_drawn_with_replacement_where_asked_for_and_all_of_them_in_time():
    rows = [position for epoch in epochs(sampler(redraws=True), 20) for position in epoch if position >= 10]
    counts = torch.bincount(torch.tensor(rows), minlength=40)[10:]
    assert len(rows) == 20 * 5 * 4
    assert counts.min() > 0
    assert counts.max() > counts.min() + 3  # passes without repeats would differ by one at most


def test_else_unlabelled_images_come_in_shuffled_passes_of_their_own():
    of = sampler()
    rows = [position for epoch in epochs(of, 9) for position in epoch if position >= 10]
    assert torch.bincount(torch.tensor(rows), minlength=40)[10:].tolist() == [6] * 30  # 9 epochs of 20 rows
    passes = [of._passes[1].places(30 * number, 30).tolist() for number in range(6)]
    assert all(sorted(one) == list(range(10, 40)) for one in passes)
    assert len({tuple(one) for one in passes}) == 6


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_each_rank_gets_its_part_of_both_pools(ranks):
    for rank in range(ranks):
        share = [position for position, _ in sampler(rank=rank, ranks=ranks)]
        size = -(-8 // ranks)
        for step in range(5):
            known = sum(position < 10 for position in share[step * size : (step + 1) * size])
            assert 4 // ranks <= known <= -(-4 // ranks)


def test_the_batch_is_shuffled():
    batches = [sampler().batch(step).tolist() for step in range(5)]
    assert any(sorted(batch[:4])[-1] >= 10 for batch in batches)


def test_an_epoch_follows_from_seed_and_number_whatever_came_before():
    straight, fresh = sampler(), sampler()
    all_epochs = epochs(straight)
    fresh.set_epoch(3)
    assert [position for position, _ in fresh] == all_epochs[3]
    assert len({tuple(epoch) for epoch in all_epochs}) == 4
    assert epochs(sampler(seed=1)) != all_epochs


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_ranks_share_the_batches_of_one_process(ranks):
    whole, shares = list(sampler()), [list(sampler(rank=rank, ranks=ranks)) for rank in range(ranks)]
    size = -(-8 // ranks)
    assert {len(share) for share in shares} == {5 * size} == {len(sampler(ranks=ranks))}
    for step in range(5):
        dealt = [row for share in shares for row in share[step * size : (step + 1) * size]]
        assert set(dealt) == set(whole[step * 8 : (step + 1) * 8])


def test_without_unlabelled_images_or_rows_for_them_every_row_is_labelled():
    assert all(position < 10 for position, _ in sampler(unlabelled=0))
    assert all(position < 10 for position, _ in sampler(labelled_rows=8))
    assert all(position >= 10 for position, _ in sampler(labelled_rows=0))


def test_an_image_that_is_drawn_twice_in_an_epoch_is_moved_differently():
    images = load("digits").train.take(torch.arange(40))
    of = sampler(steps=8)
    data, plain = PoolData(images, of, style=Style()), PoolData(images, of)
    rows = [(0, 3), (0, 17), (0, 40), (0, 41)]
    moved = data.__getitems__(rows).x
    assert torch.equal(plain.__getitems__(rows).x, images.pixels()[[0] * 4])
    assert len({tuple(x.flatten().tolist()) for x in moved}) > 1
    assert torch.equal(moved, data.__getitems__(rows).x)
    assert torch.equal(plain[(2, 0)].index, images.index[2])


# What training sees


def hashes(card):
    return {name: kept["sha256"] for name, kept in card["weights"].items()}


def test_scrambled_hidden_labels_leave_every_weight_as_it_was(tmp_path, monkeypatch):
    of = experiment()
    plain = train(of, tmp_path / "plain" / "rst")

    def scrambled(*words, **settings):
        splits = load(*words, **settings)
        hidden = ~torch.isin(splits.train.index, torch.tensor(of.labelled))
        random = torch.randint(10, (len(splits.train),), generator=torch.Generator().manual_seed(5))
        labels = torch.where(hidden, random, splits.train.labels)
        return replace(splits, train=replace(splits.train, labels=labels))

    monkeypatch.setattr("benchmark.training.load", scrambled)
    other = train(of, tmp_path / "scrambled" / "rst")
    assert hashes(other) == hashes(plain)
    assert other["pseudo_label_accuracy"] != plain["pseudo_label_accuracy"]


def test_the_batch_size_and_the_precision_have_no_say_in_which_labels_are_hidden():
    first = experiment().labelled
    assert experiment(recipe__batch_size=16).labelled == experiment(precision="bf16-mixed").labelled == first
    assert experiment(seeds=[1]).labelled != first
    (natural,) = plan(suite.load("quickstart", SMALL | {"methods": {"natural@30": None}}))
    assert natural.labelled == first


def test_with_all_labels_self_training_needs_no_teacher_and_is_trained_like_any_other(tmp_path):
    card = train(experiment(dataset__labels=96), tmp_path / "rst")
    assert (card["labels"], card["unlabelled_images"]) == (96, 0)
    assert "teacher" not in card
    assert not list(tmp_path.glob("natural*"))
    trades = plan(suite.load("quickstart", SMALL | {"methods": {"trades": None}}))[0]
    theirs = train(trades, tmp_path / "trades")
    assert card["forward_passes"] == theirs["forward_passes"]
    ours, loss = (one["history"][-1]["loss"] for one in (card, theirs))
    assert ours == pytest.approx(loss, rel=0.05)  # the start is scaled to epsilon, and BatchNorm sees another order


def test_a_teacher_labels_every_hidden_image_once_and_the_card_says_how_well(tmp_path):
    card = train(of := experiment(), tmp_path / "rst")
    (teacher,) = tmp_path.glob("natural-digits-n30-s0-*")
    assert teacher.name == card["teacher"]["experiment"] == of.teacher.name
    labels = teacher / "pseudo_labels.safetensors"
    assert card["teacher"]["pseudo_labels"] == sha256(labels)
    stamp = labels.stat().st_mtime_ns
    train(experiment(recipe__epochs=2, methods__rst__beta=3), tmp_path / "other")
    assert labels.stat().st_mtime_ns == stamp  # of one teacher all students learn

    from benchmark.storage import load_weights, read_yaml
    from benchmark.tasks import restore

    kept, theirs = load_weights(labels), read_yaml(teacher / "card.yaml")
    splits = load("digits", train_images=96, validation_images=30)
    order = torch.tensor([splits.train.index.tolist().index(image) for image in kept["index"].tolist()])
    hidden = splits.train.take(order)
    network = restore(of.teacher, teacher / "last.safetensors", theirs["weights"]["last"]["sha256"]).cpu()
    assert torch.equal(network(hidden.pixels()).argmax(1), kept["labels"])
    accuracy = (kept["labels"] == hidden.labels).float().mean().item()
    assert card["pseudo_label_accuracy"] == theirs["pseudo_labels"]["accuracy"] == pytest.approx(accuracy)
    assert card["teacher_limited"] == (accuracy < 0.6)
    assert card["teacher_held_out_clean"] == theirs["history"][-1]["held_out_clean"]
    assert card["teacher_forward_passes"] == theirs["forward_passes"] + 66 / 128
    assert card["teacher_backward_passes"] == theirs["backward_passes"] == 2
    assert (card["forward_passes"], card["backward_passes"]) == (2 * 4, 2 * 3)  # T + 3 and T + 2 an epoch, T = 1
    assert card["labelled_images"] == " ".join(map(str, of.labelled))
    assert (card["labels"], card["validation_labels"], card["unlabelled_images"]) == (30, 30, 66)


def test_pseudo_labels_are_refused_that_are_not_those_of_the_teachers_card(tmp_path):
    from benchmark.storage import save_weights

    train(of := experiment(), tmp_path / "rst")
    (labels,) = tmp_path.glob("natural*/pseudo_labels.safetensors")
    save_weights(labels, {"index": torch.arange(3), "labels": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(BadInput, match="is not the file that its card names: delete"):
        train(of, tmp_path / "again")
