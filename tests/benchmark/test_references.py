"""What a semi-supervised method is shown beside: which runs, in which order, and what the tables say of them."""

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmark import suite
from benchmark.data.hidden_labels import usual_labels
from benchmark.errors import BadInput
from benchmark.experiment import plan
from benchmark.references import beside, references, with_teachers
from benchmark.report import build
from benchmark.report.summary import summarise
from benchmark.report.table import readable_leaderboard, readable_recovered
from benchmark.results.statistics import difference_interval
from benchmark.runner import run
from benchmark.tasks import Places, Task
from tests.benchmark.make_report import make_report, radii, write_card, write_evidence, write_suite
from tests.benchmark.test_runner import SMALL, Notes, holder_of

SMALL = SMALL | {"dataset.labels": 20}
NOTE = "label-hiding protocol: labels hidden by us, in-distribution unlabelled data"


def chosen(**changes):
    return suite.load("quickstart", SMALL | {key.replace("__", "."): value for key, value in changes.items()})


def rows(experiments):
    return [one.row for one in experiments]


# Which runs


def test_the_references_come_with_the_method_that_needs_them_and_with_no_other():
    whole = chosen(seeds=[0, 1], dataset__folds=[0, 2])
    (found,) = {tuple(rows(references(plan(replace(whole, methods={"rst": None})), whole)))}
    assert sorted(set(found)) == ["natural@20", "trades@20"]
    assert len(found) == 2 * 2 * 2
    assert references(plan(replace(whole, methods={"trades": None, "pgd_at": None})), whole) == []


def test_a_reference_has_the_setting_of_the_oracle_and_differs_in_the_data_alone():
    whole = chosen(methods={"trades": {"beta": 3}, "rst": None})
    trades, rst = plan(whole)
    cut = replace(whole, methods={"rst": None})
    (lower,) = [one for one in references(plan(cut), whole) if one.row == "trades@20"]
    ours, theirs = lower.identity(), trades.identity()
    assert {key for key in ours if ours[key] != theirs[key]} == {"dataset"}
    assert ours["dataset"] | {"labels": 0, "labelled": ""} == theirs["dataset"] | {"labels": 0, "labelled": ""}
    assert (lower.reference, rst.reference, trades.reference) == (True, False, False)
    assert lower.labelled == rst.labelled == rst.teacher.labelled


def test_a_suite_may_name_a_reference_itself_and_it_is_not_run_twice():
    whole = chosen(methods={"natural@20": None, "trades@20": {"beta": 2}, "rst": None})
    experiments = plan(whole)
    assert references(experiments, whole) == []
    assert experiments[0].name == experiments[2].teacher.name
    assert experiments[1].settings["beta"] == 2
    assert all(one.reference for one in experiments[:2])


def test_a_teacher_serves_all_students_of_its_seed_and_comes_before_them():
    one, other = plan(chosen(methods={"rst": None})), plan(chosen(methods={"rst": {"beta": 3}}))
    assert one[0].name != other[0].name
    assert rows(with_teachers([*one, *other])) == ["natural@20", "rst", "rst"]
    without = plan(chosen(methods={"rst": {"pseudo_labels": False}}))
    assert rows(with_teachers(without)) == ["rst"]
    assert beside(without[0]) == {"teacher": "natural@20", "lower": "trades@20", "oracle": "trades"}


@pytest.mark.parametrize("name", ["rst", "natural@20", "trades@20"])
def test_the_labels_that_are_kept_are_in_the_name(name):
    names = [plan(chosen(methods={name: None}, **changes))[0].name for changes in (
        {}, {"dataset__label_choice": "file"}, {"seeds": [1]}, {"dataset__train_images": 65}
    )]  # fmt: skip
    assert len(set(names)) == 4
    assert all("-n20-" in one for one in names)


