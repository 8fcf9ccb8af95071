"""Golden cases of cat_customized: the authors' code, with its radius rule, its attack and its sums."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case, ScriptedDraws


class _StoredRows(ScriptedDraws):
    """The same points of the simplex before the attack and after it."""

    def __init__(self, rows) -> None:
        self._rows = torch.tensor(rows, dtype=torch.float64)

    def dirichlet(self, concentration, like, shape=()):
        assert (set(concentration), self._rows.shape) == ({1.0}, (*shape, len(concentration)))
        return self._rows.to(like)


def draws(case: Case) -> ScriptedDraws:
    return _StoredRows(case.record["inputs"]["dirichlet"])


def build(case: Case, radius_rule: str = "authors_code"):
    s = case.settings
    method = catalogue.get("cat_customized")(
        case.network,
        ThreatModel("linf", s["eps_cap"]),
        loss="ce" if s["kappa"] is None else "mix",
        eta=s["eta"],
        c=s["c"],
        radius_rule=radius_rule,
        attack_loss="authors_code",
        margin_reduction="sum",
        inner=Inner(steps=s["steps"], step_size=s["step_size"], start="none", mode=s["attack_mode"]),
        **({} if s["kappa"] is None else {"kappa": s["kappa"]}),
    )
    before = torch.tensor(case.record["inputs"]["eps_before"], dtype=torch.float64)
    method.radii.store(torch.arange(len(before)), before)
    return method


def compare(method, case: Case, trace) -> None:
    x, _, index = case.batch
    expected = case.expected
    assert method.radii.of(index).tolist() == pytest.approx(expected["eps_after"], rel=1e-9, abs=1e-12)
    moved = (trace.adversarial - x).abs().flatten(1).amax(1)
    assert (moved <= torch.tensor(expected["eps_in_attack"], dtype=torch.float64) + 1e-9).all()
