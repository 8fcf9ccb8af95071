"""Measure what training costs beside natural training: short complete trainings in one process, taking turns.

A machine is never equally fast for long, so a slice of natural training is timed every few epochs of the method's, and
only their ratio counts. Methods change over their schedule (warm-ups, lessons, growing radii), so theirs are complete:
all epochs, few images. Natural training does not, and a slice of it stands for all.
"""

import datetime
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmark import own_parts, suite
from benchmark.data import load as load_data
from benchmark.display import Display
from benchmark.errors import BadInput
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment, plan
from benchmark.inspection import measured
from benchmark.results import speed as stored
from benchmark.runner import Outcome, workers
from benchmark.runner import run as run_tasks
from benchmark.storage import locked, read_yaml, write_yaml
from benchmark.suite import Suite
from benchmark.tasks import Places, Task, Tell
from benchmark.training import train, versions
from methods import catalogue

BATCHES = 2  # an epoch of a timed training
HELD_OUT = 32  # images for what methods look at between epochs; that time is not counted
SLICES, SLICE_EPOCHS = 6, 5  # of natural training in one of the method
REPEATS = 3


@dataclass(frozen=True)
class Turn:
    """Seconds of one whole training, and of a natural one on the same machine at the same time."""

    method: float
    natural: float

    @property
    def ratio(self) -> float:
        """How many times as long the method took."""
        return self.method / self.natural


def turn(method: Callable[[Callable[[], None]], float], natural: Callable[[], float]) -> Turn:
    """Time a training of the method, with slices of natural training before it, in its pauses, and behind it.

    Args:
        method: trains, calls what it is given whenever it pauses, and gives its own seconds without the pauses.
        natural: trains a slice, and gives the seconds that a whole training of such would take.
    """
    slices = [natural()]
    seconds = method(lambda: slices.append(natural()))
    slices.append(natural())
    return Turn(seconds, statistics.mean(slices))


@dataclass(frozen=True, eq=False, kw_only=True)
class SpeedTask(Task):
    """Hold one experiment's training against that of ``natural``; the line of figures goes into ``folder``."""

    natural: Experiment
    folder: Path
    repeats: int = REPEATS

    @property
    def label(self) -> str:
        """Name the task for people."""
        return f"{self.experiment.row}: speed"

    @property
    def waits_for(self) -> None:
        """Nothing: a teacher is trained before the clock runs."""

    @property
    def line(self) -> Path:
        """Where its figures go."""
        return self.folder / f"{self.experiment.name}.yaml"

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Train once without a clock, for the passes, and for the memory of a fresh process; then take turns."""
        place = self.folder / self.experiment.name / "run"  # beside it lies its teacher, which is trained once
        turns: list[Turn] = []

        def card_of(experiment: Experiment, folder: Path, told: Tell | None = None) -> dict[str, Any]:
            card = train(experiment, folder, data_root=places.data_root, tell=told)
            shutil.rmtree(folder)
            return card

        def method(pause: Callable[[], None]) -> float:
            def told(what: str, done: int, total: int) -> None:
                tell(f"training {len(turns) + 1} of {self.repeats}", len(turns) * total + done, self.repeats * total)
                if done < total and done % max(1, total // SLICES) == 0:
                    pause()

            return float(card_of(self.experiment, place, told)["seconds"])

        def natural() -> float:
            recipe = self.natural.recipe
            part = replace(self.natural, recipe=replace(recipe, epochs=min(SLICE_EPOCHS, recipe.epochs)))
            seconds = float(card_of(part, place.with_name("natural"))["seconds"])
            return seconds * recipe.epochs / part.recipe.epochs

        tell("a training without a clock", 0, 0)
        first = card_of(self.experiment, place)
        while len(turns) < self.repeats:
            turns.append(turn(method, natural))
        write_yaml(self.line, figures(self.experiment, first, turns))


def figures(experiment: Experiment, card: Mapping[str, Any], turns: Sequence[Turn]) -> dict[str, Any]:
    """Put a method's measurement into one line, the columns ``FIGURES``; ``card`` is of one of its trainings."""
    ratios = [one.ratio for one in turns]
    return {
        "method": experiment.row,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "repeats": len(turns),
        "seconds": statistics.median(one.method for one in turns),
        "natural_seconds": statistics.median(one.natural for one in turns),
        "forward_passes": card["forward_passes"] / experiment.recipe.epochs,
        "backward_passes": card["backward_passes"] / experiment.recipe.epochs,
        **{key: card[key] for key in ("peak_memory_mib", "memory_growth_mib", "peak_memory_of")},
    }


