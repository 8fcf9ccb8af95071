"""What hiding labels adds to a training: a teacher's labels before it, and on its card what was known and guessed."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmark.data import HiddenLabels, ImageData
from benchmark.errors import BadInput
from benchmark.experiment import Experiment
from benchmark.references import beside
from benchmark.storage import load_weights, save_weights, sha256
from methods.unlabelled import PseudoLabelled, predicted_labels

PSEUDO_LABELS = "pseudo_labels.safetensors"
NOTE = "label-hiding protocol: labels hidden by us, in-distribution unlabelled data"
TEACHER_LIMITED = 0.6  # the protocol's threshold on the teacher's accuracy on unlabelled images; a choice of ours


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


def teach(method: Any, folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Hand a teacher's pseudo-labels to ``method``; returns what the student's card says of its teacher.

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
    return {
        "validation_labels": len(data.splits.validation),
        "unlabelled_images": len(data.hidden.unlabelled),
        "labelled_images": " ".join(map(str, experiment.labelled)),
        "beside": beside(experiment),
    }


def protocol(experiment: Experiment) -> dict[str, Any]:
    """Say what is known of a run's labels before it begins: their number, and that they were hidden by us."""
    if experiment.labels is None:
        return {}
    return {"labels": experiment.labels, "reference": experiment.reference, "data_note": NOTE}