def test_the_label_budget_is_nothing_to_methods_that_see_all_labels():
    own = {"natural": None, "pgd_at": None, "trades": None}
    names = [[one.name for one in plan(chosen(methods=own, dataset__labels=labels))] for labels in (20, 30, None)]
    assert names[0] == names[1] == names[2]
    assert names[0][0].startswith("natural-digits-s0-")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": {"trades@few": None}}, "methods.trades@few: after @ stands the number"),
        ({"methods": {"trades@0": None}}, "methods.trades@0: after @ stands the number"),
        ({"methods": {"trade@20": None}}, "did you mean trades?"),
        ({"dataset__labels": 0}, "dataset.labels is 1 or more, but found 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, sentence):
    with pytest.raises(BadInput, match=sentence):
        plan(chosen(**changes))


def test_where_nothing_is_said_a_sixth_of_the_images_keep_their_labels_evenly():
    (one,) = plan(chosen(methods={"rst": None}, dataset__labels=None, dataset__train_images=1197))
    assert one.labels == 190
    assert (usual_labels(5, 10), usual_labels(60_000, 10)) == (10, 10_000)


# How they are run


def tasks_of(**changes):
    whole = chosen(**({"methods": {"rst": None}} | changes))
    experiments = plan(whole)
    experiments += references(experiments, whole)
    return [task for one in experiments for task in (Task(one), Task(one, ("clean", "pgd20")))], whole.evaluation


def kinds(ended):
    return {(task.experiment.row, bool(task.attacks)): outcome for task, outcome in ended.items()}


class Rows(Notes):
    """Notes of rows, for two of them may be of one method."""

    def started(self, task):
        self.lines.append(("started", task.experiment.row, bool(task.attacks)))

    def ended(self, task, outcome):
        self.lines.append(("ended", task.experiment.row, bool(task.attacks)))


def test_a_student_waits_for_its_teacher_and_for_nobody_else(tmp_path):
    tasks, settings = tasks_of()
    notes = Rows()
    ended = run(tasks, Places(tmp_path / "c", tmp_path / "r"), settings, processes=2, watcher=notes)
    assert not any(outcome.error for outcome in ended.values())
    assert len(ended) == 6
    assert notes.at("ended", "natural@20", False) < notes.at("started", "rst", False)
    cards = {one["method"]: one for one in map(_read, (tmp_path / "r" / "experiments").glob("*.yaml"))}
    assert {row: (card["comparison_class"], card["reference"]) for row, card in cards.items()} == {
        "rst": ("D", False),
        "natural@20": ("D", True),
        "trades@20": ("D", True),
    }


def _read(path):
    return yaml.safe_load(path.read_text())


def test_the_failure_of_a_teacher_is_that_of_its_student_and_of_nobody_else(tmp_path):
    tasks, settings = tasks_of(recipe__epochs=30)
    places, killed = Places(tmp_path / "c", tmp_path / "r"), []

    def kill(task, what, done):
        if task.experiment.row == "natural@20" and not killed:
            killed.append(holder_of(places.checkpoints / task.experiment.name))
            os.kill(killed[0], signal.SIGKILL)

    ended = kinds(run(tasks, places, settings, processes=2, watcher=Rows(kill)))
    assert killed
    assert set(ended) == {("natural@20", False), ("rst", False), ("trades@20", False), ("trades@20", True)}
    reason = ended["natural@20", False].error
    assert reason.startswith("the worker process was killed by SIGKILL")
    assert ended["rst", False].error == f"its teacher natural@20 failed: {reason}"
    assert not ended["trades@20", True].error


REDUCED = [f"{key}={value}" for key, value in SMALL.items()]


def words(folder, *more):
    return ["run", "quickstart", "--output", folder / "r", "--checkpoints", folder / "c", "--workers", 2, *more]


def test_a_run_of_the_method_alone_trains_what_it_needs_and_a_failed_teacher_is_shown_on_its_row(
    tmp_path, atbench, capsys, monkeypatch
):
    assert atbench(*words(tmp_path, "--methods", "rst", "--set", *REDUCED)) == 0
    board = pd.read_csv(tmp_path / "r" / "leaderboard.csv")
    assert set(board.method) == {"rst", "natural@20", "trades@20"}
    assert atbench(*words(tmp_path, "--methods", "rst", "--set", *REDUCED)) == 0
    assert "everything in quickstart is finished already" in capsys.readouterr().err
    (labels,) = (tmp_path / "c").glob("natural*/pseudo_labels.safetensors")
    (card,) = (tmp_path / "c").glob("natural*/card.yaml")
    shutil.rmtree(next((tmp_path / "c").glob("rst*")))
    shutil.rmtree(tmp_path / "r")
    card.unlink()
    (card.parent / "resume.ckpt").write_bytes(b"half a file")
    labels.unlink()
    assert atbench(*words(tmp_path, "--methods", "rst", "--set", *REDUCED)) == 2
    assert "failed: rst seed 0: training: its teacher natural@20 failed" in capsys.readouterr().err
    board = pd.read_csv(tmp_path / "r" / "leaderboard.csv")
    assert set(board[board.status == "failed"].method) == {"rst", "natural@20"}
    assert "its teacher natural@20 failed" in " ".join(board.status_note.fillna(""))


def test_training_the_method_alone_trains_its_teacher_first(tmp_path, atbench, capsys):
    command = ["train", "rst", "--suite", "quickstart", "--checkpoints", tmp_path, "--set", *REDUCED]
    assert atbench(*command) == 0
    said = capsys.readouterr().err
    assert "natural@20 seed 0: training: done" in said
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["natural", "rst"]
    assert atbench(*command) == 0
    assert "training: done" not in capsys.readouterr().err


def test_labels_that_cannot_be_chosen_are_told_before_anything_is_written(tmp_path, atbench, capsys):
    assert atbench(*words(tmp_path, "--methods", "rst", "--set", *REDUCED, "dataset.labels=25")) == 2
    assert "dataset.labels is a multiple of the 10 classes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# What the tables say


D = {"comparison_class": "D", "labels": 200, "validation_labels": 200, "data_note": NOTE}
BESIDE = {"teacher": "natural@200", "lower": "trades@200", "oracle": "trades"}
STRONG = {"trades": 0.3, "rst": 0.27, "trades@200": 0.15, "natural@200": 0.05}


def report(folder, accuracy=0.93, oracle=0.3, images=200):
    write_suite(folder, ("trades", "rst"), images=images)
    for method, radius in (STRONG | {"trades": oracle}).items():
        changes = {} if method == "trades" else D | {"reference": "@" in method}
        if method == "rst":
            changes |= {"beside": BESIDE, "pseudo_label_accuracy": accuracy, "teacher_limited": accuracy < 0.6}
            changes |= {"teacher_forward_passes": 31.0, "teacher_backward_passes": 30.0, "category": "semi-supervised"}
        kept = radii(radius if radius < 1 else STRONG["trades@200"], images, 0)
        if radius >= 1:  # so many images more than the lower end
            kept[np.flatnonzero(kept < 0.15)[: int(radius)]] = 1
        write_evidence(folder, write_card(folder, method, **changes), kept, epsilons=[0.15])
    return folder


def test_references_stand_in_class_d_and_are_not_ranked(tmp_path):
    board = summarise(report(tmp_path)).leaderboard
    ranked = board[board.rank_low.notna()]
    assert ranked[["class", "method", "rank_low"]].to_numpy().tolist() == [["A", "trades", 1], ["D", "rst", 1]]
    own = board[board.method.isin(["trades@200", "natural@200"])]
    assert set(own["class"]) == {"D"}
    assert set(own[own.checkpoint == "last"].status_note) == {"a reference, not ranked"}
    assert set(own.status) == {"done"}


def test_a_row_says_that_labels_were_hidden_how_many_there_were_and_how_good_the_teacher_was(tmp_path):
    for name, accuracy in (("good", 0.93), ("bad", 0.55)):
        table = readable_leaderboard(summarise(report(tmp_path / name, accuracy))).set_index(["method", "checkpoint"])
        remark = table.remark["rst", "last"]
        assert NOTE in remark
        assert "N = 200 labels, and V = 200 more that choose the best checkpoint" in remark
        assert f"its teacher is right on {100 * accuracy:.1f}% of the unlabelled images" in remark
        assert ("teacher-limited" in remark) == (name == "bad")
        assert NOTE in table.remark["trades@200", "last"]
        assert table.remark["trades", "last"] == ""
        assert (table.labels["rst", "last"], table.labels["rst", "best"]) == ("200", "200 + 200")
        assert table["teacher's passes"]["rst", "last"] == "61"
        assert table["teacher's passes"]["trades@200", "last"] == ""


def test_no_published_figure_with_extra_images_stands_beside_hidden_labels(tmp_path):
    table = summarise(report(tmp_path)).table1.set_index("method_key")
    assert str(table.accuracy_percent["rst"]) == "63.10"
    assert pd.isna(table.measured_pgd20["rst"])
    assert not pd.isna(table.measured_pgd20["trades"])


def test_the_recovered_share_counts_from_the_lower_end_to_the_oracle_on_shared_images(tmp_path):
    summary = summarise(report(tmp_path))
    table = summary.recovered.set_index(["checkpoint", "attack", "epsilon"])
    line = table.loc[("last", "pgd20", 0.15)]
    kept = {method: (radii(radius, 200, 0) >= 0.15).mean() for method, radius in STRONG.items()}
    expected = (kept["rst"] - kept["trades@200"]) / (kept["trades"] - kept["trades@200"])
    assert line.recovered == pytest.approx(expected)
    assert line.gap == pytest.approx(kept["trades"] - kept["trades@200"])
    assert 0 < line.gap_low < line.gap < line.gap_high
    assert np.isnan(table.loc[("last", "clean", 0.0)].recovered)  # all read clean images alike: nothing to recover
    assert ("best", "autoattack", 0.15) not in table.index
    assert set(table.index.get_level_values("attack")) == {"clean", "pgd20", "autoattack"}
    shares = readable_recovered(summary).set_index(["checkpoint", "attack"])["recovered share"]
    assert shares["last", "PGD-20"] == f"{expected:.2f}"
    assert shares["last", "clean"] == "\N{EN DASH}"


@pytest.mark.parametrize("oracle", [0.15, 0.1, 8])
def test_where_oracle_and_lower_end_are_close_or_the_wrong_way_round_no_share_is_given(oracle, tmp_path):
    table = summarise(report(tmp_path, oracle=oracle)).recovered
    assert len(table)
    at = table[table.attack == "pgd20"]
    assert at.recovered.isna().all()
    if oracle == 8:
        assert (at.gap_low > 0).all()
        assert at.gap.tolist() == pytest.approx([8 / 200] * 2)  # beyond doubt, but below five points


def test_a_share_is_not_cut(tmp_path):
    folder = report(tmp_path, oracle=0.24)
    assert summarise(folder).recovered.recovered.max() > 1


def test_the_page_and_the_folder_show_shares_only_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())
    build(report(tmp_path / "with"))
    build(make_report(tmp_path / "without", attacked={"epsilons": [0.15]}))
    assert "recovered share" in (tmp_path / "with" / "index.html").read_text()
    columns = list(pd.read_csv(tmp_path / "with" / "recovered.csv").columns)
    assert columns[:6] == ["method", "method_note", "lower", "lower_note", "oracle", "oracle_note"]
    assert "Recovered share" not in (tmp_path / "without" / "index.html").read_text()
    assert not (tmp_path / "without" / "recovered.csv").exists()
    assert "teacher" not in (tmp_path / "without" / "leaderboard.md").read_text()


def test_the_interval_of_a_difference_is_that_of_resampled_images():
    draw = np.random.default_rng(0)
    first, second = (draw.random((1, 400)) < share for share in (0.8, 0.6))
    found = difference_interval(first.astype(float), second.astype(float))
    differences = first[0].astype(float) - second[0]
    half = 1.96 * differences.std() / 20
    assert found.estimate == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=0.01)
    nothing = difference_interval(np.full((1, 3), np.nan), np.zeros((1, 3)))
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()


def test_a_data_set_that_is_to_be_downloaded_is_there_before_its_labels_are_looked_at(atbench, monkeypatch, capsys):
    asked = []

    def load(name, root, *, download=False, **_):
        asked.append(download)
        raise BadInput(f"{name} could not be downloaded")

    monkeypatch.setattr("benchmark.commands.load_data", load)
    assert atbench("run", "digits-common", "--dataset", "mnist", "--methods", "rst", "--download") == 2
    assert asked == [True]
    assert "mnist could not be downloaded" in capsys.readouterr().err
