"""Measure the two engines of AutoAttack against each other, on one network and the same images, in turns."""

import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from attacks import official
from attacks.objectives import margin
from attacks.oracle import Oracle, Precision
from attacks.pixels import fraction
from attacks.prepared import prepared
from attacks.probe import fastest_slots, seconds_of_a_step
from attacks.staged import SLOTS, Staged
from attacks.threat import Norm, ThreatModel
from benchmark import own_model, own_parts, suite
from benchmark.attack_memory import memory_growth
from benchmark.contestants import OFFICIAL, Contest, Contestant, contestants
from benchmark.cost import peak_memory
from benchmark.data import load
from benchmark.errors import BadInput
from benchmark.experiment import description, plan
from benchmark.results import attack_speed as stored
from benchmark.speed import processor
from benchmark.storage import locked, sha256
from benchmark.suite import DataChoice
from benchmark.training import train, versions
from benchmark.turns import Pause, Taken, take_turns

EPOCHS = 6  # of the network that is trained where none is named: enough to hold, seconds to train
OWN_EPSILON = "0.15"
WHOLE = 300.0  # seconds, about, that a measurement takes where no number of images is given
PASSES = 7600 + 2 * 1850  # of AutoAttack on an image that holds; a backward pass costs what two forward passes do
MOST_IMAGES = 256


@dataclass(frozen=True)
class Candidate:
    """What is attacked, named such that another process finds it, too; None where it is still to be chosen."""

    model: str
    weights: Path
    dataset: str
    norm: Norm
    epsilon: str
    images: int | None
    batch_size: int | None
    seed: int
    compiled: bool
    only: tuple[str, ...]
    data_root: Path | None
    download: bool

    def contest(self) -> Contest:
        """Load network and images.

        Raises:
            BadInput: for a builder, weights, data set or network that does not fit, naming the file.
        """
        choice = own_parts.data(DataChoice(self.dataset))
        network = own_model.build(self.model, description(choice))
        own_model.load_into(network, self.weights)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        test = load(choice.name, self.data_root, download=self.download, code=choice.code).test
        own_model.probe(network.to(device).eval(), test.take(torch.arange(2)).to(device), self.model)
        images = test.take(torch.arange(min(len(test), self.images or MOST_IMAGES))).to(device)
        threat = ThreatModel(self.norm, fraction(self.epsilon, "--epsilon"))
        size = self.batch_size or SLOTS * (8 if device.type == "cuda" else 1)
        return Contest(network, images, threat, self.seed, size, self.compiled, self.only)


def attack_speed(
    candidate: Candidate | None,
    *,
    changes: dict[str, object],
    repeats: int,
    precisions: Sequence[Precision],
    auto: bool,
    stock: bool,
    sweep: bool,
    output: Path | None,
    more: Sequence[Contestant] = (),
) -> int:
    """Time everyone ``repeats`` times, write each repeat as it ends, and print what came out; the exit code.

    Repeats that ``output`` holds already are not measured again.

    Args:
        candidate: None for a digits CNN that is trained here.
        changes: fields of :class:`Candidate`, given for either.
        auto: choose the batch by a short probe.
        more: others who run, beside those of :func:`benchmark.contestants.contestants`.

    Raises:
        BadInput: for what does not fit together, or when ``output`` holds measurements of something else.
    """
    path = output or Path("reports") / f"speed-attack-{candidate.weights.stem if candidate else 'digits_cnn'}.csv"
    if path.suffix != ".csv":
        raise BadInput(f"--output is a .csv file, a .md comes to lie beside it, but found {path}")
    console = Console(stderr=True)
    with locked(path.parent):
        before = stored.read(path)
        found = replace(candidate or _own_candidate(path, console), **changes)  # type: ignore[arg-type]
        found = _completed(found, before, auto)
        contest = found.contest()
        who = [*contestants(precisions, stock=stock, sweep=sweep), *more]
        setting = _setting(found, contest)
        if (differing := stored.setting_differs(before, setting)) is not None:
            raise BadInput(
                f"{path} holds measurements with another {differing} ({before[differing].iloc[0]}, now it is "
                f"{setting[differing]}): choose another --output, or delete that file"
            )
        _measure(path, before, found, contest, who, repeats, setting, console)
    print(path.with_suffix(".md").read_text(encoding="utf-8"), end="")
    return 0


def _measure(
    path: Path,
    table: pd.DataFrame,
    candidate: Candidate,
    contest: Contest,
    who: Sequence[Contestant],
    repeats: int,
    setting: dict[str, object],
    console: Console,
) -> None:
    """Add the repeats that are missing, each as it ends."""
    names = [one.name for one in who]
    done = {number for number, rows in table.groupby("repeat") if set(names) <= set(rows["variant"])}
    memory: dict[str, float] = dict(zip(table["variant"], table["memory_mib"], strict=True))
    with _display(console) as progress:
        for repeat in range(1, repeats + 1):
            if repeat in done:
                continue
            for one in who:
                if one.name not in memory:
                    line = progress.add_task(f"memory of {one.name}", total=None)
                    memory[one.name] = memory_growth(candidate, one)
                    progress.remove_task(line)
            lines = {one.name: progress.add_task(one.name, total=None) for one in who}
            taken = take_turns(
                [partial(_turn, one, contest, progress, lines[one.name]) for one in who], [one.share for one in who]
            )
            rows = _rows(contest, dict(zip(names, taken, strict=True)), repeat, memory)
            said = {"date": datetime.date.today().isoformat(), "versions": _versions(), "command": _command()}
            fresh = pd.DataFrame([row | setting | said for row in rows], columns=stored.COLUMNS)
            kept = table[table["repeat"] != repeat]
            table = pd.concat([kept, fresh], ignore_index=True) if len(kept) else fresh
            stored.write(path, table)
            for line in lines.values():
                progress.remove_task(line)
            console.out(f"repeat {repeat} of {repeats} is measured", highlight=False)


