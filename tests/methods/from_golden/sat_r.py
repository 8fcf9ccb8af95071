"""Golden cases of the regularisers for single-step training."""

import pytest

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s = case.settings
    return catalogue.get("sat_r")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        variant=s["variant"],
        lam=s["lambda"],
        alpha=s.get("rfgsm_alpha"),
        eps_low=s["step_size"][0] if s["variant"] == "R3" else None,
        tau=s.get("tau"),
        inner=Inner(steps=s["steps"], step_size="epsilon", start="none", mode=s["attack_mode"]),
    )


def compare(method, case: Case, trace) -> None:
    """The two parts of the loss."""
    names = {
        "cross_entropy": "cross_entropy",
        "regulariser": "logit_distance",
        "loss_low": "cross_entropy_low",
        "loss_high": "cross_entropy",
        "hinge_active": "hinge_active",
    }
    for theirs, ours in names.items():
        if theirs in case.expected:
            assert method._notes[ours][0].item() == pytest.approx(float(case.expected[theirs]), rel=1e-7)
