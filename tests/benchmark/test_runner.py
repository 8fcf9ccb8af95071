"""Tasks in worker processes: their order, and what becomes of the others when one of them dies."""

import os
import signal
from pathlib import Path

import pytest

from benchmark import runner, suite
from benchmark.experiment import plan
from benchmark.results.evidence import read
from benchmark.runner import Watcher, run
from benchmark.tasks import Places, Task
from benchmark.training import CARD, RESUME

SMALL = {
    "recipe.epochs": 2,
    "dataset.train_images": 64,
    "dataset.validation_images": 20,
    "inner_steps": 1,
    "evaluation.images": 10,
    "evaluation.batch_size": 5,
    "evaluation.attacks": ["pgd20"],
    "evaluation.epsilons": [0.1],
    "evaluation.ranked_at": [0.1],
}


class Notes(Watcher):
    """Writes down who started and ended, and lets a test act on news; all in the process that runs the tasks."""

    def __init__(self, act=lambda task, what, done: None):
        self.lines, self.act = [], act

    def started(self, task):
        self.lines.append(("started", task.experiment.method, bool(task.attacks)))

    def progressed(self, task, what, done, total):
        self.act(task, what, done)

    def ended(self, task, outcome):
        self.lines.append(("ended", task.experiment.method, bool(task.attacks)))

    def at(self, *line):
        return self.lines.index(line)


def tasks_of(methods, **changes):
    """Training and attack of each method, and the settings of the attack."""
    chosen = suite.load("quickstart", SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    experiments = plan(suite.load("quickstart", chosen.as_plain() | {"methods": methods}))
    return [task for e in experiments for task in (Task(e), Task(e, ("clean", "pgd20")))], chosen.evaluation


def holder_of(folder: Path) -> int:
    """Who trains in ``folder``: the process that keeps its lock open."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if any(link.readlink() == folder / ".lock" for link in (entry / "fd").iterdir()):
                    return int(entry.name)
            except OSError:
                continue
    raise LookupError(f"nobody holds {folder}")


def outcomes(ended):
    return {(task.experiment.method, bool(task.attacks)): outcome for task, outcome in ended.items()}


@pytest.mark.parametrize("processes", [1, 2])
def test_attacks_wait_for_their_training_and_cheap_ones_go_last(processes, tmp_path):
    tasks, settings = tasks_of({"natural": None, "fast_at": None})
    places, notes = Places(tmp_path / "checkpoints", tmp_path / "report"), Notes()
    ended = run(tasks, places, settings, processes=processes, watcher=notes)
    assert len(ended) == 4
    assert not any(outcome.error for outcome in ended.values())
    for method in ("natural", "fast_at"):
        assert notes.at("ended", method, False) < notes.at("started", method, True)
    if processes == 1:  # the last method of a suite first: natural training is short and fills the end
        assert [line[1:] for line in notes.lines if line[0] == "started"] == [
            ("fast_at", False),
            ("natural", False),
            ("fast_at", True),
            ("natural", True),
        ]
    verdicts = read(tmp_path / "report")
    assert len(verdicts) == 2 * 2 * 2 * 10  # methods, checkpoints, clean and pgd20, images


def test_one_that_fails_and_one_that_is_killed_do_not_stop_the_others(tmp_path):
    tasks, settings = tasks_of({"natural": None, "pgd_at": None, "trades": {"beta": 1e38}}, recipe__epochs=30)
    places = Places(tmp_path / "checkpoints", tmp_path / "report")
    killed = []

    def kill(task, what, done):
        if task.experiment.method == "pgd_at" and done == 2 and not killed:
            killed.append(holder_of(places.checkpoints / task.experiment.name))
            os.kill(killed[0], signal.SIGKILL)

    ended = outcomes(run(tasks, places, settings, processes=2, watcher=Notes(kill)))
    assert killed
    assert set(ended) == {("natural", False), ("natural", True), ("pgd_at", False), ("trades", False)}
    assert not ended["natural", True].error
    assert ended["pgd_at", False].error.startswith("the worker process was killed by SIGKILL")
    assert ended["trades", False].error.startswith("FloatingPointError: the training loss became nan")
    assert "Traceback (most recent call last)" in ended["trades", False].trace
    assert not any(outcome.bad_input for outcome in ended.values())

    (pgd_at,) = [task for task in tasks if task.experiment.method == "pgd_at" and not task.attacks]
    folder = places.checkpoints / pgd_at.experiment.name
    assert (folder / RESUME).is_file()  # which is taken up by the next run
    told = []
    again = run([pgd_at], places, settings, processes=1, watcher=Notes(lambda task, what, done: told.append(done)))
    assert not again[pgd_at].error
    assert (folder / CARD).is_file()
    assert told[0] > 2


def test_input_that_a_person_can_mend_is_told_apart_from_a_failure(tmp_path):
    tasks, settings = tasks_of({"natural": None})
    places = Places(tmp_path / "checkpoints", tmp_path / "report")
    folder = places.checkpoints / tasks[0].experiment.name
    folder.mkdir(parents=True)
    (folder / RESUME).write_bytes(b"half a file")
    ended = run(tasks, places, settings, processes=1)
    assert list(ended) == [tasks[0]]  # the attack was not begun
    assert ended[tasks[0]].bad_input
    assert str(folder / RESUME) in ended[tasks[0]].error


def test_two_who_train_the_same_experiment_do_not_write_over_each_other(tmp_path):
    (training, _), settings = tasks_of({"natural": None}, recipe__epochs=5)
    places = Places(tmp_path / "checkpoints", tmp_path / "report")
    ended = run([training, Task(training.experiment)], places, settings, processes=2)
    errors = sorted(outcome.error for outcome in ended.values())
    assert errors[0] == ""
    assert errors[1] == "" or "another atbench is writing to" in errors[1]


def test_a_worker_sees_only_its_own_gpu_of_those_that_we_were_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [runner.visible(gpu) for gpu in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert [runner.visible(gpu) for gpu in range(2)] == ["3", "GPU-abc"]


def test_there_is_one_worker_for_each_core_that_we_may_use(monkeypatch):
    monkeypatch.setattr(runner, "devices", lambda: 0)
    assert runner.workers() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(runner, "devices", lambda: 8)
    assert runner.workers() == 8
