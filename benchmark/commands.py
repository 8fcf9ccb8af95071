"""What the commands do, once their words are understood: run, train, evaluate."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark.data import load as load_data
from benchmark.display import Display
from benchmark.errors import BadInput
from benchmark.evaluation import RANKING_ONLY, jobs
from benchmark.experiment import Experiment, plan
from benchmark.references import references, with_teachers
from benchmark.results.evidence import card_path, escaped, evidence_folder, failure_path, finished_parts
from benchmark.runner import Outcome, workers
from benchmark.runner import run as run_tasks
from benchmark.storage import locked, read_yaml, write_text, write_yaml
from benchmark.suite import Suite, load
from benchmark.tasks import Places, Task, expected_parts
from benchmark.training import CARD, failed_card


def run(
    suite_name: str,
    *,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    changes: Mapping[str, Any],
    output: Path | None,
    checkpoints: Path,
    data_root: Path | None,
    download: bool,
    processes: int | None,
) -> int:
    """Train and attack a suite's experiments, then make its report; returns the exit code.

    0: everything is there. 1: a method failed, the others went on. 2: the same, but a person's input was the reason.
    """
    whole = load(suite_name, changes)
    suite = _reduced(whole, methods, seeds)
    experiments = plan(suite, data_root)
    experiments += references(experiments, whole, data_root)
    list(jobs(suite.evaluation, ranked=True))  # so that a misspelled attack is told before anything is written
    report = output or Path("reports") / escaped(suite.name)
    places = Places(checkpoints, report, data_root, download)
    tests = {fold: _test_images(suite, fold, places) for fold in suite.dataset.folds}
    _check_names(experiments)
    with locked(report):
        _keep_suite(report, suite)
        tasks = [task for experiment in experiments for task in _unfinished(experiment, suite, places, tests)]
        console = Console(stderr=True)
        if not tasks:
            console.out(f"everything in {suite.name} is finished already", highlight=False)
        with Display(suite.name, len(tasks), console) as display:
            outcomes = run_tasks(tasks, places, suite.evaluation, processes=processes or workers(), watcher=display)
        _keep_failures(outcomes, places)
        _report(report, console)
    return _exit_code(outcomes, console, report)


def train(
    method: str,
    suite_name: str,
    *,
    seed: int,
    changes: Mapping[str, Any],
    checkpoints: Path,
    data_root: Path | None,
    download: bool,
) -> int:
    """Train one method in a suite's setting and say where its weights are; returns the exit code."""
    suite = load(suite_name, changes)
    own = suite.methods.get(method, suite.methods.get(method.partition("@")[0]))
    suite = dataclasses.replace(suite, methods={method: own}, seeds=[seed], dataset=_one_fold(suite))
    (experiment,) = plan(suite, data_root)
    _test_images(suite, experiment.fold, Places(checkpoints, checkpoints, data_root, download))
    folder = checkpoints / experiment.name
    places = Places(checkpoints, folder, data_root, download)
    console = Console(stderr=True)
    left = [one for one in with_teachers([experiment]) if not (checkpoints / one.name / CARD).is_file()]
    tasks = [Task(one) for one in left if not (folder / CARD).is_file()]
    with Display(method, len(tasks), console) as display:
        outcomes = run_tasks(tasks, places, suite.evaluation, processes=1, watcher=display)
    for task, outcome in outcomes.items():
        if outcome.error:
            write_text(checkpoints / task.experiment.name / "failure.txt", outcome.trace)
    if not any(outcome.error for outcome in outcomes.values()):
        for name, kept in read_yaml(folder / CARD)["weights"].items():
            score = ", ".join(f"{key.replace('_', ' ')} {kept[key]:.3f}" for key in kept if key.startswith("held_out"))
            console.out(f"{folder / name}.safetensors  epoch {kept['epoch']}  {score}", highlight=False)
    return _exit_code(outcomes, console, folder)


def _one_fold(suite: Suite) -> Any:
    return dataclasses.replace(suite.dataset, folds=suite.dataset.folds[:1])


def _reduced(suite: Suite, methods: Sequence[str] | None, seeds: Sequence[int] | None) -> Suite:
    """Cut a suite down to some methods and seeds; methods it does not list are added with their defaults."""
    if methods is not None:
        own = {method: suite.methods.get(method, suite.methods.get(method.partition("@")[0])) for method in methods}
        suite = dataclasses.replace(suite, methods=own)
    return suite if seeds is None else dataclasses.replace(suite, seeds=list(seeds))


def _check_names(experiments: Sequence[Experiment]) -> None:
    """Name them all, so that labels which cannot be chosen are told before anything is written."""
    for experiment in experiments:
        _ = experiment.name


