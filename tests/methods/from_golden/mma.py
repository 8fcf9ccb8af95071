"""Golden cases of mma: its network has a larger last layer, and four images to search on are enough."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s, network = case.settings, case.network
    scale = case.changes["last_linear_scale"]
    if scale is not None:
        last = [module for module in case.body.modules() if isinstance(module, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight *= scale
            last.bias *= scale
    norm = s["norm"].lower()
    method = catalogue.get("mma")(
        network,
        ThreatModel(norm, 8 / 255 if norm == "linf" else 0.5),
        d_max=s["hinge_maxeps"],
        e_max=s["maxeps"],
        e_min=s["mineps"],
        c=s["clean_loss_coeff"],
        halvings=s["num_search_steps"],
        search_floor=0,
        inner=Inner(steps=s["steps"], mode=s["attack_mode"]),
    )
    memory = case.record["inputs"]["memory_before"]
    index = torch.tensor([int(name) for name in memory], dtype=torch.int64)
    method.margins.store(index, torch.tensor(list(memory.values()), dtype=torch.float64))
    return method


def compare(method, case: Case, trace) -> None:
    x, _, index = case.batch
    expected = case.expected
    memory = [expected["memory_after"][str(number)] for number in index.tolist()]
    assert method.found.tolist() == pytest.approx(expected["eps_after_search"], rel=1e-9, abs=1e-12)
    assert method.margins.of(index).tolist() == pytest.approx(memory, rel=1e-9, abs=1e-12)
    assert (trace.adversarial != x).flatten(1).any(1).tolist() == expected["attacked"]
