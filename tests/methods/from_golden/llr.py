"""LLR: the cases hold the regulariser alone, so here the nominal loss, in eval mode, has no weight."""

import re

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner


def build(case):
    s = case.settings
    rate = float(re.search(r"Adam lr ([0-9.]+)", s["optimizer"])[1])
    inner = Inner(steps=s["steps"], step_size=rate, start="uniform", mode="batch")
    threat = ThreatModel("linf", s["epsilon"])
    return catalogue.get("llr")(case.network, threat, w_nom=0.0, w_llr=1.0, s=s["smoothing_factor"], inner=inner)


def compare(method, case, trace):
    """The regulariser's forwards, besides the nominal one whose loss has no weight here."""
    assert method.inner.steps + 1 == case.expected["model_forwards"]["reuse"]
