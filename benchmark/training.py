"""Train one experiment: Lightning does the work, two networks and a card come out, a kill costs at most an epoch."""

import importlib.metadata
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from attacks.passes import networks_in
from benchmark import label_hiding
from benchmark.cost import Cost
from benchmark.data import ImageData, load
from benchmark.devices import Devices
from benchmark.errors import BadInput
from benchmark.experiment import Experiment
from benchmark.generalization import Generalization, Measured, keep
from benchmark.loggers import HISTORY, History, listening
from benchmark.results.curves import NAME as CURVES
from benchmark.storage import atomically, load_weights, locked, read_yaml, save_weights, write_yaml
from methods.alarm import catastrophic_overfitting, label_leaking
from methods.base import AdversarialTraining
from methods.selection import KeepBest

Tell = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
CARD, RESUME, COMPANIONS = "card.yaml", "resume.ckpt", "companions.safetensors"


def train(
    experiment: Experiment,
    folder: Path,
    *,
    data_root: Path | None = None,
    download: bool = False,
    devices: Devices = Devices(),
    tell: Tell | None = None,
    loggers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train ``experiment`` in ``folder`` and give its card; a finished one is only read, a broken one resumed.

    With several ``devices`` this runs in a process for each (:func:`benchmark.ranks.train_on_ranks`); the first of them
    writes, and gives the card. Writes ``last.safetensors``, ``best.safetensors`` (state dicts of
    ``method.classifier()``), ``companions.safetensors`` of a method that has some, ``card.yaml`` at the very end,
    ``history.csv`` after every epoch, ``curves.json`` where the suite asks for curves, and until the end
    ``resume.ckpt``. A teacher that is not there yet is trained before, in a folder beside ``folder``.

    Args:
        loggers: names of :data:`benchmark.loggers.CHOICES`; they write into ``folder`` too.

    Raises:
        BadInput: for missing data, a logger that is not installed, or a ``resume.ckpt`` that cannot be read.
        FloatingPointError: when the loss, or a weight at the end, is no number.
    """
    if (folder / CARD).is_file():
        return read_yaml(folder / CARD)
    splits = load(
        experiment.dataset.name,
        data_root,
        download=download,
        fold=experiment.fold,
        train_images=experiment.dataset.train_images,
        validation_images=experiment.dataset.validation_images,
        code=experiment.dataset.code,
    )
    method = experiment.build_method(experiment.build_network())
    if method.first_weights is not None:
        method.begin_from(load_weights(Path(method.first_weights)))
    hidden = None
    if experiment.labels is not None:
        hidden = label_hiding.hide(experiment, splits, data_root, download=download)
    data = ImageData(
        splits,
        batch_size=devices.share(experiment.recipe.batch_size),
        seed=experiment.seed,
        augment=experiment.dataset.augment,
        hidden=hidden,
        labelled_rows=method.labelled_rows if experiment.semi_supervised else None,
        redraws=method.redraws_unlabelled,
    )
    taught: dict[str, Any] = {}
    if experiment.teacher is not None and hidden is not None and len(hidden.unlabelled):
        place = folder.parent / experiment.teacher.name
        card = _trained(experiment.teacher, place, devices, data_root, download)
        taught = label_hiding.teach(method, place, card, hidden)
    best, cost = KeepBest(), Cost()
    resume = folder / RESUME
    curve = None if experiment.curves is None else Generalization(experiment, Measured.of(experiment, splits))
    books: list[pl.Callback] = [SameWork(experiment), *label_hiding.watched(method, data), best, cost]
    books += [] if curve is None else [curve]
    books += [History(folder / HISTORY, cost.seconds_of), SaveEachEpoch(resume, tell)]
    settings = _yaml_ready(experiment.identity())
    with quiet(), listening(loggers, experiment.name, folder, settings) as listeners:
        trainer = _trainer(experiment, method, devices, books, listeners)
        trainer.fit(method, datamodule=data, ckpt_path=_readable(resume), weights_only=True)
    if not trainer.is_global_zero:
        return {}
    return _finish(experiment, folder, method, best, cost, curve, data, taught)


def _trained(
    teacher: Experiment, folder: Path, devices: Devices, data_root: Path | None, download: bool
) -> dict[str, Any]:
    """Give a teacher's card; a teacher that is missing is trained, unless several processes would do so at once."""
    patience = 60 if devices.nodes > 1 else 0  # the first machine may be writing it
    while not (folder / CARD).is_file() and patience:
        time.sleep(1)
        patience -= 1
    if (folder / CARD).is_file():
        return read_yaml(folder / CARD)
    if devices.world > 1:
        raise BadInput(f"the teacher {teacher.row} is not in {folder}: train it before its student, as atbench does")
    with locked(folder):
        return train(teacher, folder, data_root=data_root, download=download)


def _trainer(
    experiment: Experiment,
    method: AdversarialTraining,
    devices: Devices,
    callbacks: list[pl.Callback],
    loggers: list[Logger],
) -> pl.Trainer:
    if experiment.sync_batchnorm and not torch.cuda.is_available():
        raise BadInput(
            "sync_batchnorm needs GPUs, because PyTorch synchronises BatchNorm on them only: set it to false"
        )
    several: dict[str, Any] = {"strategy": "ddp", "plugins": [LightningEnvironment()]} if devices.world > 1 else {}
    return pl.Trainer(
        accelerator="auto",
        devices=devices.devices,
        num_nodes=devices.nodes,
        sync_batchnorm=experiment.sync_batchnorm and devices.world > 1,
        **several,
        max_epochs=method.data_passes(),
        precision=experiment.precision,  # type: ignore[arg-type] # the suite's schema has checked it
        callbacks=callbacks,
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,
        deterministic="warn",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's greetings and its advice on workers and intervals off the terminal; errors still come."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _readable(resume: Path) -> Path | None:
    """Give the file to resume from, None where there is none."""
    if not resume.is_file():
        return None
    try:
        torch.load(resume, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(
            f"{resume} cannot be read, it may be truncated ({type(error).__name__}): delete it, and the training of "
            f"{resume.parent.name} starts anew"
        ) from None
    return resume


def _finish(
    experiment: Experiment,
    folder: Path,
    method: AdversarialTraining,
    best: KeepBest,
    cost: Cost,
    curve: Generalization | None,
    data: ImageData,
    taught: dict[str, Any],
) -> dict[str, Any]:
    images, rows, hidden = len(data.splits.train), data.rows_per_epoch, data.hidden
    last = method.classifier().state_dict()
    if not all(torch.isfinite(value).all() for value in last.values()):
        raise FloatingPointError(  # the loss cannot tell of the last step, which nothing was trained after
            f"the weights hold NaN or infinity at the end of the training: lower recipe.learning_rate "
            f"({experiment.recipe.learning_rate:g}) or set recipe.gradient_clip"
        )
    kept: dict[str, dict[str, Any]] = {
        "last": {"sha256": save_weights(folder / "last.safetensors", last), "epoch": method.last_epoch},
        "best": {"sha256": save_weights(folder / "best.safetensors", best.weights or last), "epoch": best.epoch},
    }
    if best.score is not None:
        kept["best"] |= {"held_out_robust": best.score.robust, "held_out_clean": best.score.clean}
        final = method.history[-1].get("held_out_robust", math.nan)
        kept["last"] |= {"held_out_robust": final, "overfitting_gap": best.score.robust - final}
    if hidden is not None and not experiment.semi_supervised and len(hidden.unlabelled):
        taught = label_hiding.label(method.classifier(), hidden, folder, rows)
    if companions := method.companions():
        taught = taught | {"companions": _keep_companions(companions, folder)}
    card = {
        "experiment": experiment.name,
        "status": "done",
        **_identity_card(experiment, method),
        "members": len(networks_in(method.classifier())),
        "parameters": sum(parameter.numel() for parameter in method.classifier().parameters()),
        "training_images": images,
        **label_hiding.counts(experiment, data),
        **taught,
        "forward_passes": cost.training.forward / rows,
        "backward_passes": cost.training.backward / rows,
        "selection_forward_passes": cost.selection.forward / images,
        "selection_backward_passes": cost.selection.backward / images,
        "seconds": round(cost.training_seconds, 4),
        "selection_seconds": round(cost.selection_seconds, 4),
        "device": _device(),
        **cost.of_devices(),
        "remarks": method.remarks(),
        "weights": kept,
        "catastrophic_overfitting": catastrophic_overfitting(method.history),
        "label_leaking": label_leaking(method.history),
        "trials": method.card.trials.get(experiment.dataset.name, 1),
        "versions": versions(),
        "history": method.history,
    }
    if curve is not None:
        keep(curve, experiment, folder, kept, folder / CURVES, whole=True)
    write_yaml(folder / CARD, card)  # last: whoever sees a card sees a finished experiment
    (folder / RESUME).unlink(missing_ok=True)
    return card


def _keep_companions(networks: list[nn.Module], folder: Path) -> dict[str, Any]:
    """Write networks that only training needed, and say what they were."""
    together = nn.ModuleList(networks)
    return {
        "networks": len(networks),
        "parameters": sum(parameter.numel() for parameter in together.parameters()),
        "sha256": save_weights(folder / COMPANIONS, together.state_dict()),
    }


def _identity_card(experiment: Experiment, method: AdversarialTraining) -> dict[str, Any]:
    card = method.card
    return {
        "method": experiment.row,
        "category": card.category,
        "comparison_class": card.comparison if experiment.labels is None else "D",
        "citation": card.citation,
        "reconstruction": card.reconstruction,
        "broken": card.broken,
        "seed": experiment.seed,
        "fold": experiment.fold,
        "dataset": experiment.dataset.name,
        "network": experiment.network.name,
        **label_hiding.protocol(experiment),
        "identity": _yaml_ready(experiment.identity()),
    }


def failed_card(experiment: Experiment, error: str) -> dict[str, Any]:
    """Give the card of an experiment that ended with an error, for the report."""
    return {
        "experiment": experiment.name,
        "status": "failed",
        "error": error,
        **_identity_card(experiment, experiment.method_class),  # type: ignore[arg-type] # has the card too
    }


def _yaml_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _yaml_ready(item) for key, item in value.items()}
    return [_yaml_ready(item) for item in value] if isinstance(value, list | tuple) else value


def versions() -> dict[str, str]:
    """Name the versions that a figure depends on."""
    packages = ("atbench", "torch", "torchvision", "pytorch-lightning", "pyautoattack", "numpy")
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


class SameWork(pl.Callback):
    """Make sure that the processes which met are training the same experiment: nodes are started by hand."""

    def __init__(self, experiment: Experiment) -> None:
        self.name = experiment.name

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Compare with the first process."""
        first = trainer.strategy.broadcast(self.name)
        if first != self.name:
            raise BadInput(
                f"the first process trains {first}, this one {self.name}: give the same command on each machine, "
                "with the same --checkpoints folder, which all of them share"
            )


class SaveEachEpoch(pl.Callback):
    """Write one resumable checkpoint after every epoch, in place of the one before, and tell how far the run is."""

    def __init__(self, path: Path, tell: Tell | None) -> None:
        self.path, self.tell = path, tell

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save after the other callbacks of the epoch's end; every rank gives its part, the first one writes."""
        if trainer.is_global_zero:
            with atomically(self.path) as temporary:
                trainer.save_checkpoint(temporary, weights_only=False)
        else:
            trainer.save_checkpoint(self.path, weights_only=False)
        if self.tell is not None:
            self.tell("training", trainer.current_epoch + 1, trainer.max_epochs or 0)
