"""What the commands do, once their words are understood: run, train, evaluate."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark import own_parts, published, surrogate
from benchmark.credibility.run import Depth
from benchmark.credibility.saved import SavedTask, looks
from benchmark.credibility.task import ProbeTask, TransferTask, transfers
from benchmark.data import load as load_data
from benchmark.devices import Devices
from benchmark.display import Display
from benchmark.errors import BadInput
from benchmark.evaluation import jobs
from benchmark.experiment import Experiment, plan
from benchmark.generalization import way_of
from benchmark.loggers import check as check_loggers
from benchmark.names import check_names
from benchmark.references import references, with_teachers
from benchmark.rejection import evaluation_of
from benchmark.results import manifest
from benchmark.results.alarms import sentences
from benchmark.results.cards import read_cards
from benchmark.results.curves import curve_path, is_curve
from benchmark.results.evidence import card_path, escaped, evidence_folder, failure_path
from benchmark.results.rejection import CONFIDENCE
from benchmark.results.rows import method_of
from benchmark.runner import Outcome, workers
from benchmark.runner import run as run_tasks
from benchmark.storage import locked, read_yaml, write_text, write_yaml
from benchmark.suite import Suite, load
from benchmark.surrogate import SurrogateTask, SurrogateTraining
from benchmark.sweep import RANKING_ONLY, finished_parts
from benchmark.tasks import Places, Task, expected_parts
from benchmark.training import CARD, failed_card
from benchmark.unseen import UnseenTask, unseen_tasks
from benchmark.user_code import shown

AfterTraining = SavedTask | TransferTask | SurrogateTraining | SurrogateTask | UnseenTask


def run(
    suite_name: str,
    *,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    changes: Mapping[str, Any],
    output: Path | None,
    checkpoints: Path,
    devices: Devices,
    data_root: Path | None,
    download: bool,
    processes: int | None,
    own: Sequence[str] = (),
    against: Sequence[str] | None = None,
    dataset: str | None = None,
    network: str | None = None,
    loggers: tuple[str, ...] = (),
    credibility: Depth = "cheap",
) -> int:
    """Train, attack and probe a suite's experiments, then make its report; returns the exit code.

    0: everything is there. 1: a method failed, the others went on. 2: the same, but a person's input was the reason.

    Args:
        own, against, dataset, network: see :mod:`benchmark.own_parts`.
        credibility: how thoroughly each network is probed, see :mod:`benchmark.credibility.run`.
    """
    check_loggers(loggers)
    whole = _load(suite_name, changes, dataset, network)
    suite = own_parts.with_methods(whole, methods, own, against)
    suite = suite if seeds is None else dataclasses.replace(suite, seeds=list(seeds))
    report = output or Path("reports") / escaped(suite.name)
    places = Places(checkpoints, report, data_root, download, devices, loggers)
    _fetch(suite, places)
    experiments = plan(suite, data_root)
    experiments += references(experiments, whole, data_root)
    list(jobs(suite.evaluation, ranked=True))  # so that a misspelled attack is told before anything is written
    tests = {fold: _test_images(suite, fold, places) for fold in suite.dataset.folds}
    check_names(experiments, report)
    devices.share(suite.recipe.batch_size)
    devices.check()
    if devices.node:
        return _help_to_train(experiments, suite, places)
    with locked(report):
        _keep_suite(report, suite)
        manifest.forget_missing(report)
        tasks = [
            task for experiment in experiments for task in _unfinished(experiment, suite, places, tests, credibility)
        ]
        probes = [task for task in tasks if isinstance(task, ProbeTask)]
        manifest.forget(report, [path for task in probes for path in task.left(places, suite.evaluation)])
        console = Console(stderr=True)
        if not tasks:
            console.out(f"everything in {suite.name} is finished already", highlight=False)
        at_once = processes or workers()
        with Display(suite.name, len(tasks), console) as display:
            outcomes = run_tasks(tasks, places, suite.evaluation, processes=at_once, watcher=display)
        after: dict[str, Callable[[], Sequence[AfterTraining]]] = {
            "saved pictures": lambda: looks(experiments, places, suite.evaluation),
            "surrogates": lambda: surrogate.trainings(experiments, suite, places),
            "pictures of surrogates": lambda: surrogate.showings(experiments, suite, places, tests),
        }
        if credibility == "full":  # everything is trained now that will be
            after["transfer"] = lambda: transfers(experiments, places, suite.evaluation)
        after["unseen attacks"] = lambda: unseen_tasks(experiments, places, suite.evaluation, tests)
        for phase, still_to_do in after.items():
            if left := still_to_do():
                manifest.forget(report, [path for task in left for path in task.left(places, suite.evaluation)])
                with Display(f"{suite.name}: {phase}", len(left), console) as display:
                    outcomes |= run_tasks(left, places, suite.evaluation, processes=at_once, watcher=display)
        _keep_failures(outcomes, places)
        _report(report, console)
    return _exit_code(outcomes, console, report)


def train(
    method: str | None,
    suite_name: str | None = None,
    *,
    recipe: str | None = None,
    dry: bool = False,
    seed: int,
    changes: Mapping[str, Any],
    checkpoints: Path,
    devices: Devices,
    data_root: Path | None,
    download: bool,
    dataset: str | None = None,
    network: str | None = None,
    loggers: tuple[str, ...] = (),
) -> int:
    """Train one method in a suite's setting, or a recipe's, and say where its weights are; returns the exit code.

    Args:
        recipe: in place of ``method`` and ``suite_name``.
        dry: only try it out: :mod:`benchmark.dry`.
    """
    check_loggers(loggers)
    name, method = published.what_to_train(method, suite_name, recipe)
    suite = own_parts.with_methods(_load(name, changes, dataset, network), [method])
    suite = dataclasses.replace(suite, seeds=[seed], dataset=_one_fold(suite))
    places = Places(checkpoints, checkpoints, data_root, download, devices, loggers)
    _fetch(suite, places)
    (experiment,) = plan(suite, data_root)
    if dry:
        from benchmark.dry import dry_run

        Console().out(f"{name}\n{dry_run(experiment, suite.evaluation, data_root)}", highlight=False)
        return 0
    devices.share(suite.recipe.batch_size)
    devices.check()
    _test_images(suite, experiment.fold, places)  # before the name, which may depend on the labels of the data
    folder = checkpoints / experiment.name
    places = dataclasses.replace(places, report=folder)
    console = Console(stderr=True)
    left = [] if (folder / CARD).is_file() else with_teachers([experiment])
    tasks = [Task(one) for one in left if not (checkpoints / one.name / CARD).is_file()]
    with Display(experiment.row, len(tasks), console) as display:
        outcomes = run_tasks(tasks, places, suite.evaluation, processes=1, watcher=display)
    for task, outcome in outcomes.items():
        if outcome.error:
            write_text(checkpoints / task.experiment.name / "failure.txt", outcome.trace)
    if not any(outcome.error for outcome in outcomes.values()):
        card = read_yaml(folder / CARD)
        for sentence in sentences([card]):
            console.out(f"alarm: {sentence}", highlight=False)
        for name, kept in card["weights"].items():
            score = ", ".join(f"{key.replace('_', ' ')} {kept[key]:.3f}" for key in kept if key.startswith("held_out"))
            console.out(f"{folder / name}.safetensors  epoch {kept['epoch']}  {score}", highlight=False)
    return _exit_code(outcomes, console, folder)


def _help_to_train(experiments: Sequence[Experiment], suite: Suite, places: Places) -> int:
    """Take part in the trainings, in the order of the first machine, which does all the rest; returns the exit code."""
    tasks = [
        Task(experiment) for experiment in experiments if not (places.checkpoints / experiment.name / CARD).is_file()
    ]
    console = Console(stderr=True)
    with Display(suite.name, len(tasks), console) as display:
        outcomes = run_tasks(tasks, places, suite.evaluation, processes=places.devices.devices, watcher=display)
    return _exit_code(outcomes, console, places.checkpoints)


def _one_fold(suite: Suite) -> Any:
    return dataclasses.replace(suite.dataset, folds=suite.dataset.folds[:1])


def _load(name: str, changes: Mapping[str, Any], dataset: str | None, network: str | None) -> Suite:
    """Read a suite with another data set or network in place of its own, and changed; changes have the last word."""
    if dataset is None and network is None:
        return load(name, changes)
    return load(name, {**own_parts.in_place_of(load(name), dataset, network), **changes})


def _fetch(suite: Suite, places: Places) -> None:
    """Download the data set where that was asked for: a plan with hidden labels looks at those of its images."""
    if places.download:
        _test_images(suite, suite.dataset.folds[0], places)


def _test_images(suite: Suite, fold: int, places: Places) -> int:
    """Load the data once here, so that a missing set is told before a worker starts and is downloaded once."""
    splits = load_data(
        suite.dataset.name,
        places.data_root,
        download=places.download,
        fold=fold,
        train_images=suite.dataset.train_images,
        validation_images=suite.dataset.validation_images,
        code=suite.dataset.code,
    )
    return len(splits.test)


def _keep_suite(report: Path, suite: Suite) -> None:
    """Write the suite beside its results; what was measured under other settings is never mixed in.

    Raises:
        BadInput: when the folder holds results of a suite that differs in anything but methods, seeds and folds.
    """
    path, now = report / "suite.yaml", suite.as_plain()
    before = read_yaml(path) if path.is_file() and _holds_results(report) else None
    if before is not None:
        _forget_failures_of_older_code(report, before, now)
        key = _first_difference(before, now)
        if key is not None:
            raise BadInput(
                f"{report} holds results measured with another {key}: choose another --output, or delete that folder"
            )
        now["methods"] = {**before["methods"], **now["methods"]}
        now["seeds"] = sorted({*before["seeds"], *now["seeds"]})
        now["dataset"]["folds"] = sorted({*before["dataset"]["folds"], *now["dataset"]["folds"]})
        if own := {**before.get("own", {}), **now.get("own", {})}:
            now["own"] = own
    write_yaml(path, now)


def _holds_results(report: Path) -> bool:
    """Whether anything was trained or measured for the report: a run refused or stopped before that binds nobody."""
    return any(any((report / kind).glob("*")) for kind in ("experiments", "evidence"))


def _forget_failures_of_older_code(report: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Drop what failed with a user's file that was mended since, here and in ``before``; what was measured stays."""
    shared = [part for part in ("dataset", "network") if _mended(before[part].get("code"), now[part].get("code"))]
    own = {method for method, code in now.get("own", {}).items() if _mended(before.get("own", {}).get(method), code)}
    cards = [(path, read_yaml(path)) for path in (report / "experiments").glob("*.yaml")]
    for method in dict.fromkeys(map(method_of, before["methods"])) if shared else own:
        rows = [(path, card) for path, card in cards if method_of(card["method"]) == method]
        failed = [(path, card["experiment"]) for path, card in rows]
        if any(card["status"] == "done" for _, card in rows) or any(
            (report / "evidence" / escaped(name)).exists() for _, name in failed
        ):
            return
        for path, name in failed:
            path.unlink()
            failure_path(report, name).unlink(missing_ok=True)
        if method in own:
            before["own"][method] = now["own"][method]
    for part in shared:
        before[part]["code"] = now[part]["code"]


