"""The two kinds of work a suite consists of: train an experiment, attack what it trained. Each can run anywhere."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmark.data import Images, load
from benchmark.devices import Devices
from benchmark.errors import BadInput
from benchmark.evaluation import Job, evaluate, part_size
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment
from benchmark.generalization import bring
from benchmark.ranks import train_on_ranks
from benchmark.rejection import evaluation_of, keep_threshold
from benchmark.results.curves import curve_path
from benchmark.results.evidence import card_path, evidence_folder, failure_path
from benchmark.results.rejection import CONFIDENCE, threshold_path
from benchmark.storage import load_weights, locked, read_yaml, sha256, write_yaml
from benchmark.training import CARD, train

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Places:
    """Where things lie: weights of all suites, one suite's report, the data sets; and who is told of a training."""

    checkpoints: Path
    report: Path
    data_root: Path | None = None
    download: bool = False
    devices: Devices = Devices()
    loggers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """Train ``experiment``, or attack what it trained with ``attacks``; without attacks it is a training."""

    experiment: Experiment
    attacks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name the task for people."""
        fold = f" fold {self.experiment.fold}" if self.experiment.fold else ""
        return f"{self.experiment.row} seed {self.experiment.seed}{fold}: {', '.join(self.attacks) or 'training'}"

    @property
    def waits_for(self) -> Experiment | None:
        """The experiment that has to be trained before: an attack's own, a student's teacher."""
        return self.experiment if self.attacks else self.experiment.teacher

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Do it, in the process that is there; another kind of task does something else."""
        perform(self, places, settings, tell)


def perform(task: Task, places: Places, settings: Evaluation, tell: Tell) -> None:
    """Do one task. What is finished already is not done again."""
    folder = places.checkpoints / task.experiment.name
    if not task.attacks:
        if places.devices.node:  # the first machine keeps the books
            _train(task.experiment, folder, places, tell)
            return
        with locked(folder):
            card = _train(task.experiment, folder, places, tell)
            if task.experiment.curves is not None:
                path = curve_path(places.report, task.experiment.name)
                bring(task.experiment, folder, card["weights"], path, places.data_root)
        row = {"method": task.experiment.row}  # another suite may have trained it under another name
        write_yaml(card_path(places.report, task.experiment.name), card | row)
        failure_path(places.report, task.experiment.name).unlink(missing_ok=True)
        (folder / "failure.txt").unlink(missing_ok=True)
        return
    experiment, card = task.experiment, read_yaml(folder / CARD)
    settings = evaluation_of(experiment, settings)
    test = load(experiment.dataset.name, places.data_root, fold=experiment.fold, code=experiment.dataset.code).test
    for checkpoint in settings.checkpoints:
        path = folder / f"{checkpoint}.safetensors"
        network = restore(experiment, path, card["weights"][checkpoint]["sha256"])
        same_measurement(
            places.report,
            experiment.name,
            checkpoint,
            settings,
            weights=card["weights"][checkpoint]["sha256"],
            dataset=experiment.dataset.name,
            norm=experiment.threat.norm,
            path=path,
        )
        if CONFIDENCE in task.attacks and checkpoint == settings.ranked_checkpoint:
            place = threshold_path(places.report, experiment.name, checkpoint)
            keep_threshold(place, network, _held_out(experiment, places), settings.batch_size)
        evaluate(
            network,
            test,
            experiment.threat,
            settings,
            ranked=checkpoint == settings.ranked_checkpoint,
            attacks=task.attacks,
            place=partial(_place, places.report, experiment.name, checkpoint),
            tell=tell,
        )


def _held_out(experiment: Experiment, places: Places) -> Images:
    """Load the training images that an experiment held out, as they are."""
    data = experiment.dataset
    return load(
        data.name,
        places.data_root,
        fold=experiment.fold,
        train_images=data.train_images,
        validation_images=data.validation_images,
        code=data.code,
    ).validation


def _train(experiment: Experiment, folder: Path, places: Places, tell: Tell) -> dict[str, Any]:
    where: dict[str, Any] = {
        "data_root": places.data_root,
        "download": places.download,
        "loggers": places.loggers,
    }
    if places.devices.world == 1:
        return train(experiment, folder, tell=tell, **where)
    if not (folder / CARD).is_file():
        train_on_ranks(experiment, folder, places.devices, tell, **where)
    return {} if places.devices.node else read_yaml(folder / CARD)


def _place(report: Path, experiment: str, checkpoint: str, job: Job) -> Path:
    return evidence_folder(report, experiment, checkpoint, job.attack, job.epsilon)


def restore(experiment: Experiment, path: Path, expected: str) -> nn.Module:
    """Load the trained classifier, on the device that is there.

    Raises:
        BadInput: when the file is missing, or is not the one that the experiment's card names.
    """
    import torch

    weights = load_weights(path)
    found = sha256(path)
    if found != expected:
        raise BadInput(
            f"{path} is not the file that its card names (SHA-256 {found[:12]}, expected {expected[:12]}): "
            f"delete {path.parent} and run again"
        )
    network = experiment.build_method(experiment.build_network()).classifier()
    network.load_state_dict(weights)
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def same_measurement(
    report: Path,
    experiment: str,
    checkpoint: str,
    settings: Evaluation,
    *,
    weights: str,
    dataset: str,
    norm: str,
    path: Path,
    logit_scale: float = 1.0,
) -> None:
    """Make sure that verdicts already there were measured on these weights and images in this way, and note it.

    Args:
        weights: SHA-256 of the file at ``path``, which may be moved: it is noted, as seen from the report, for
            ``atbench verify``.
        logit_scale: of ``atbench evaluate``.

    Raises:
        BadInput: naming what differs. Verdicts of two ways of measuring are never mixed in one table.
    """
    way = {key: value for key, value in asdict(settings).items() if key in _WAY}
    way |= {"norm": norm, "dataset": dataset, "weights": weights}
    way |= {"save_adversarial": True} if settings.save_adversarial else {}  # left out otherwise, as ever
    way |= {} if logit_scale == 1 else {"logit_scale": logit_scale}  # likewise
    note = evidence_folder(report, experiment, checkpoint, "clean", 0.0).parent / MEASUREMENT
    if not note.is_file():
        write_yaml(note, {**way, "weights_file": os.path.relpath(path, report)})
        return
    found = read_yaml(note)
    differing = [
        key for key in {**way, "save_adversarial": None, "logit_scale": None} if found.get(key) != way.get(key)
    ]
    if differing:
        key = differing[0]
        raise BadInput(
            f"{note.parent} holds verdicts measured with {key} {found.get(key)}, now it is {way.get(key)}: "
            "choose another --output, or delete that folder"
        )


MEASUREMENT = "measurement.yaml"
_WAY = (
    "images",
    "batch_size",
    "steps",
    "step_size",
    "restarts",
    "seed",
    "row",
    "engine",
    "precision",
    "slots",
    "compile",
    "custom",
)


def expected_parts(settings: Evaluation, attack: str, test_images: int) -> int:
    """Count the part files that a finished job leaves."""
    images = min(test_images, settings.images or test_images)
    return -(-images // min(part_size(settings, attack), images))
