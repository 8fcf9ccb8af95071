"""SSDRL on the record's two pools, in whose pixels images reach from -1 to 1."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from methods.unlabelled import HIDDEN
from tests.golden import Case, assert_images


def build(case: Case):
    s = case.settings
    method = catalogue.get("ssdrl")(
        case.network,
        ThreatModel("linf", 8 / 255),  # without a meaning
        gamma=s["gamma"],
        alpha=s["alpha"],
        lam=s["lambda"],
        max_classes=s["max_classes"],
        clipped=s["clip_to_-1_1"],
        inner=Inner(steps=s["steps"], start="none", mode="batch"),
    )
    made, perturb = [], method.perturb
    method.perturb = lambda *given: made.append(perturb(*given)) or made[-1]
    method.made = made
    return method


def batch(case: Case):
    """The batch with its second pool's labels hidden."""
    x, y, index = case.batch
    first, last = map(int, case.record["inputs"]["unlabelled_images"].split(".."))
    return x, y.index_fill(0, torch.arange(first, last + 1), HIDDEN), index


def compare(method, case: Case, trace):
    labelled, *unlabelled = (2 * images - 1 for images in method.made)
    assert_images(labelled, case.expected["x_adv_labelled"])
    assert_images(torch.stack(unlabelled, 1), case.expected["x_adv_unlabelled"])
    parts = case.expected["loss_labelled"] + case.expected["loss_unlabelled"]
    assert trace.loss.item() == pytest.approx(parts, rel=1e-7)
