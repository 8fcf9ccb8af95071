"""The whole way from a suite to its tables: killed, stopped, failing, repeated."""

import fcntl
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmark import suite
from benchmark.storage import locked

REDUCED = [
    *("recipe.epochs=3", "inner_steps=2", "dataset.train_images=160", "dataset.validation_images=30"),
    "dataset.labels=50",
    *(
        "evaluation.images=20",
        "evaluation.batch_size=10",
        "evaluation.epsilons=[0.15, 0.5]",
        "evaluation.ranked_at=[0.5]",
    ),
]
RESULTS = ("accuracy.csv", "autoattack_stages.csv")  # the other tables hold seconds


def words(folder, *changes, suite="quickstart"):
    places = ["--output", str(folder / "report"), "--checkpoints", str(folder / "checkpoints")]
    return ["run", suite, *places, "--workers", "2", "--set", *REDUCED, *changes]


def start(folder, *changes):
    """Give the command to a process of its own, as a person would."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    without_figures = "import benchmark.report.folder as f; f.FIGURES = (); from benchmark.cli import main; main()"
    command = [sys.executable, "-c", without_figures, *words(folder, *changes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(process, condition):
    """Look again until ``condition`` holds; a process that ends before it does is a failure."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def descendants(pid):
    """All processes below ``pid``, from /proc."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(rest[1]), []).append(int(number))
    found, below = [], list(children.get(pid, []))
    while below:
        found.append(below.pop())
        below += children.get(found[-1], [])
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def assert_gone(pids):
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "an orphan goes on working"
        time.sleep(0.05)


def results(folder):
    return {name: (folder / "report" / name).read_bytes() for name in RESULTS}


def stamps(folder):
    kept = [*(folder / "checkpoints").rglob("*"), *(folder / "report" / "evidence").rglob("*")]
    return {path: path.stat().st_mtime_ns for path in kept if path.suffix in (".parquet", ".safetensors", ".yaml")}


@pytest.fixture
def undisturbed(tmp_path_factory, atbench):
    """A reduced quickstart that nothing befell; made once, also where pytest works in several processes."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "undisturbed"
    folder.mkdir(exist_ok=True)
    with (folder / "making").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            assert atbench(*words(folder)) == 0
            (folder / "made").touch()
    return folder


@pytest.fixture
def copied(undisturbed, tmp_path):
    for part in ("report", "checkpoints"):
        shutil.copytree(undisturbed / part, tmp_path / part)
    return tmp_path


def test_a_reduced_quickstart_leaves_tables_of_all_methods_attacks_and_radii(undisturbed):
    accuracy = pd.read_csv(undisturbed / "report" / "accuracy.csv")
    assert set(accuracy.method) == set(suite.load("quickstart").methods)
    expected = {("clean", 0.0)} | {(attack, e) for attack in ("pgd20", "cw20", "worst_case") for e in (0.15, 0.5)}
    for (_, checkpoint), rows in accuracy.groupby(["method", "checkpoint"]):
        found = set(zip(rows.attack, rows.epsilon, strict=True))
        assert found == expected | ({("autoattack", 0.5)} if checkpoint == "last" else set())
        assert (rows.images == 20).all()
    board = pd.read_csv(undisturbed / "report" / "leaderboard.csv")
    assert set(board.method) == set(suite.load("quickstart").methods)
    assert set(board.status) == {"done"}
    assert not board.credibility.str.contains("not probed").any()  # the best checkpoints neither
    passes = board[board.checkpoint == "last"].set_index("method").forward_passes.to_dict()
    assert 3 < passes.pop("fat") <= 9  # as many as the images need
    assert passes == {
        "natural": 3,
        "pgd_at": 9,
        "trades": 15,
        "mart": 12,
        "free_at": 4,
        "fast_at": 6,
        "avmixup": 9,
    }


@pytest.mark.parametrize("seed", [0])
def test_killed_twice_and_started_again_a_run_gives_the_same_bytes_as_an_undisturbed_one(seed, tmp_path, undisturbed):
    moment = random.Random(seed)

    def trainings():
        return len(list((tmp_path / "checkpoints").glob("*/resume.ckpt")))

    def parts():
        return len(list((tmp_path / "report" / "evidence").rglob("part-*.parquet")))

    enough = moment.randint(5, 40)
    for condition in (lambda: trainings() > 0, lambda: parts() > enough):
        process = start(tmp_path)
        wait_until(process, condition)
        time.sleep(moment.uniform(0, 0.2))  # in the midst of whatever comes next
        below = descendants(process.pid)
        assert len(below) >= 2  # the server that workers are forked from, and a worker
        process.kill()
        process.wait()
        process.stderr.close()
        assert_gone(below)
        assert not (tmp_path / "report" / "accuracy.csv").exists()
    process = start(tmp_path)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert results(tmp_path) == results(undisturbed)
    assert not list(tmp_path.rglob("resume.ckpt"))


def test_a_stopped_run_ends_at_once_with_all_its_workers(tmp_path):
    process = start(tmp_path, "recipe.epochs=100000")
    wait_until(process, lambda: list((tmp_path / "checkpoints").glob("*/resume.ckpt")))
    below = descendants(process.pid)
    assert len(below) >= 2
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert_gone(below)
    with locked(tmp_path / "report"):  # free for the next run
        pass


