"""The authors' attack measures from where it starts; that is the natural image where nothing is drawn."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner


def build(case):
    s = case.settings
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="uniform" if s["random_start"] else "none",
        boxed=case.record["start"]["clipped_to_box"],
        mode=s["attack_mode"],
    )
    method = catalogue.get("dynamic_at")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        c_max=s["fosc_threshold"],  # without a trainer the epoch is 0
        fosc_reference="start" if s["random_start"] else "image",
        inner=inner,
    )
    method.told = {}
    method.note = method.told.__setitem__
    return method


def compare(method, case, trace):
    steps, expected = method.inner.steps, case.expected
    found = torch.stack([method.told[f"fosc_{step}"] for step in range(1, steps + 1)], dim=1)
    torch.testing.assert_close(
        found, torch.tensor(expected["fosc_after_each_step"], dtype=torch.float64), rtol=1e-7, atol=1e-9
    )
    assert method.told["steps_per_image"].tolist() == expected["steps_taken_per_sample"]
    assert method.told["median_fosc_last"] == pytest.approx(found[:, -1].median().item())
