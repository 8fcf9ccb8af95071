"""IAAT, with the radii that the case found."""

import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case

SKIPPED = {"attack_only_eval"}  # it has a test of its own


def build(case: Case):
    s = case.settings
    method = catalogue.get("iaat")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        inner=Inner(
            steps=s["steps"], step_size=s["attack_lr_floor"], start="uniform", boxed=False, mode=s["attack_mode"]
        ),
        gamma=s["gamma"],
        beta=s["beta"],
        warmup=max(0, s["warmup"] - s["epoch"]),  # without a trainer the epoch is 0
    )
    before = torch.tensor(case.record["inputs"]["eps_memory_before"], dtype=torch.float64)
    method.radii.store(torch.arange(len(before)), before)
    return method