def test_one_seed_gives_the_same_bytes_twice_and_another_seed_others(undisturbed, tmp_path, atbench):
    folders = [tmp_path / "again", tmp_path / "other"]
    assert atbench(*words(folders[0]), "--methods", "fast_at") == 0
    assert atbench(*words(folders[1]), "--methods", "fast_at", "--seeds", 1) == 0
    again, other, first = (pd.read_csv(f / "report" / "accuracy.csv") for f in (*folders, undisturbed))
    first = first[first.method == "fast_at"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, first)
    assert not (other.accuracy == first.accuracy).all()
    digests = [
        [
            kept["sha256"]
            for kept in yaml.safe_load(next(f.glob("checkpoints/fast_at*/card.yaml")).read_text())["weights"].values()
        ]
        for f in (undisturbed, *folders)
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]).isdisjoint(digests[2])


def test_a_second_run_does_nothing(copied, atbench, capsys):
    before, tables = stamps(copied), results(copied)
    assert atbench(*words(copied)) == 0
    assert "everything in quickstart is finished already" in capsys.readouterr().err
    assert stamps(copied) == before
    assert results(copied) == tables


def test_only_what_is_missing_is_done_again(copied, atbench, capsys, undisturbed):
    evidence = copied / "report" / "evidence"
    lost = [
        *evidence.glob("mart*/best/cw20@0.15/part-00001.parquet"),
        *evidence.glob("mart*/last/autoattack@0.5/*-00000.parquet"),
    ]
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    before = stamps(copied)
    assert atbench(*words(copied)) == 0
    said = capsys.readouterr().err
    assert "mart seed 0: cw20: done" in said
    assert "mart seed 0: autoattack: done" in said
    assert "[2/2]" in said
    assert before.items() <= stamps(copied).items()
    assert results(copied) == results(undisturbed)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("recipe.epochs=4", "recipe.epochs"),
        ("evaluation.seed=1", "evaluation.seed"),
        ("methods.trades.beta=3", "methods.trades"),
        ("threat.norm=l2", "threat.norm"),
    ],
)
def test_another_setting_is_refused_in_a_folder_that_holds_results(change, key, undisturbed, atbench, capsys):
    before = (undisturbed / "report" / "suite.yaml").read_bytes()
    assert atbench(*words(undisturbed, change)) == 2
    said = capsys.readouterr().err
    assert f"holds results measured with another {key}" in said
    assert "--output" in said
    assert (undisturbed / "report" / "suite.yaml").read_bytes() == before


def test_two_runs_do_not_write_to_one_report(undisturbed, atbench, capsys):
    with locked(undisturbed / "report"):
        assert atbench(*words(undisturbed)) == 2
    assert "another atbench is writing to" in capsys.readouterr().err


def test_a_run_that_was_refused_does_not_bind_the_next(tmp_path, atbench, capsys):
    assert atbench(*words(tmp_path, "evaluation.attacks=[pgd]")) == 2
    assert "there is no attack 'pgd'" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "suite.yaml").write_text(
        "name: another\n"
    )  # of a run that was stopped before its first result
    assert atbench(*words(tmp_path, "evaluation.attacks=[pgd20]"), "--methods", "natural") == 0


def test_a_failure_is_recorded_with_its_traceback_and_the_others_go_on(tmp_path, atbench, capsys):
    suite = tmp_path / "mine.yaml"
    methods = {"natural": None, "trades": {"beta": 1e38}}
    suite.write_text(yaml.safe_dump({"based_on": "quickstart", "name": "mine", "methods": methods}))
    command = words(tmp_path, "evaluation.attacks=[pgd20]", suite=str(suite))
    for others in (True, False):  # the second time only what failed is tried again, and fails again
        assert atbench(*command) == 1
        said = capsys.readouterr().err
        assert "failed: trades seed 0: training: FloatingPointError: the training loss became nan" in said
        assert ("natural seed 0: clean, pgd20: done" in said) == others
    report = tmp_path / "report"
    (trace,) = (report / "failures").glob("trades-*.txt")
    assert "Traceback (most recent call last)" in trace.read_text()
    assert "FloatingPointError" in trace.read_text()
    (own,) = (tmp_path / "checkpoints").glob("trades-*/failure.txt")
    assert own.read_text() == trace.read_text()
    board = pd.read_csv(report / "leaderboard.csv").set_index("method")
    assert board.status["trades"] == "failed"
    assert "FloatingPointError" in board.status_note["trades"]
    assert board.clean["natural"].max() > 0.5
    assert "FloatingPointError" in (report / "index.html").read_text()


def test_what_failed_and_then_went_well_leaves_no_trace_of_its_failure(tmp_path, atbench, capsys):
    command = [*words(tmp_path, "evaluation.attacks=[pgd20]"), "--methods", "natural"]
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    assert atbench(*command) in (1, 2)
    assert "failed: natural seed 0: training" in capsys.readouterr().err
    (tmp_path / "checkpoints").unlink()
    assert atbench(*command) == 0
    assert not list(tmp_path.rglob("failure.txt"))
    assert not list((tmp_path / "report" / "failures").iterdir())
    assert set(pd.read_csv(tmp_path / "report" / "leaderboard.csv").status) == {"done"}


def test_a_missing_data_set_is_told_before_anything_starts(tmp_path, atbench, capsys):
    assert atbench(*words(tmp_path, "dataset.name=cifar10"), "--data-root", tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"atbench: cifar10 is not in {tmp_path}")
    for way in ("--data-root", "--download", "atbench run quickstart"):
        assert way in said
    assert not (tmp_path / "report").exists()
