import pytest

from attacks import ThreatModel
from methods import ALP
from methods.inner import Inner
from methods.recipe import Recipe


def build(case):
    s, start = case.settings, case.record["start"]
    classes = case.toy["classes"]
    # TensorFlow leaves the true class 1 - s + s / classes, the recipe 1 - s.
    recipe = Recipe(label_smoothing=s["label_smoothing"] * (classes - 1) / classes)
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start=start["noise"],
        boxed=start["clipped_to_box"],
        mode=s["attack_mode"],
    )
    label = "ll" if s["targeted"] else "predicted"
    threat = ThreatModel("linf", s["epsilon"])
    return ALP(case.network, threat, w_lp=s["lp_weight"], label=label, inner=inner, recipe=recipe)


def compare(method, case, trace):
    (pairing,) = method._notes["logit_pairing"]
    assert pairing.item() == pytest.approx(case.expected["logit_pairing_term"], rel=1e-7)
    assert (trace.loss - pairing).item() == pytest.approx(case.expected["cross_entropy"], rel=1e-7)
