"""DVERGE's golden step, whose losses are one for each member: all of them are tested in the method's own file."""

import torch

from attacks import ThreatModel
from methods import catalogue
from methods.base import Batch
from methods.inner import Inner
from tests.golden import Case, cases
from tests.toy import toy_batch

SKIPPED = [case.name for case in cases("dverge", "training_step")]


def target_of(case: Case) -> Batch:
    toy = case.toy
    seed = toy["seed"] + case.changes["target_batch"]
    x, y, *_ = toy_batch(seed, case.body, toy["batch_size"], toy["channels"], toy["classes"])
    return Batch(x, y, torch.arange(len(y)))


def build(case: Case):
    s = case.settings
    distil = s.get("distill") or {
        "eps": s["epsilon"],
        "step_size": s["step_size"],
        "steps": s["steps"],
        "layer": int(case.name.split("layer=")[1][0]),
        "momentum": s["momentum"],
        "mu": s["mu"],
        "random_start": "none" if case.record["start"]["noise"] == "none" else "uniform",
    }
    assert distil["step_size"] * distil["steps"] == distil["eps"]  # which is how long our steps are
    plus_adv = s.get("plus_adv", False)
    attack = {"step_size": s["step_size"], "mode": s["attack_mode"]} if plus_adv else {}
    method = catalogue.get("dverge")(
        case.network,
        ThreatModel("linf", s["epsilon"] if plus_adv else 0.0),
        eps_d=distil["eps"],
        momentum=distil["mu"] if distil["momentum"] else 0.0,
        random_start=distil["random_start"] != "none",
        include_logits=True,
        plus_adv=plus_adv,
        coefficient=s.get("dverge_coeff", 1.0),
        inner=Inner(steps=distil["steps"], start="uniform", boxed=True, **attack),
    )
    method.draws = case.draws
    method.layer_for = lambda x: method.count_layers(x) and distil["layer"]
    method.target_batch = lambda batch: target_of(case)
    return method
