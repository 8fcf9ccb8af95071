"""The fine-tuning step, in its original attack and repaired."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from tests.golden import Case
from tests.methods.from_golden.ss_rotation import centre_of, inner_of


def build(case: Case):
    threat = ThreatModel("linf", case.settings["epsilon"])
    return catalogue.get("pretraining")(case.network, threat, centre=centre_of(case), inner=inner_of(case))


def compare(method, case: Case, trace):
    moved = (trace.adversarial - case.batch[0]).abs().max().item()
    assert moved == pytest.approx(case.expected["max_abs_perturbation"], abs=1e-9)
    seen = next(part for part in case.network.modules() if isinstance(part, torch.nn.BatchNorm2d)).num_batches_tracked
    assert int(seen) == case.expected["first_bn_num_batches_tracked_after"]
