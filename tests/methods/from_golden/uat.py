"""UAT in its three variants, with the pseudo-labels of the case's teacher."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from methods.unlabelled import HIDDEN, predicted_labels
from tests.golden import Case, ScriptedDraws


def build(case: Case):
    s = case.settings
    inner = Inner(steps=s["steps"], step_size=s["step_size"], start="uniform", mode=s["attack_mode"])
    settings = {"variant": s["variant"], "lam": s["lambda"], "inner": inner}
    method = catalogue.get("uat")(case.network, ThreatModel("linf", s["epsilon"]), **settings)
    x, y, index = case.batch
    hidden, teacher = y == HIDDEN, case._toy_model(case.changes["teacher"])
    labels = predicted_labels(teacher, x[hidden])
    assert labels.tolist() == case.record["inputs"]["pseudo_labels"]
    if s["variant"] != "ot":
        method.learn_from(index[hidden], labels)
    return method


def draws(case: Case):
    """The stored noise; where only the unlabelled images are attacked, their rows of it."""
    _, y, normal, uniform = case._batch
    rows = case.batch[1] == HIDDEN if case.settings["variant"] == "ot" else torch.ones_like(y, dtype=torch.bool)
    return ScriptedDraws(normal[rows], uniform[rows])


def compare(method, case: Case, trace) -> None:
    expected = case.expected
    first = next(m for m in case.network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert int(first.num_batches_tracked) == expected["first_bn_num_batches_tracked_after"]
    assert (trace.adversarial - case.batch[0][-len(trace.adversarial) :]).abs().max().item() == pytest.approx(
        expected["max_abs_perturbation"], rel=1e-9
    )
    smoothness = torch.stack(method._notes["smoothness"]).item() if method._notes["smoothness"] else 0.0
    if case.settings["variant"] != "ft":
        assert smoothness == pytest.approx(expected["loss_smoothness_term"], rel=1e-7)
    assert trace.loss.item() - method.lam * smoothness == pytest.approx(expected["loss_supervised_term"], rel=1e-7)
