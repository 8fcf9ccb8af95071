"""TRADES, with the third forward of its code."""

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    return gaussian_start(case, exact_forwards=True)


def gaussian_start(case: Case, **settings):
    s = case.settings
    inner = Inner(
        steps=s["steps"], step_size=s["step_size"], start="gaussian", scale=1e-3, boxed=False, mode=s["attack_mode"]
    )
    threat = ThreatModel(s["distance"].replace("_", "").replace("linf", "linf"), s["epsilon"])
    return catalogue.get(case.method)(case.network, threat, beta=s["beta"], inner=inner, **settings)