def speed(
    methods: Sequence[str],
    suite_name: str,
    *,
    changes: Mapping[str, Any],
    output: Path | None,
    repeats: int,
    processes: int | None,
    data_root: Path | None,
    download: bool,
) -> int:
    """Measure ``methods`` (all of the catalogue where none is named) and write each as it is done; the exit code.

    What ``output`` holds of the same experiment already is not measured again.

    Raises:
        BadInput: for unknown names, or when ``output`` holds measurements of another suite or machine.
    """
    path = output or stored.STORED
    whole = own_parts.with_methods(suite.load(suite_name, changes), ["natural", *(methods or catalogue.names())])
    short = shortened(whole, data_root, download)
    natural, *others = plan(short, data_root)
    chosen = [natural, *others] if not methods or "natural" in methods else others
    setting = setting_of(short, suite_name, changes)
    console = Console(stderr=True)
    with locked(path.parent), tempfile.TemporaryDirectory() as scratch:
        before = stored.read(path)
        if (differing := stored.setting_differs(before, setting)) is not None:
            raise BadInput(
                f"{path} holds measurements with another {differing} ({before[differing].iloc[0]}, now it is "
                f"{setting[differing]}): choose another --output, or delete that file"
            )
        left = [experiment for experiment in chosen if experiment.name not in set(before.experiment)]
        tasks = [SpeedTask(one, natural=natural, folder=Path(scratch), repeats=repeats) for one in left]
        if not tasks:
            console.out(f"everything is measured already: {path}", highlight=False)
        with _Keeper("speed", len(tasks), console, path, setting) as keeper:
            places = Places(Path(scratch), Path(scratch), data_root)
            outcomes = run_tasks(tasks, places, short.evaluation, processes=processes or workers(), watcher=keeper)
    print("\n".join(measured([one.row for one in chosen], stored.read(path))))
    bad = [outcome for outcome in outcomes.values() if outcome.error]
    for outcome in bad:
        console.out(outcome.trace, highlight=False)
    return 0 if not bad else 2 if all(outcome.bad_input for outcome in bad) else 1


class _Keeper(Display):
    """A display that puts each line of figures into the file as soon as it is measured."""

    def __init__(self, title: str, tasks: int, console: Console, path: Path, setting: Mapping[str, object]) -> None:
        super().__init__(title, tasks, console)
        self.path, self.setting = path, setting

    def ended(self, task: Task, outcome: Outcome) -> None:
        """Keep what was measured."""
        if isinstance(task, SpeedTask) and not outcome.error:
            today = datetime.date.today().isoformat()
            experiment = {"experiment": task.experiment.name, "date": today}
            stored.keep(self.path, {**read_yaml(task.line), **self.setting, **experiment})
        super().ended(task, outcome)


def shortened(whole: Suite, data_root: Path | None, download: bool) -> Suite:
    """Cut a suite down to one seed, one fold and BATCHES batches an epoch; every epoch and the share of labels stay."""
    choice = replace(whole.dataset, folds=whole.dataset.folds[:1])
    splits = load_data(
        choice.name,
        data_root,
        download=download,
        fold=choice.folds[0],
        train_images=choice.train_images,
        validation_images=choice.validation_images,
        code=choice.code,
    )
    images = min(BATCHES * whole.recipe.batch_size, len(splits.train))
    labels = choice.labels
    if labels is not None:
        classes = splits.description.classes
        labels = classes * max(1, round(labels * images / len(splits.train) / classes))
    held_out = min(HELD_OUT, len(splits.validation))
    cut = replace(choice, train_images=images, validation_images=held_out, labels=labels)
    return replace(whole, seeds=whole.seeds[:1], dataset=cut)


def setting_of(short: Suite, name: str, changes: Mapping[str, Any]) -> dict[str, object]:
    """Tell on what was measured: the columns ``SETTING`` and the way it was done."""
    said = versions()
    changed = "".join(f" {key}={value}" for key, value in changes.items())
    return {
        "suite": short.name,
        "dataset": short.dataset.name,
        "network": short.network.name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": processor(),
        "images": short.dataset.train_images,
        "batch_size": short.recipe.batch_size,
        "epochs": short.recipe.epochs,
        "versions": ", ".join(f"{package} {said[package]}" for package in ("atbench", "torch")),
        "command": f"atbench speed --suite {name}" + (f" --set{changed}" if changed else ""),
    }


def processor() -> str:
    """Name this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
