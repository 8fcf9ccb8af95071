"""What a training costs beside natural training: how it is timed, kept and shown; a clock runs in one test only."""

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark import inspection, suite
from benchmark import speed as measuring
from benchmark.errors import BadInput
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import plan
from benchmark.results import speed as stored
from benchmark.runner import Outcome
from benchmark.speed import BATCHES, SLICE_EPOCHS, SLICES, SpeedTask, Turn, figures, shortened, speed, turn
from benchmark.storage import read_yaml, write_yaml
from benchmark.tasks import Places
from methods import catalogue

CARD = {
    "forward_passes": 240.0,
    "backward_passes": 210.0,
    "peak_memory_mib": 600.0,
    "memory_growth_mib": 31.5,
    "peak_memory_of": "resident memory of the process",
}


def experiment(method, **changes):
    chosen = suite.load("digits-common", {"dataset.train_images": 128, "dataset.labels": 20, **changes})
    return plan(replace(chosen, methods={method: chosen.methods[method]}))[0]


def ask(methods=(), path=None, **changes):
    words = {"suite_name": "digits-common", "changes": {}, "output": path, "repeats": 3, "processes": 1}
    return speed(methods, **{**words, "data_root": None, "download": False, **changes})


# How it is timed


@given(st.lists(st.floats(0.2, 5), min_size=2, max_size=12), st.floats(0.5, 30))
def test_a_machine_that_is_fast_and_slow_by_turns_does_not_change_the_ratio(slowness, ratio):
    """Each part of the method's training is as slow as the slices of natural training around it are on the mean."""
    now = iter([*slowness, 0.0])
    lately = []

    def natural():
        lately.append(next(now))
        return lately[-1]

    def method(pause):
        for _ in slowness[2:]:
            pause()
        return ratio * sum(slowness) / len(slowness)

    found = turn(method, natural)
    assert lately == slowness
    assert found.ratio == pytest.approx(ratio)


def test_figures_are_the_median_the_least_and_the_most_of_whole_trainings():
    of = experiment("pgd_at")
    line = figures(of, CARD, [Turn(8.0, 1.0), Turn(9.0, 2.0), Turn(30.0, 5.0)])
    assert [line[name] for name in ("ratio", "ratio_low", "ratio_high", "repeats")] == [6, 4.5, 8, 3]
    assert (line["seconds"], line["natural_seconds"]) == (9, 2)
    assert (line["forward_passes"], line["backward_passes"]) == (8, 7)  # of 30 epochs
    assert (line["peak_memory_mib"], line["memory_growth_mib"]) == (600, 31.5)


@pytest.mark.parametrize(("epochs", "pauses"), [(30, SLICES - 1), (4, 3), (1, 0)])
def test_a_method_trains_all_its_epochs_and_pauses_for_slices_of_natural_training(
    epochs, pauses, tmp_path, monkeypatch
):
    of, natural, trained = experiment("rst"), experiment("natural"), []

    def train(one, folder, *, data_root=None, tell=None):
        folder.mkdir(parents=True)
        trained.append((one.method, one.recipe.epochs, folder))
        for epoch in range(epochs if tell else 0):
            tell("training", epoch + 1, epochs)
        return {**CARD, "seconds": 0.5 if one.method == "natural" else 12.0}

    monkeypatch.setattr(measuring, "train", train)
    told = []
    task = SpeedTask(of, natural=natural, folder=tmp_path, repeats=2)
    task.perform(Places(tmp_path, tmp_path), Evaluation(), lambda *news: told.append(news))
    slices = [("natural", SLICE_EPOCHS)] * (pauses + 2)
    kinds = [(method, length) for method, length, _ in trained]
    assert kinds[0] == ("rst", 30)  # without a clock
    assert sorted(kinds) == sorted([("rst", 30)] * 3 + slices * 2)
    assert kinds[1:3] == [("natural", SLICE_EPOCHS), ("rst", 30)]
    assert {folder.parent for _, _, folder in trained} == {tmp_path / of.name}  # where one teacher serves them all
    line = read_yaml(task.line)
    assert line["natural_seconds"] == 0.5 * 30 / SLICE_EPOCHS
    assert line["ratio"] == 12.0 / line["natural_seconds"]
    assert told[-1] == ("training 2 of 2", 2 * epochs, 2 * epochs)
    assert (task.label, task.waits_for) == ("rst: speed", None)


