"""Hypersphere embedding in three frameworks, all started from Gaussian noise."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case

FRAMEWORKS = {"pgd_loss": "pgd_at", "trades_loss": "trades", "alp_loss": "alp"}


def build(case: Case):
    s, start = case.settings, case.record["start"]
    _ = case.batch  # its labels are those of the network before it gets another head
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="gaussian",
        scale=start["scale"],
        boxed=start["clipped_to_box"],
        mode=s["attack_mode"],
    )
    return catalogue.get("hypersphere")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        framework=FRAMEWORKS[case.record["source"]["function"]],
        s=s["s"],
        m=s["m"],
        beta=s["beta"],
        inner=inner,
    )


def compare(method, case: Case, trace) -> None:
    expected = torch.tensor(case.expected["grad_fc_first"], dtype=torch.float64)
    torch.testing.assert_close(method.head.weight.grad.flatten()[: len(expected)], expected, rtol=1e-7, atol=1e-10)
    assert method.head.weight.norm(dim=1).tolist() == pytest.approx([1] * case.toy["classes"])
