"""Feature scattering: the plan and the distance of the first step, too."""

from dataclasses import replace

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.variants.feature_scatter import cosine_cost, sinkhorn
from tests.golden import Case


def build(case: Case):
    s = case.settings
    return catalogue.get("feature_scatter")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        smoothing=s["ls_factor"],
        regularisation=s["sinkhorn_epsilon"],
        steps=s["steps"],
        fixed_plan="transport plan detached" in case.name,
    )


def compare(method, case, trace):
    s, (x, *_), noise = case.settings, case.batch, case.settings["epsilon"] * case.draws.uniform(case.batch[0])
    fresh = build(replace(case))  # whose statistics no step has moved yet
    clean, moved = (fresh.frozen_logits(images) for images in (x, x + noise))
    cost = cosine_cost(clean, moved)
    plan, iterations = sinkhorn(
        cost, s["sinkhorn_epsilon"], at_most=s["sinkhorn_max_iterations"], stop=s["sinkhorn_stop"]
    )
    assert torch.equal(plan, sinkhorn(cost).plan)  # those are the defaults
    assert iterations <= 3
    expected = case.expected["transport_plan_first_step"]
    assert plan.flatten()[:16].tolist() == pytest.approx(expected["first16"], rel=1e-7, abs=1e-15)
    assert (plan.sum().item(), plan.norm().item()) == pytest.approx((expected["sum"], expected["l2_norm"]), rel=1e-9)
    assert (plan * cost).sum().item() == pytest.approx(case.expected["ot_loss_first_step"], rel=1e-7)