def test_a_suite_is_shortened_in_images_and_in_nothing_that_a_schedule_depends_on():
    whole = suite.load("digits-common", {"seeds": [3, 4], "dataset.folds": [1, 2]})
    short = shortened(whole, None, False)
    assert short.dataset.train_images == BATCHES * whole.recipe.batch_size
    assert short.dataset.labels == 20  # 200 of 1,197, in whole classes
    assert (short.seeds, short.dataset.folds) == ([3], [1])
    assert (short.recipe, short.threat, short.inner_steps) == (whole.recipe, whole.threat, whole.inner_steps)
    tiny = shortened(suite.load("digits-common", {"dataset.train_images": 70}), None, False)
    assert tiny.dataset.train_images == 70


# How it is kept


@pytest.fixture
def fake_run(monkeypatch):
    """Stands for the processes: notes what would be measured, and is interrupted after ``after`` of it."""

    class Fake:
        def __init__(self):
            self.measured, self.after, self.outcome = [], 99, Outcome()

        def __call__(self, tasks, places, settings, *, processes, watcher):
            for task in tasks[: self.after]:
                self.measured.append(task.experiment.row)
                write_yaml(task.line, figures(task.experiment, CARD, [Turn(8.0, 2.0)]))
                watcher.started(task)
                watcher.ended(task, self.outcome)
            if len(tasks) > self.after:
                raise KeyboardInterrupt
            return dict.fromkeys(tasks, self.outcome)

    fake = Fake()
    monkeypatch.setattr(measuring, "run_tasks", fake)
    return fake


def test_an_interrupted_measurement_keeps_what_it_has_and_goes_on_there(fake_run, tmp_path, capsys):
    path, fake_run.after = tmp_path / "speed.csv", 1
    with pytest.raises(KeyboardInterrupt):
        ask(["pgd_at", "trades"], path)
    assert stored.read(path).method.tolist() == ["pgd_at"]
    fake_run.after = 99
    assert ask(["pgd_at", "trades"], path) == 0
    assert fake_run.measured == ["pgd_at", "trades"]
    before = path.read_bytes()
    assert ask(["pgd_at", "trades"], path) == 0
    assert fake_run.measured == ["pgd_at", "trades"]
    assert path.read_bytes() == before
    told = capsys.readouterr()
    assert "everything is measured already" in told.err
    assert [line.split() for line in told.out.splitlines() if line.startswith("trades")][-1] == [
        *("trades", "8", "/", "7", "4", "(4", "-", "4)", "600", "(+32)")
    ]


def test_without_names_the_whole_catalogue_is_measured_and_natural_training_against_itself(fake_run, tmp_path):
    assert ask((), tmp_path / "speed.csv") == 0
    assert set(fake_run.measured) == set(catalogue.names())


def test_a_method_whose_settings_changed_is_measured_anew_and_has_one_line(fake_run, tmp_path):
    path = tmp_path / "speed.csv"
    ask(["trades", "mart"], path)
    ask(["trades", "mart"], path, changes={"methods.trades.beta": 3.0})
    assert fake_run.measured == ["trades", "mart", "trades"]
    table = stored.read(path).set_index("method")
    assert sorted(table.index) == ["mart", "trades"]
    assert table.command["trades"] == "atbench speed --suite digits-common --set methods.trades.beta=3.0"
    assert table.command["mart"] == "atbench speed --suite digits-common"


def test_measurements_of_another_suite_or_machine_are_never_mixed(fake_run, tmp_path, monkeypatch):
    path = tmp_path / "speed.csv"
    ask(["trades"], path)
    with pytest.raises(
        BadInput, match=r"another suite \(digits-common, now it is quickstart\): choose another --output"
    ):
        ask(["trades"], path, suite_name="quickstart")
    with pytest.raises(BadInput, match=r"another epochs \(30, now it is 2\)"):
        ask(["trades"], path, changes={"recipe.epochs": 2})
    monkeypatch.setattr(measuring, "processor", lambda: "an abacus")
    with pytest.raises(BadInput, match=r"another processor .*now it is an abacus"):
        ask(["mart"], path)
    assert stored.read(path).method.tolist() == ["trades"]


