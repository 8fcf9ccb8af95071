"""What is told of a training: history.csv whole after every epoch, and the loggers that a person asks for."""

import csv
from importlib.util import find_spec

import pytest
from pytorch_lightning.loggers import CSVLogger

from attacks import BadInput
from benchmark import loggers
from benchmark.loggers import HISTORY, as_csv
from benchmark.storage import sha256
from benchmark.training import CARD, train
from methods.origins.pgd_at import PGDAT
from tests.benchmark.test_training import Interrupted, experiment, hashes, interrupted_train

SECONDS = ("seconds", "selection_seconds")


def lines(folder):
    with (folder / HISTORY).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(folder):
    return [{key: value for key, value in line.items() if key not in SECONDS} for line in lines(folder)]


def test_history_has_a_line_per_epoch_with_all_that_is_known_of_it(tmp_path):
    of = experiment("fast_at", recipe__schedule="constant", recipe__learning_rate=0.05)
    card = train(of, tmp_path)
    found = lines(tmp_path)
    assert list(found[0]) == [
        *("epoch", "loss", "held_out_robust", "held_out_clean", "held_out_fgsm", "held_out_pgd10"),
        *("learning_rate", "epsilon", "seconds", "selection_seconds"),
    ]
    for line, kept in zip(found, card["history"], strict=True):
        assert {key: float(line[key]) for key in kept} == pytest.approx(kept)
        assert (float(line["learning_rate"]), float(line["epsilon"])) == (0.05, of.threat.epsilon)
    for name in SECONDS:
        assert sum(float(line[name]) for line in found) == pytest.approx(card[name], abs=0.006)
    assert not list(tmp_path.glob(".*.tmp"))


def test_notes_of_a_method_and_a_ramped_radius_are_among_it(tmp_path):
    of = experiment("mart", recipe__epsilon_ramp=1.0, recipe__epochs=2)
    card = train(of, tmp_path)
    found = lines(tmp_path)
    assert [float(line["mean_doubt"]) for line in found] == pytest.approx([m["mean_doubt"] for m in card["history"]])
    assert float(found[0]["epsilon"]) == pytest.approx(of.threat.epsilon / 2)  # after half of the steps
    assert float(found[1]["epsilon"]) == pytest.approx(of.threat.epsilon)
    assert float(found[0]["learning_rate"]) > float(found[1]["learning_rate"]) >= 0


def test_the_line_of_an_epoch_is_there_as_soon_as_the_epoch_is_over(tmp_path):
    seen = []
    train(experiment("natural"), tmp_path, tell=lambda *_: seen.append([line["epoch"] for line in lines(tmp_path)]))
    assert seen == [["0"], ["0", "1"], ["0", "1", "2"]]


def test_a_resumed_training_neither_doubles_nor_loses_an_epoch(tmp_path, monkeypatch):
    of = experiment("pgd_at")
    train(of, tmp_path / "undisturbed")
    interrupted_train(of, tmp_path / "broken", 1)
    first = lines(tmp_path / "broken")
    loss, steps = PGDAT.training_loss, []

    def breaking(self, batch):
        steps.append(batch)
        if len(steps) == 2:
            raise Interrupted
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PGDAT, "training_loss", breaking)
        with pytest.raises(Interrupted):
            train(of, tmp_path / "broken")  # ends within the second epoch
    assert lines(tmp_path / "broken") == first
    interrupted_train(of, tmp_path / "broken", 2)
    assert lines(tmp_path / "broken")[0] == first[0]
    interrupted_train(of, tmp_path / "broken", 3)
    train(of, tmp_path / "broken")
    assert without_seconds(tmp_path / "broken") == without_seconds(tmp_path / "undisturbed")
    assert all(float(line["seconds"]) > 0 for line in lines(tmp_path / "broken"))


def test_a_value_that_an_epoch_does_not_have_is_an_empty_cell():
    text = as_csv([{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": 1 / 3, "radius": 8.0, "seconds": 1.0}])
    assert text == "epoch,loss,radius,seconds\n0,0.5,,\n1,0.3333333333,8,1\n"


@pytest.fixture
def csv_logger(monkeypatch):
    """Stands for a logger that is installed: Lightning's own, under the name of TensorBoard."""
    monkeypatch.setitem(loggers.CHOICES, "tensorboard", lambda name, folder, settings: CSVLogger(folder, name="logs"))
    monkeypatch.setattr("benchmark.loggers.find_spec", lambda name: name)


def test_a_logger_hears_what_history_holds_and_changes_no_weight(tmp_path, csv_logger):
    of = experiment("fast_at")
    quiet = train(of, tmp_path / "quiet")
    heard = train(of, tmp_path / "heard", loggers=["tensorboard", "tensorboard"])
    assert hashes(heard) == hashes(quiet)
    (path,) = (tmp_path / "heard").rglob("metrics.csv")
    with path.open(encoding="utf-8", newline="") as file:
        told = list(csv.DictReader(file))
    for name in set(lines(tmp_path / "heard")[0]) - {"epoch"}:
        values = [float(line[name]) for line in told if line[name]]
        assert values == pytest.approx([float(line[name]) for line in lines(tmp_path / "heard")], abs=1e-6), name
    assert sha256(tmp_path / "heard" / "last.safetensors") == quiet["weights"]["last"]["sha256"]


def test_a_logger_is_no_part_of_an_experiment(tmp_path, atbench, csv_logger):
    small = ["--set", "recipe.epochs=1", "dataset.train_images=64", "dataset.validation_images=20"]
    words = ["train", "natural", *small, "--checkpoints", tmp_path]
    assert atbench(*words) == 0
    (folder,) = tmp_path.iterdir()
    card = (folder / CARD).read_bytes()
    assert atbench(*words, "--logger", "tensorboard") == 0  # finished already, under the same name
    assert [folder] == list(tmp_path.iterdir())
    assert (folder / CARD).read_bytes() == card


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@pytest.mark.parametrize("command", [["run", "quickstart"], ["train", "natural"]])
def test_a_logger_that_is_not_installed_is_told_before_anything_begins(
    name, command, atbench, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmark.loggers.find_spec", lambda name: None)
    assert atbench(*command, "--logger", name) == 2
    told = capsys.readouterr().err
    assert f"pip install {name}" in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_logger_that_nobody_knows_is_told_with_those_there_are():
    with pytest.raises(BadInput, match="--logger is one of tensorboard, wandb, but found 'tensorbord'"):
        loggers.check(["tensorbord"])


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_the_curves_of_a_training(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    of = experiment("fast_at")
    interrupted_train(of, tmp_path, 1, loggers=["tensorboard"])
    card = train(of, tmp_path, loggers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "held_out_robust", "held_out_fgsm", "held_out_pgd10"):
        told = [event.value for event in events.Scalars(name)]
        assert told[-2:] == pytest.approx([line[name] for line in card["history"][-2:]], abs=1e-6), name
    assert {"learning_rate", "epsilon", "seconds"} <= set(events.Tags()["scalars"])


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_works_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    card = train(experiment("natural"), tmp_path, loggers=["wandb"])
    assert card["status"] == "done"
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert run.stat().st_size > 0
