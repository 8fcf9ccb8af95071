"""Look at the pictures that attacks saved, once they are all there, and anew where they changed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from attacks.threat import ThreatModel
from benchmark import storage
from benchmark.credibility.pictures import read_saved
from benchmark.credibility.run import probe_saved
from benchmark.credibility.task import first, restored, test_images, ways
from benchmark.data import Images
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment
from benchmark.results import pictures
from benchmark.results.evidence import Part, parts_of
from benchmark.results.probes import SAVED, is_probed, probe_path, write_probes
from benchmark.tasks import Places, Task, Tell
from benchmark.training import CARD


@dataclass(frozen=True, eq=False)
class SavedTask(Task):
    """Show every checkpoint of ``experiment`` the pictures that fooled it."""

    attacks: tuple[str, ...] = ("saved pictures",)

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Look at the pictures of the checkpoints that are left."""
        test = test_images(self.experiment, places)
        for checkpoint, way in ways(self.experiment, places, settings).items():
            tell(f"pictures of {checkpoint}", 0, 0)
            network = partial(restored, self.experiment, places, checkpoint)
            threat = self.experiment.threat
            keep_saved(places.report, self.experiment.name, checkpoint, network, test, threat, settings, way)

    def left(self, places: Places, settings: Evaluation) -> list[Path]:
        """List the findings still to be made, of checkpoints with pictures that nobody looked at."""
        report, name = places.report, self.experiment.name
        every = ways(self.experiment, places, settings)
        return [path for checkpoint, way in every.items() for path in left_of(report, name, checkpoint, way)]


def looks(experiments: list[Experiment], places: Places, settings: Evaluation) -> list[SavedTask]:
    """List the trained networks of which saved pictures are left to be looked at."""
    trained = [one for one in experiments if (places.checkpoints / one.name / CARD).is_file()]
    return [task for task in map(SavedTask, trained) if task.left(places, settings)]


def left_of(report: Path, experiment: str, checkpoint: str, way: dict[str, Any]) -> list[Path]:
    """Give the path of a checkpoint's finding if pictures were saved, and not yet looked at in this ``way``."""
    parts, path = _with_pictures(report, experiment, checkpoint), probe_path(report, experiment, checkpoint, SAVED)
    return [path] if parts and not is_probed(path, _way(way, parts), "cheap") else []


def keep_saved(
    report: Path,
    experiment: str,
    checkpoint: str,
    network: Callable[[], nn.Module],
    test: Images,
    threat: ThreatModel,
    settings: Evaluation,
    way: dict[str, Any],
) -> None:
    """Look at the saved pictures of one network and write what was found; arguments as in ``task.keep_probes``."""
    left = left_of(report, experiment, checkpoint, way)
    if not left:
        return
    parts, shown = _with_pictures(report, experiment, checkpoint), first(test, settings)
    size = min(settings.batch_size, len(shown))  # as in the evaluation: logits depend on it in the last bits
    check = probe_saved(
        network(),
        read_saved(parts, shown, size),
        shown,
        threat.at(way["epsilon"]),
        dataset=way["dataset"],
        batch_size=size,
    )
    write_probes(left[0], _way(way, parts), "cheap", [check], {"forward": check.images or 0})


def _with_pictures(report: Path, experiment: str, checkpoint: str) -> list[Part]:
    return [part for part in parts_of(report, experiment, checkpoint) if pictures.beside(part.path).is_file()]


def _way(way: dict[str, Any], parts: list[Part]) -> dict[str, Any]:
    """Say what the finding depends on: these very pictures, too."""
    together = sha256()
    for part in parts:
        together.update(f"{part.attack}@{part.epsilon!r} {storage.sha256(pictures.beside(part.path))}\n".encode())
    return way | {"pictures": together.hexdigest()}
