"""The authors' step with its log line. A clip without gradient on a bound is not ours; those cases are left out."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from tests.golden import cases

SKIPPED = {case.name for case in cases("yopo", "training_step") if case.settings.get("clamp_gradient_at_bounds") == 0}


def build(case):
    s = case.settings
    return catalogue.get("yopo")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        m=s["m"],
        n=s["n"],
        step_size=s["step_size"],
        first_layer_grad="intended" if "nothing from the full backward" in s["first_layer_gradient"] else "both",
        reduction="sum",
    )


def compare(method, case, trace):
    first, last = case.network[0], case.network[-1]
    expected = case.expected
    torch.testing.assert_close(
        first.bias.grad[:8], torch.tensor(expected["grad_first_layer_bias"], dtype=torch.float64), rtol=1e-7, atol=1e-9
    )
    for layer, name in ((first, "grad_first_layer_norm"), (last, "grad_last_layer_norm")):
        assert layer.weight.grad.norm().item() == pytest.approx(expected[name], rel=1e-7)
    with torch.no_grad():
        case.network(trace.adversarial)  # their forward for a log line: it moves BatchNorm's statistics once more
