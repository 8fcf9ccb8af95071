"""RLFAT_P and RLFAT_T, whose cuts and orders are given."""

import pytest
import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case, ScriptedDraws


class GivenBlocks(ScriptedDraws):
    """The case's cuts and orders, rows before columns."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.draws._normal, case.draws._uniform)
        given = case.record["inputs"]
        self._cuts = [given["rows_cut_points"], given["columns_cut_points"]]
        self._orders = [given["rows_order"], given["columns_order"]]

    def integers(self, high, like, shape=None, **_):
        cuts = torch.tensor(self._cuts.pop(0))
        assert cuts.shape == tuple(shape)
        return cuts

    def permutation(self, size, like, **_):
        return torch.tensor(self._orders.pop(0))


draws = GivenBlocks


def build(case: Case):
    s, start = case.settings, case.record["start"]
    on_trades = start["noise"] == "normal"
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="gaussian" if on_trades else "uniform",
        scale=start["scale"],
        boxed=start["clipped_to_box"],
        mode=s["attack_mode"],
    )
    own = {"variant": "T", "beta": s["beta"]} if on_trades else {"variant": "P"}
    k = len(case.record["inputs"]["rows_order"])
    threat = ThreatModel("linf", s["epsilon"])
    return catalogue.get("rlfat")(case.network, threat, eta=s["eta"], k=k, inner=inner, **own)


def compare(method, case, trace):
    (transfer,) = method._notes["transfer"]
    assert transfer.item() == pytest.approx(case.expected["loss_feature_transfer"], rel=1e-7)
