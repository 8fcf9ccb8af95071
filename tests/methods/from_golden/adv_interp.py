"""Adversarial interpolation: the labels that the images are trained with, too."""

import pytest

from attacks import ThreatModel
from methods import catalogue
from methods.variants.adv_interp import interpolated_labels
from tests.golden import Case


def build(case: Case):
    s = case.settings
    return catalogue.get("adv_interp")(case.network, ThreatModel("linf", s["epsilon"]), epsilon_y=s["epsilon_y"])


def compare(method, case, trace):
    assert (method.inner.steps, method.inner.mode) == (case.settings["steps"], case.settings["attack_mode"])
    x, y, _ = case.batch
    labels = interpolated_labels(y, y[method.partners(x)], method.epsilon_y, x.new_empty(1, case.toy["classes"]))
    expected = case.expected["y_tilde"]
    assert labels.flatten()[:16].tolist() == pytest.approx(expected["first16"], abs=1e-12)
    assert (labels.sum().item(), labels.norm().item()) == pytest.approx((expected["sum"], expected["l2_norm"]))
    assert labels[0].tolist() == pytest.approx(case.expected["y_tilde_row0"], abs=1e-12)