def _turn(one: Contestant, contest: Contest, progress: Progress, line: TaskID, pause: Pause) -> Staged:
    def beat(what: str) -> None:
        progress.update(line, description=f"{one.name}: {what}")
        pause()

    return one.run(contest, beat)


def _rows(
    contest: Contest, taken: dict[str, Taken[Staged]], repeat: int, memory: dict[str, float]
) -> list[dict[str, object]]:
    """Give a line for everyone: what it cost, and where its verdicts differ from the official ones."""
    reference, on_gpu = taken[OFFICIAL], contest.x.is_cuda
    held = torch.tensor([by == "" for by in reference.result.by])
    rows: list[dict[str, object]] = []
    for name, one in taken.items():
        holds = torch.tensor([by == "" for by in one.result.by])
        here, there = (~holds & held).nonzero().flatten(), (holds & ~held).nonzero().flatten()
        rows.append(
            {
                "repeat": repeat,
                "variant": name,
                "cpu_seconds": one.cpu,
                "wall_seconds": one.wall,
                "ratio": reference.wall / one.wall if on_gpu else reference.cpu / one.cpu,
                "forward": float(one.result.forward.mean()),
                "backward": float(one.result.backward.mean()),
                "memory_mib": memory[name],
                "robust": int(holds.sum()),
                "fooled_here_only": " ".join(str(int(contest.index[row])) for row in here),
                "fooled_officially_only": " ".join(str(int(contest.index[row])) for row in there),
                "closest_here": _closest(contest, one.result.adversarial, here),
                "closest_officially": _closest(contest, reference.result.adversarial, there),
            }
        )
    return rows


def _closest(contest: Contest, adversarial: Tensor, rows: Tensor) -> float:
    """Give the smallest margin, as a distance from the decision, of the pictures of ``rows``; NaN without any."""
    if not len(rows):
        return float("nan")
    with torch.no_grad():
        logits = contest.network(adversarial[rows])
    return float(margin(logits, contest.y[rows.to(contest.y.device)]).abs().min())


def _own_candidate(path: Path, console: Console) -> Candidate:
    """Train a digits CNN against PGD, for a few seconds, in a folder beside ``path``; a trained one is only found."""
    whole = suite.load("digits-common", {"recipe.epochs": EPOCHS})
    experiment = plan(replace(whole, methods={"pgd_at": whole.methods["pgd_at"]}))[0]
    folder = path.with_suffix("") / experiment.name
    if not (folder / "last.safetensors").is_file():
        console.out("trains a digits CNN against PGD, as no --model is given", highlight=False)
    train(experiment, folder)
    return Candidate(
        experiment.network.name,
        folder / "last.safetensors",
        experiment.dataset.name,
        experiment.threat.norm,
        OWN_EPSILON,
        images=None,
        batch_size=None,
        seed=0,
        compiled=False,
        only=official.STAGES,
        data_root=None,
        download=False,
    )


def _completed(candidate: Candidate, before: pd.DataFrame, auto: bool) -> Candidate:
    """Choose images and batch where they are not given: as in the measurements before, else by a short probe."""
    if len(before) and candidate.images is None:
        candidate = replace(candidate, images=int(before["images"].iloc[0]))
    if len(before) and candidate.batch_size is None:
        candidate = replace(candidate, batch_size=int(before["batch_size"].iloc[0]))
    if candidate.images is not None and candidate.batch_size is not None:
        return candidate
    contest = candidate.contest()
    if candidate.batch_size is None:
        size = fastest_slots(contest.network, contest.x) if auto else contest.batch_size
        candidate = replace(candidate, batch_size=size)
    if candidate.images is None:
        x = contest.x[: candidate.batch_size]
        each = seconds_of_a_step(Oracle(contest.network, prepared(contest.network, x)), x) / len(x) / 3
        affordable = int(WHOLE / 3 / (2.5 * each * PASSES))  # of three repeats, of everyone
        candidate = replace(candidate, images=min(max(affordable // 8 * 8, 8), len(contest.x)))
    return candidate


def _setting(candidate: Candidate, contest: Contest) -> dict[str, object]:
    """Tell what was attacked, how, and where: the columns ``SETTING``."""
    on_gpu = contest.x.is_cuda
    kind, _ = peak_memory()
    return {
        "model": candidate.model,
        "weights": sha256(candidate.weights)[:12],
        "dataset": candidate.dataset,
        "norm": candidate.norm,
        "epsilon": candidate.epsilon,
        "images": len(contest.x),
        "batch_size": contest.batch_size,
        "attacks": " ".join(contest.only),
        "compiled": contest.compiled,
        "seed": contest.seed,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "ratio_of": "wall seconds" if on_gpu else "CPU seconds",
        "memory_of": f"growth of the peak of {kind}, in a process of its own that begins every attack on one batch",
    }


def _versions() -> str:
    said = versions()
    return ", ".join([*(f"{package} {said[package]}" for package in ("atbench", "torch")), official.version()])


def _command() -> str:
    return shlex.join(["atbench", *sys.argv[1:]])


def _display(console: Console) -> Progress:
    text = TextColumn("{task.description}", markup=False)
    return Progress(text, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
