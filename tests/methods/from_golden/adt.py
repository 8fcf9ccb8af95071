"""ADT-EXP; the amortised variants, whose loss is recorded without its second term, are tested in their own file."""

from dataclasses import replace

import pytest
import torch

from attacks import ThreatModel, cross_entropy_with
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case, ScriptedDraws, cases

SKIPPED = {case.name for case in cases("adt", "training_step") if case.settings["variant"] != "adt_exp"}
VARIANTS = {"adt_exp": "exp", "adt_expam": "exp_am", "adt_impam": "imp_am"}


class Rolled(ScriptedDraws):
    """Gives the stored noise rolled once more along the batch at every draw; for z the first pixels of the other."""

    def __init__(self, normal, uniform) -> None:
        super().__init__(normal, uniform)
        self.drawn = 0

    def normal(self, like, shape=None):
        self.drawn += 1
        return torch.roll(self._normal, self.drawn - 1, dims=0)

    def uniform(self, like, shape=None):
        return self._uniform.reshape(len(like), -1)[:, : shape[1]]


def draws(case: Case) -> Rolled:
    _, _, normal, uniform = case._batch
    return Rolled(normal, uniform)


def build(case: Case):
    s = case.settings
    own = {"samples": s["num_samples"], "inner_lr": s["adam_lr"]} if s["variant"] == "adt_exp" else {}
    own |= {"z_dim": s["z_dim"], "threshold": s["entropy_threshold"]} if s["variant"] == "adt_impam" else {}
    return catalogue.get("adt")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        variant=VARIANTS[s["variant"]],
        lam=s["lambda"],
        inner=Inner(steps=7 if s["steps"] is None else s["steps"], start="none", mode=s["attack_mode"]),
        **own,
    )


def compare(method, case: Case, trace) -> None:
    untouched = build(replace(case)).train()  # BatchNorm's statistics have moved by now
    untouched.draws = draws(case)
    x, y, _ = case.batch
    found = untouched._search(x, cross_entropy_with(y))
    for part, name in zip(found, ("adv_mean_after_attack", "adv_rho_after_attack"), strict=True):
        expected = case.expected[name]
        assert part.flatten()[:16].tolist() == pytest.approx(expected["first16"], rel=1e-7)
        assert part.sum().item() == pytest.approx(expected["sum"], rel=1e-7)
        assert part.norm().item() == pytest.approx(expected["l2_norm"], rel=1e-7)