def _mended(before: dict[str, str] | None, now: dict[str, str] | None) -> bool:
    return before is not None and now is not None and before["sha256"] != now["sha256"]


def _first_difference(before: Any, now: Any, key: str = "") -> str | None:
    """Name the first setting in which two suites differ; adding methods, seeds and folds is no difference."""
    if key in (".seeds", ".dataset.folds", ".title", ".note", ".against", ".evaluation.sweep", ".curves"):
        return None
    if key == ".evaluation.surrogate" and before is None:  # nobody was shown pictures of one yet
        return None
    if key == ".own":  # left out where there is none
        before, now = before or {}, now or {}
    if key in (".dataset.labels", ".dataset.label_choice") and before is None:  # no row there learned without labels
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        if "sha256" in before and "sha256" in now:  # a user's file, wherever it lies
            return f"version of {shown(now['path'])}" if _mended(before, now) else None
        both = [name for name in now if name in before] if key in (".methods", ".own") else list({**before, **now})
        found = (_first_difference(before.get(name), now.get(name), f"{key}.{name}") for name in both)
        return next((name for name in found if name is not None), None)
    return None if before == now else key.removeprefix(".")


def _unfinished(
    experiment: Experiment, suite: Suite, places: Places, tests: Mapping[int, int], depth: Depth
) -> list[Task]:
    """List what is left to do: the training, each attack of which a part is missing, and the probes."""
    settings = evaluation_of(experiment, suite.evaluation)
    trained = (places.checkpoints / experiment.name / CARD).is_file()
    kept = trained and _card_is_kept(experiment, places) and _curve_is_kept(experiment, places)
    tasks = [] if kept else [Task(experiment)]
    missing: set[str] = set()
    for checkpoint in settings.checkpoints:
        for job in jobs(settings, ranked=checkpoint == settings.ranked_checkpoint):
            folder = evidence_folder(places.report, experiment.name, checkpoint, *job)
            parts = finished_parts(folder, settings, job)
            # Verdicts without the weights they were measured on are looked at again by a task, which knows the weights.
            if not trained or len(parts) < expected_parts(settings, job.attack, tests[experiment.fold]):
                missing.add(job.attack)
    dear = [name for name in settings.attacks if name in (*RANKING_ONLY, CONFIDENCE)]
    cheap = ["clean", *(name for name in settings.attacks if name not in dear)]
    for attacks in (cheap, *([name] for name in dear)):  # a task of its own for each dear attack
        left = tuple(name for name in attacks if name in missing)
        tasks += [Task(experiment, left)] if left else []
    probes = ProbeTask(experiment, depth=depth)
    return [*tasks, probes] if probes.left(places, settings) else tasks


def _card_is_kept(experiment: Experiment, places: Places) -> bool:
    path = card_path(places.report, experiment.name)
    return path.is_file() and read_yaml(path).get("status") == "done"


def _curve_is_kept(experiment: Experiment, places: Places) -> bool:
    if experiment.curves is None:
        return True
    return is_curve(curve_path(places.report, experiment.name), way_of(experiment))


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
    for sentence in sentences(read_cards(folder).contents):
        console.out(f"alarm: {sentence}", highlight=False)
    console.out(f"report: {folder / 'index.html'}", highlight=False)


def _exit_code(outcomes: Mapping[Task, Outcome], console: Console, folder: Path) -> int:
    bad = {task: outcome for task, outcome in outcomes.items() if outcome.error}
    for task, outcome in bad.items():
        console.out(f"failed: {task.label}: {outcome.error}", highlight=False)
    if not bad:
        return 0
    console.out(f"tracebacks are under {folder}; the same command tries again what failed", highlight=False)
    return 2 if all(outcome.bad_input for outcome in bad.values()) else 1
