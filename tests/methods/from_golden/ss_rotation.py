"""The rotation head of the record, the original attack and both repairs of it."""

import numpy as np
import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s, head = case.settings, case.changes["rotation_head"]
    method = catalogue.get("ss_rotation")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        rotation_weight=s["rotation_weight"],
        attack_rotations=s["attack_rotations"],
        centre=centre_of(case),
        inner=inner_of(case),
    )
    draw = np.random.RandomState(case.toy["seed"] + head["seed_offset"])
    weight = torch.from_numpy(draw.standard_normal(head["shape"]) * head["scale"])
    method.double().head.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight)).double()})
    return method


def centre_of(case: Case):
    """What ran unchanged has the slip; what was repaired has not."""
    return "start" if case.record["ran"] == "original" else "image"


def inner_of(case: Case):
    s, start = case.settings, case.record["start"]
    return Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start=start["noise"],
        scale=start["scale"] or "epsilon",
        boxed=start["clipped_to_box"],
        mode=s["attack_mode"],
    )


def compare(method, case: Case, trace):
    expected, size = case.expected, len(case.batch[0])
    x = torch.cat([case.batch[0], *(torch.rot90(case.batch[0], turn, (2, 3)) for turn in range(4))])
    assert [block.sum().item() for block in trace.adversarial.split(size)] == pytest.approx(
        expected["x_adv_block_sums"], rel=1e-9
    )
    assert (trace.adversarial - x).abs().max().item() == pytest.approx(expected["max_abs_perturbation"], abs=1e-9)
    gradient = method.head.weight.grad
    assert gradient.norm().item() == pytest.approx(expected["grad_rot_head_norm"], rel=1e-7)
    first = torch.tensor(expected["grad_rot_head_first8"], dtype=torch.float64)
    torch.testing.assert_close(gradient.flatten()[:8], first, rtol=1e-7, atol=1e-9)
    seen = next(part for part in case.network.modules() if isinstance(part, torch.nn.BatchNorm2d)).num_batches_tracked
    assert int(seen) == expected["first_bn_num_batches_tracked_after"]
    assert expected["loss_classification"] + case.settings["rotation_weight"] * expected[
        "loss_rotation"
    ] == pytest.approx(trace.loss.item(), rel=1e-7)