def test_a_method_that_fails_leaves_no_line_and_the_exit_code_tells(fake_run, tmp_path, capsys):
    fake_run.outcome = Outcome("FloatingPointError: the training loss became nan", "Traceback (most recent call last)")
    assert ask(["trades"], tmp_path / "speed.csv") == 1
    assert stored.read(tmp_path / "speed.csv").empty
    told = capsys.readouterr()
    assert "trades: speed: FAILED: FloatingPointError" in told.err
    assert "Traceback" in told.err
    assert "not measured (atbench speed trades)" in told.out


@pytest.mark.parametrize(
    ("content", "says"), [("", "no CSV of atbench speed"), ("method,ratio\n", "no column ratio_low")]
)
def test_a_file_that_is_none_of_ours_is_refused(content, says, tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text(content)
    with pytest.raises(BadInput, match=says):
        stored.read(path)


def test_a_file_that_is_not_there_holds_nothing(tmp_path):
    assert stored.read(tmp_path / "speed.csv").columns.tolist() == stored.COLUMNS
    assert stored.read(tmp_path / "speed.csv").empty


def test_it_is_measured_in_a_process_of_its_own(atbench, capsys, tmp_path):
    path, few = tmp_path / "speed.csv", ["--set", "recipe.epochs=2", "recipe.batch_size=32"]
    assert atbench("speed", "fast_at", "--output", path, "--repeats", 1, *few) == 0
    (line,) = stored.read(path).to_dict("records")
    assert (line["forward_passes"], line["backward_passes"], line["repeats"]) == (2, 2, 1)
    assert 0 < line["ratio_low"] == line["ratio"] == line["ratio_high"]
    assert 0 <= line["memory_growth_mib"] < line["peak_memory_mib"]
    assert (line["epochs"], line["images"], line["network"]) == (2, 64, "digits_cnn")
    told = capsys.readouterr()
    assert "[1/1] fast_at: speed: done in" in told.err
    assert told.out.splitlines()[1].startswith("fast_at")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "speed.csv"]


# How it is shown


def measurement(method, **changes):
    line = figures(experiment(method), CARD, [Turn(7.9, 1.0), Turn(8.1, 1.0), Turn(8.3, 1.0)])
    setting = measuring.setting_of(shortened(suite.load("digits-common"), None, False), "digits-common", {})
    return {**line, **setting, "date": "2026-11-24", "experiment": "", **changes}


def test_the_list_of_methods_shows_what_is_measured_and_how_to_measure_the_rest(monkeypatch):
    rebuilt = replace(catalogue.get("mart").card, reconstruction=True)
    monkeypatch.setattr(catalogue.get("mart"), "card", rebuilt)
    lines = inspection.methods(pd.DataFrame([measurement("trades")], columns=stored.COLUMNS))
    text = "\n".join(lines)
    (trades,) = [line for line in lines if line.startswith("trades ")]
    assert trades.split() == [
        "trades",
        "A",
        "regularization",
        "8",
        "/",
        "7",
        "8.1",
        "(7.9",
        "-",
        "8.3)",
        "600",
        "(+32)",
    ]
    (mart,) = [line for line in lines if line.startswith("mart ")]
    assert mart.split()[:2] == ["mart", "(reconstruction)"]
    assert mart.endswith("not measured (atbench speed mart)")
    assert trades.index("8 / 7") == mart.index("not measured") == lines[0].index("passes")
    meaning = " ".join(text.split("\n\n")[1].split())
    assert "Measured by atbench speed --suite digits-common on 2026-11-24" in meaning
    assert "(30 epochs of 128 images in batches of 64) of digits_cnn on digits; one thread of" in meaning
    assert "median (least - most) of 3" in meaning
    assert "atbench " in meaning
    assert "torch " in meaning
    assert max(map(len, lines)) <= 110


def test_where_nothing_is_measured_nothing_is_claimed():
    lines = inspection.methods(stored.read(stored.STORED.with_name("nothing.csv")))
    assert not [line for line in lines if "Measured" in line]
    assert sum("not measured (atbench speed" in line for line in lines) == len(catalogue.names())


def test_measurements_of_two_days_name_both():
    lines = [measurement("trades"), measurement("mart", date="2026-11-25", repeats=5)]
    text = " ".join(" ".join(inspection.measured(["trades", "mart"], pd.DataFrame(lines))).split())
    assert "on 2026-11-24 and 2026-11-25" in text
    assert "(least - most) of 3 and 5" in text
