"""Try an experiment out: one training step on two images and a short attack, on its real network; nothing is kept."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmark.data import HiddenLabels, ImageData, Images, MissingData, Splits, load
from benchmark.evaluation import evaluate
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment, description
from benchmark.row_attack import RowAttack
from benchmark.training import quiet
from methods.base import AdversarialTraining
from methods.unlabelled import PseudoLabelled

IMAGES = 2  # of a training step and of an attack
STEPS = 2  # of the attack


@dataclass(frozen=True)
class DryRun:
    """What was done, for people to read: the sentence of each part."""

    network: str
    images: str
    training: str
    attack: str

    def __str__(self) -> str:
        return "\n".join([self.network, self.images, self.training, self.attack])


def dry_run(experiment: Experiment, settings: Evaluation, data_root: Path | None = None) -> DryRun:
    """Take one optimizer step of ``experiment`` and attack what came of it; nothing is written anywhere.

    Where the data set is absent, or only described, images and labels are random ones of its shape and classes.

    Raises:
        FloatingPointError: when the loss is no number. BadInput: for a mistake in the experiment.
    """
    splits, absent = _two_images(experiment, data_root)
    known = splits.description
    network = experiment.build_network()
    method = experiment.build_method(network)
    counted = sum(parameter.numel() for parameter in network.parameters())
    loss, training_seconds = _one_step(experiment, method, splits)
    row = settings.row or RowAttack(epsilon=settings.ranked_at[0], steps=settings.steps, step_size=settings.step_size)
    row = replace(row, steps=STEPS, restarts=1)
    short = replace(settings, attacks=["row"], row=row, images=None, batch_size=IMAGES, ranked_at=[row.epsilon])
    classifier = method.classifier()
    # After one step BatchNorm still has the statistics of no image, with which deep networks overflow in eval mode.
    update_bn([splits.train.pixels().to(method.device)], classifier)
    begun = time.perf_counter()
    verdicts = evaluate(classifier, splits.test, experiment.threat, short, attacks=["row"])
    attack_seconds = time.perf_counter() - begun
    shape = "x".join(map(str, (known.channels, known.size, known.size)))
    source = f"random images and labels, because {absent}" if absent else f"the first images of {known.name}"
    return DryRun(
        network=f"network: {experiment.network.name}, {counted:,} parameters, {known.classes:,} classes",
        images=f"images: {IMAGES} of {shape}, {source}",
        training=f"training: one step of {experiment.method}, loss {loss:.4f}, {training_seconds:.1f} s",
        attack=f"attack: {row}, {row.loss}, fools {int(verdicts.fooled.sum())} of {IMAGES}, {attack_seconds:.1f} s",
    )


def _two_images(experiment: Experiment, data_root: Path | None) -> tuple[Splits, str]:
    """Give two images for each part, and why they are random ones; "" where they are real."""
    choice = experiment.dataset
    try:
        whole = load(choice.name, data_root, fold=experiment.fold, code=choice.code)
    except MissingData:
        known = description(choice)
        parts = [_random(known.channels, known.size, known.classes, first) for first in (0, IMAGES, 0)]
        return Splits(
            known, *parts
        ), f"{known.name} is not here" if known.readable else f"{known.name} has no reader yet"
    first = torch.arange(IMAGES)
    return replace(whole, **{part: getattr(whole, part).take(first) for part in ("train", "validation", "test")}), ""


def _random(channels: int, size: int, classes: int, first: int) -> Images:
    draw = torch.Generator().manual_seed(first)
    pixels = torch.randint(0, 256, (IMAGES, channels, size, size), generator=draw, dtype=torch.uint8)
    return Images.of(pixels, torch.randint(0, classes, (IMAGES,), generator=draw), first=first)


def _one_step(experiment: Experiment, method: AdversarialTraining, splits: Splits) -> tuple[float, float]:
    """Train on one batch as Lightning would in the first epoch of the recipe; returns its loss and the seconds."""
    hidden = None
    if experiment.labels is not None:  # one image keeps its label, the other has a random one where a teacher's is due
        hidden = HiddenLabels.of(splits.train, splits.train.index[:1].tolist())
        if isinstance(method, PseudoLabelled):
            method.learn_from(splits.train.index[1:], _another(splits.train.labels[1:], splits.description.classes))
    data = ImageData(
        splits,
        batch_size=IMAGES,
        seed=experiment.seed,
        augment=experiment.dataset.augment,
        hidden=hidden,
        labelled_rows=method.labelled_rows if experiment.semi_supervised else None,
        redraws=method.redraws_unlabelled,
    )
    watch = _FirstStep()
    with quiet():
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=method.data_passes(),
            limit_train_batches=1,
            limit_val_batches=0,
            precision=experiment.precision,  # type: ignore[arg-type] # the suite's schema has checked it
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(method, datamodule=data)
    return method.history[0]["loss"], watch.seconds


def _another(labels: Tensor, classes: int) -> Tensor:
    return (labels + 1) % classes


class _FirstStep(pl.Callback):
    """Time the first batch, all updates that a method makes of it included, and end the training behind it."""

    def __init__(self) -> None:
        self.seconds, self._begun = 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: nn.Module, batch: object, batch_idx: int) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: nn.Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.seconds = time.perf_counter() - self._begun
        trainer.should_stop = True
