"""Probe what was trained, as tasks of a suite: each network by itself, and with pictures made for the others."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.threat import ThreatModel
from benchmark.credibility.run import Depth, Tell, probe, probe_transfer
from benchmark.data import Images, load
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment
from benchmark.results.probes import TRANSFER, is_probed, probe_path, write_probes
from benchmark.storage import read_yaml
from benchmark.tasks import Places, Task, restore
from benchmark.training import CARD

NAME = "credibility"


@dataclass(frozen=True, eq=False)
class ProbeTask(Task):
    """Put every checkpoint of ``experiment`` to the checks of ``depth``."""

    attacks: tuple[str, ...] = (NAME,)
    depth: Depth = "cheap"

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Probe the checkpoints that are not probed yet."""
        test = test_images(self.experiment, places)
        for checkpoint, way in ways(self.experiment, places, settings).items():
            keep_probes(
                places.report,
                self.experiment.name,
                checkpoint,
                partial(restored, self.experiment, places, checkpoint),
                test,
                self.experiment.threat,
                settings,
                way,
                self.depth,
                tell,
            )

    def left(self, places: Places, settings: Evaluation) -> list[Path]:
        """List the findings still to be made, at this depth, on the weights that are there."""
        report, name = places.report, self.experiment.name
        paths: dict[str, Path] = {one: probe_path(report, name, one) for one in settings.checkpoints}
        if not (places.checkpoints / self.experiment.name / CARD).is_file():
            return list(paths.values())
        every = ways(self.experiment, places, settings)
        return [paths[one] for one, way in every.items() if not is_probed(paths[one], way, self.depth)]


@dataclass(frozen=True, eq=False)
class TransferTask(Task):
    """Show every checkpoint of ``experiment`` pictures that were made for ``others``, all of them trained."""

    attacks: tuple[str, ...] = ("transfer",)
    others: tuple[Experiment, ...] = ()

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Attack the others' ranked checkpoints, and see whom that fools."""
        test, others = test_images(self.experiment, places), None
        for checkpoint, way in self._ways(places, settings).items():
            path = probe_path(places.report, self.experiment.name, checkpoint, TRANSFER)
            if is_probed(path, way, "full"):
                continue
            tell(f"transfer to {checkpoint}", 0, 0)
            if others is None:
                others = {one.row: restored(one, places, settings.ranked_checkpoint) for one in self.others}
            check = probe_transfer(
                restored(self.experiment, places, checkpoint),
                others,
                first(test, settings),
                self.experiment.threat.at(way["epsilon"]),
                dataset=way["dataset"],
                batch_size=settings.batch_size,
                seed=settings.seed,
            )
            write_probes(path, way, "full", [check], {})

    def left(self, places: Places, settings: Evaluation) -> list[Path]:
        """List the findings still to be made, on these others' pictures."""
        every = self._ways(places, settings)
        paths = {name: probe_path(places.report, self.experiment.name, name, TRANSFER) for name in every}
        return [paths[name] for name, way in every.items() if not is_probed(paths[name], way, "full")]

    def _ways(self, places: Places, settings: Evaluation) -> dict[str, dict[str, Any]]:
        others = {one.name: _digest(one, places, settings.ranked_checkpoint) for one in self.others}
        return {name: way | {"others": others} for name, way in ways(self.experiment, places, settings).items()}


def transfers(experiments: list[Experiment], places: Places, settings: Evaluation) -> list[TransferTask]:
    """List the transfers that are left, between the trained networks of one seed and fold."""
    trained = [one for one in experiments if (places.checkpoints / one.name / CARD).is_file()]
    tasks = []
    for one in trained:
        beside = [other for other in trained if (other.seed, other.fold) == (one.seed, one.fold) and other is not one]
        tasks.append(TransferTask(one, others=tuple(beside)))
    return [task for task in tasks if task.left(places, settings)]


def ways(experiment: Experiment, places: Places, settings: Evaluation) -> dict[str, dict[str, Any]]:
    """Say for each checkpoint what its probes depend on."""
    return {
        checkpoint: way_of(
            settings,
            experiment.threat,
            dataset=experiment.dataset.name,
            weights=_digest(experiment, places, checkpoint),
        )
        for checkpoint in settings.checkpoints
    }


def way_of(settings: Evaluation, threat: ThreatModel, *, dataset: str, weights: str) -> dict[str, Any]:
    """Say what probes depend on: networks are probed at the radius of training, or else at the smallest ranked one."""
    ranked = sorted(map(float, settings.ranked_at))
    epsilon = next((radius for radius in ranked if abs(radius - threat.epsilon) < 1e-9), ranked[0])
    of_threat = {**asdict(threat), "epsilon": epsilon}
    of_settings = {"images": settings.images, "seed": settings.seed, "attacks": list(settings.attacks)}
    return {"dataset": dataset, "weights": weights, **of_threat, **of_settings}


def keep_probes(
    report: Path,
    experiment: str,
    checkpoint: str,
    network: Callable[[], nn.Module],
    test: Images,
    threat: ThreatModel,
    settings: Evaluation,
    way: dict[str, Any],
    depth: Depth,
    tell: Tell,
) -> None:
    """Probe one network and write what was found; what is there already, in the same ``way``, is not done again."""
    path = probe_path(report, experiment, checkpoint)
    if is_probed(path, way, depth):
        return
    checks, passes = probe(
        network(),
        first(test, settings),
        threat.at(way["epsilon"]),
        dataset=way["dataset"],
        depth=depth,
        batch_size=settings.batch_size,
        attacks=tuple(settings.attacks),
        seed=settings.seed,
        tell=lambda what, done, total: tell(f"credibility: {what}", done, total),
    )
    write_probes(path, way, depth, checks, {"forward": passes.forward, "backward": passes.backward})


def first(test: Images, settings: Evaluation) -> Images:
    """Give the images that the evaluation uses."""
    return test.take(torch.arange(min(len(test), settings.images or len(test)), device=test.labels.device))


def test_images(experiment: Experiment, places: Places) -> Images:
    """Load the test images of an experiment."""
    data = experiment.dataset
    return load(data.name, places.data_root, fold=experiment.fold, code=data.code).test


def _digest(experiment: Experiment, places: Places, checkpoint: str) -> str:
    card = read_yaml(places.checkpoints / experiment.name / CARD)
    return str(card["weights"][checkpoint]["sha256"])


def restored(experiment: Experiment, places: Places, checkpoint: str) -> nn.Module:
    """Load the network of one of its checkpoints, on the device that is there."""
    path = places.checkpoints / experiment.name / f"{checkpoint}.safetensors"
    return restore(experiment, path, _digest(experiment, places, checkpoint))
