"""What hiding labels adds to a training: a teacher's labels before it, and on its card what was known and guessed."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from benchmark.data import HiddenLabels, ImageData, Images, Splits, load
from benchmark.data.unlabelled import add
from benchmark.errors import BadInput
from benchmark.experiment import Experiment
from benchmark.references import beside
from benchmark.storage import load_weights, save_weights, sha256
from methods.unlabelled import PseudoLabelled, SelfLabelling, predicted_labels

PSEUDO_LABELS = "pseudo_labels.safetensors"
NOTE = "label-hiding protocol: labels hidden by us, in-distribution unlabelled data"
TEACHER_LIMITED = 0.6  # the protocol's threshold on the teacher's accuracy on unlabelled images; a choice of ours


def hide(experiment: Experiment, splits: Splits, data_root: Path | None, *, download: bool = False) -> HiddenLabels:
    """Hide the labels of an experiment's training images, and put beside them what else is to be learned from."""
    choice = experiment.dataset

    def read(name: str) -> Images:
        return load(name, data_root, download=download).train

    def whole() -> Images:
        held_out = choice.validation_images
        return load(choice.name, data_root, fold=experiment.fold, validation_images=held_out, code=choice.code).train

    hidden = HiddenLabels.of(splits.train, experiment.labelled)
    return add(choice.unlabelled, splits, hidden, seed=experiment.seed, whole=whole, other=read)


def label(network: nn.Module, hidden: HiddenLabels, folder: Path, rows: int) -> dict[str, Any]:
    """Let a network that was trained on the labelled images label the others, once and for all who learn from it.

    Args:
        rows: what a run's passes are divided by.

    Returns:
        for its card: the file's hash, the share of right labels, and what labelling cost.
    """
    parts = [hidden.train.take(some) for some in hidden.unlabelled.split(1000)]  # as pixels, all at once are many
    labels = torch.cat([predicted_labels(network, part.pixels()) for part in parts])
    index = hidden.train.index[hidden.unlabelled]
    return {
        "pseudo_labels": {
            "sha256": save_weights(folder / PSEUDO_LABELS, {"index": index, "labels": labels}),
            "accuracy": hidden.diagnostics.accuracy(index, labels),
            "forward_passes": len(index) / rows,
        }
    }


def teach(method: Any, folder: Path, card: dict[str, Any], hidden: HiddenLabels) -> dict[str, Any]:
    """Hand a teacher's pseudo-labels to ``method``; returns what the student's card says of its teacher.

    Pseudo-labels that came with images from elsewhere take the place of the teacher's.

    Args:
        folder: of the teacher. card: the teacher's.

    Raises:
        BadInput: when the labels are not those that the teacher's card names.
    """
    path, expected = folder / PSEUDO_LABELS, card["pseudo_labels"]["sha256"]
    kept = load_weights(path)
    if sha256(path) != expected:
        raise BadInput(f"{path} is not the file that its card names: delete {folder} and run again")
    if not isinstance(method, PseudoLabelled):
        raise TypeError(f"{type(method).__name__} asks for a teacher, but cannot learn from one: mix in PseudoLabelled")
    method.learn_from(kept["index"], kept["labels"])
    if hidden.given is not None:
        method.learn_from(*hidden.given)
    accuracy, last = card["pseudo_labels"]["accuracy"], card["weights"]["last"]
    return {
        "teacher": {"experiment": card["experiment"], "weights": last["sha256"], "pseudo_labels": expected},
        "teacher_held_out_clean": card["history"][-1].get("held_out_clean"),
        "pseudo_label_accuracy": accuracy,
        "teacher_limited": accuracy < TEACHER_LIMITED,
        "teacher_forward_passes": card["forward_passes"] + card["pseudo_labels"]["forward_passes"],
        "teacher_backward_passes": card["backward_passes"],
    }


def counts(experiment: Experiment, data: ImageData) -> dict[str, Any]:
    """Say which labels a run saw, and beside what it is shown; nothing where it saw them all."""
    if data.hidden is None:
        return {}
    more = len(data.hidden.train) - data.hidden.images
    return {
        **({"more_unlabelled_images": more} if more else {}),
        "validation_labels": len(data.splits.validation),
        "unlabelled_images": len(data.hidden.unlabelled),
        "labelled_images": " ".join(map(str, experiment.labelled)),
        "beside": beside(experiment),
    }


def protocol(experiment: Experiment) -> dict[str, Any]:
    """Say what is known of a run's labels before it begins: their number, and that they were hidden by us."""
    if experiment.labels is None:
        return {}
    pool = experiment.dataset.unlabelled
    told = {"labels": experiment.labels, "reference": experiment.reference, "data_note": "; ".join([NOTE, *pool.notes])}
    return told | ({"transductive": True} if pool.transductive else {})


class WatchGuesses(pl.Callback):
    """Write into the history how good the labels were that a method gave unlabelled images itself, epoch by epoch.

    ``pseudo_label_accuracy`` is the share of right ones among all guesses of the epoch, ``majority_share`` that of the
    most frequent class, and ``majority_class`` which class it was. The method learns none of it.
    """

    def __init__(self, hidden: HiddenLabels, classes: int) -> None:
        self.diagnostics, self.classes = hidden.diagnostics, classes
        self._begin()

    def _begin(self) -> None:
        self._right = torch.zeros(2, dtype=torch.int64)  # and how many of the guesses can be judged
        self._guessed = torch.zeros(self.classes, dtype=torch.int64)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin anew."""
        self._begin()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step's guesses."""
        if (guesses := pl_module.guesses) is not None:
            index, labels = (part.cpu() for part in guesses)
            self._right += torch.tensor(self.diagnostics.right(index, labels))
            self._guessed += labels.bincount(minlength=self.classes)
            pl_module.guesses = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Sum up what all ranks have counted, before the epoch's line of history is written."""
        mine = torch.cat([self._right, self._guessed]).to(pl_module.device)
        right, known, *guessed = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        if total := sum(guessed):
            most = max(guessed)
            found = {"majority_share": most / total, "majority_class": guessed.index(most)}
            if known:  # else all are images from elsewhere
                found["pseudo_label_accuracy"] = right / known
            for name, value in found.items():
                pl_module.note(name, torch.tensor(float(value), device=pl_module.device, dtype=torch.float64))


def watched(method: Any, data: ImageData) -> list[pl.Callback]:
    """Give the callback for a method that labels unlabelled images itself; none for others."""
    if data.hidden is None or not isinstance(method, SelfLabelling):
        return []
    return [WatchGuesses(data.hidden, data.splits.description.classes)]