def _test_images(suite: Suite, fold: int, places: Places) -> int:
    """Load the data once here, so that a missing set is told before a worker starts and is downloaded once."""
    splits = load_data(
        suite.dataset.name,
        places.data_root,
        download=places.download,
        fold=fold,
        train_images=suite.dataset.train_images,
        validation_images=suite.dataset.validation_images,
    )
    return len(splits.test)


def _keep_suite(report: Path, suite: Suite) -> None:
    """Write the suite beside its results; what was measured under other settings is never mixed in.

    Raises:
        BadInput: when the folder holds results of a suite that differs in anything but methods, seeds and folds.
    """
    path, now = report / "suite.yaml", suite.as_plain()
    if path.is_file() and _holds_results(report):
        before = read_yaml(path)
        key = _first_difference(before, now)
        if key is not None:
            raise BadInput(
                f"{report} holds results measured with another {key}: choose another --output, or delete that folder"
            )
        now["methods"] = {**before["methods"], **now["methods"]}
        now["seeds"] = sorted({*before["seeds"], *now["seeds"]})
        now["dataset"]["folds"] = sorted({*before["dataset"]["folds"], *now["dataset"]["folds"]})
    write_yaml(path, now)


def _holds_results(report: Path) -> bool:
    """Whether anything was trained or measured for the report: a run refused or stopped before that binds nobody."""
    return any(any((report / kind).glob("*")) for kind in ("experiments", "evidence"))


def _first_difference(before: Any, now: Any, key: str = "") -> str | None:
    """Name the first setting in which two suites differ; adding methods, seeds and folds is no difference."""
    if key in (".seeds", ".dataset.folds", ".title", ".note"):
        return None
    if key in (".dataset.labels", ".dataset.label_choice") and before is None:  # no row there learned without labels
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        both = [name for name in now if name in before] if key == ".methods" else list({**before, **now})
        found = (_first_difference(before.get(name), now.get(name), f"{key}.{name}") for name in both)
        return next((name for name in found if name is not None), None)
    return None if before == now else key.removeprefix(".")


def _unfinished(experiment: Experiment, suite: Suite, places: Places, tests: Mapping[int, int]) -> list[Task]:
    """List what is left to do: the training, and each attack of which a part is missing."""
    settings = suite.evaluation
    trained = (places.checkpoints / experiment.name / CARD).is_file()
    tasks = [] if trained and _card_is_kept(experiment, places) else [Task(experiment)]
    missing: set[str] = set()
    for checkpoint in settings.checkpoints:
        for job in jobs(settings, ranked=checkpoint == settings.ranked_checkpoint):
            parts = finished_parts(evidence_folder(places.report, experiment.name, checkpoint, *job))
            # Verdicts without the weights they were measured on are looked at again by a task, which knows the weights.
            if not trained or len(parts) < expected_parts(settings, tests[experiment.fold]):
                missing.add(job.attack)
    dear = [name for name in settings.attacks if name in RANKING_ONLY]
    cheap = ["clean", *(name for name in settings.attacks if name not in RANKING_ONLY)]
    for attacks in (cheap, *([name] for name in dear)):  # a task of its own for each dear attack
        left = tuple(name for name in attacks if name in missing)
        tasks += [Task(experiment, left)] if left else []
    return tasks


def _card_is_kept(experiment: Experiment, places: Places) -> bool:
    path = card_path(places.report, experiment.name)
    return path.is_file() and read_yaml(path).get("status") == "done"


def _keep_failures(outcomes: Mapping[Task, Outcome], places: Places) -> None:
    """Write each failure's traceback and card where the report looks for them."""
    for task, outcome in outcomes.items():
        if outcome.error:
            name = task.experiment.name
            write_text(failure_path(places.report, name), outcome.trace)
            with contextlib.suppress(OSError, BadInput):  # that folder may be what failed
                write_text(places.checkpoints / name / "failure.txt", outcome.trace)
            error = f"{', '.join(task.attacks)}: {outcome.error}" if task.attacks else outcome.error
            write_yaml(card_path(places.report, name), failed_card(task.experiment, error))


def _report(folder: Path, console: Console) -> None:
    from benchmark.report import build

    build(folder)
    console.out(f"report: {folder / 'index.html'}", highlight=False)


def _exit_code(outcomes: Mapping[Task, Outcome], console: Console, folder: Path) -> int:
    bad = {task: outcome for task, outcome in outcomes.items() if outcome.error}
    for task, outcome in bad.items():
        console.out(f"failed: {task.label}: {outcome.error}", highlight=False)
    if not bad:
        return 0
    console.out(f"tracebacks are under {folder}; the same command tries again what failed", highlight=False)
    return 2 if all(outcome.bad_input for outcome in bad.values()) else 1
