"""Measure how a method generalises: accuracy on training and on test images, clean and under PGD-10, over the epochs.

It looks at test images, so nothing is chosen by it: the best epoch is that of ``methods.selection``, on held-out
training images. All draws are keyed, so that the trained weights are the same with it and without it.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attacks.modes import in_mode
from attacks.objectives import cross_entropy_with
from attacks.passes import Passes, counting
from attacks.pgd import pgd
from attacks.randomness import uniform
from attacks.threat import ThreatModel
from benchmark.curves import Curves
from benchmark.data import Images, Splits, fixed_order, load
from benchmark.errors import BadInput
from benchmark.experiment import Experiment
from benchmark.results.curves import NAME, is_curve, write_curve
from benchmark.storage import load_weights, write_bytes

STEPS = 10
_BATCH = 500  # images attacked together; verdicts do not depend on it
Line = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What is measured of a network: training and test images, what the adversary may do, the seed of its starts."""

    parts: Mapping[str, Images]
    training_images: int  # all of them: what passes are divided by
    threat: ThreatModel
    seed: int

    @classmethod
    def of(cls, experiment: Experiment, splits: Splits) -> "Measured":
        """Take the images that the suite asks for; of training images those that show the method their label."""
        images = _asked_for(experiment).images
        train = splits.train
        if experiment.labels is not None:
            train = train.take(torch.isin(train.index, torch.tensor(experiment.labelled)).nonzero().flatten())
        chosen = train.take(torch.from_numpy(fixed_order(len(train)))[:images])  # a user's set may be sorted by class
        test = splits.test.take(torch.arange(min(images, len(splits.test))))
        return cls({"train": chosen, "test": test}, len(splits.train), experiment.threat, experiment.seed)

    def lines(self, network: nn.Module, epoch: int) -> list[Line]:
        """Count the images that ``network`` gets right, a line for each part and attack; it stays as it was."""
        device = next(iter(network.parameters())).device
        lines = []
        with _random_states_kept(device), in_mode(network, "eval"), torch.no_grad():
            for split, images in self.parts.items():
                right = {"clean": 0, "pgd10": 0}
                for start in range(0, len(images), _BATCH):
                    batch = images.take(torch.arange(start, min(start + _BATCH, len(images)))).to(device)
                    for attack, x in (("clean", batch.pixels()), ("pgd10", self._attacked(network, batch, split))):
                        right[attack] += int((network(x).argmax(1) == batch.labels).sum())
                lines += [
                    {"epoch": epoch, "split": split, "attack": attack, "correct": correct, "images": len(images)}
                    for attack, correct in right.items()
                ]
        return lines

    def _attacked(self, network: nn.Module, batch: Images, split: str) -> Tensor:
        """Attack as the checkpoint is chosen: 10 steps of epsilon/4 on the cross-entropy, one random start."""
        x, threat = batch.pixels(), self.threat
        noise = threat.epsilon * uniform(x, batch.index.tolist(), self.seed, "curves", split)
        start, climbed = threat.project(x + noise, x), cross_entropy_with(batch.labels)
        return pgd(network, x, climbed, threat, start=start, steps=STEPS, step_size=threat.epsilon / 4)


def _random_states_kept(device: torch.device) -> AbstractContextManager[None]:
    """Let no network that draws, whatever its mode, move training's generators."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class Generalization(pl.Callback):
    """Measure a training every few epochs, on the first device alone, when its checkpoint has been looked at.

    What was measured goes with Lightning's checkpoints: a resumed run measures no epoch twice and leaves none out.
    Passes and seconds are counted here and nowhere else.
    """

    def __init__(self, experiment: Experiment, measured: Measured) -> None:
        self.way, self.every, self.measured = way_of(experiment), _asked_for(experiment).every, measured
        self.lines: dict[int, list[Line]] = {}
        self.passes, self.seconds = Passes(), 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the network that could be kept as the best; while a method trains another one, there is none."""
        if trainer.is_global_zero and pl_module.settled and trainer.current_epoch % self.every == 0:
            self.measure(pl_module.classifier(), trainer.current_epoch)

    def measure(self, network: nn.Module, epoch: int) -> None:
        """Measure ``network`` as that of ``epoch``, in the place of what was measured of it before."""
        since = time.perf_counter()
        with counting(network, self.passes):
            self.lines[epoch] = self.measured.lines(network, epoch)
        self.seconds += time.perf_counter() - since

    def write(self, path: Path, last: int, best: int, *, whole: bool) -> None:
        """Write the file that reports read; ``last`` and ``best`` are the epochs of what is kept."""
        lines = [line for epoch in sorted(self.lines) for line in self.lines[epoch]]
        passes = (self.passes.forward + self.passes.backward) / self.measured.training_images
        cost = {"passes": round(passes, 6), "seconds": round(self.seconds, 4)}
        write_curve(path, self.way, lines, {"last": last, "best": best}, cost, whole=whole)

    def state_dict(self) -> dict[str, Any]:
        """Give what was measured so far, and how."""
        return {"way": self.way, "lines": self.lines, "passes": asdict(self.passes), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again, unless it was measured in another way."""
        if state_dict["way"] == self.way:
            self.lines, self.seconds = dict(state_dict["lines"]), state_dict["seconds"]
            self.passes = Passes(**state_dict["passes"])


def way_of(experiment: Experiment) -> dict[str, Any]:
    """Give what a curve depends on beside the weights: those of natural training know no epsilon."""
    threat = {"norm": experiment.threat.norm, "epsilon": experiment.threat.epsilon}
    return {"dataset": experiment.dataset.name, **threat, "steps": STEPS, **asdict(_asked_for(experiment))}


def _asked_for(experiment: Experiment) -> Curves:
    if experiment.curves is None:
        raise BadInput("curves are measured where a suite asks for them, as in curves: {images: 200, every: 1}")
    return experiment.curves


def keep(
    curve: Generalization,
    experiment: Experiment,
    folder: Path,
    weights: Mapping[str, Mapping[str, Any]],
    path: Path,
    *,
    whole: bool,
) -> None:
    """Measure what was kept of a training, from the files in its ``folder``, and write the curve to ``path``.

    Args:
        weights: of the card: ``last`` and ``best``, each with its epoch, which for ``best`` is None where no epoch was
            scored: it is the last then.
    """
    last = weights["last"]["epoch"]
    best = last if weights["best"]["epoch"] is None else weights["best"]["epoch"]
    network = experiment.build_method(experiment.build_network()).classifier()
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    for name, epoch in (("best", best), ("last", last)):
        if name == "last" or epoch not in {last, *curve.lines}:
            network.load_state_dict(load_weights(folder / f"{name}.safetensors"))
            curve.measure(network, epoch)
    curve.write(path, last, best, whole=whole)


def bring(
    experiment: Experiment, folder: Path, weights: Mapping[str, Mapping[str, Any]], path: Path, data_root: Path | None
) -> None:
    """Put the curve of a finished training at ``path``, in a report.

    Where the training measured none, or did so in another way, the networks that were kept are measured now; the epochs
    between them are missing.
    """
    if is_curve(folder / NAME, way_of(experiment)):
        write_bytes(path, (folder / NAME).read_bytes())
        return
    choice = experiment.dataset
    splits = load(
        choice.name,
        data_root,
        fold=experiment.fold,
        train_images=choice.train_images,
        validation_images=choice.validation_images,
        code=choice.code,
    )
    curve = Generalization(experiment, Measured.of(experiment, splits))
    keep(curve, experiment, folder, weights, path, whole=False)
