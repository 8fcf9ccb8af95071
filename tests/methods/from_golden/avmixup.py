"""AVMixup."""

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s = case.settings
    inner = Inner(steps=s["steps"], step_size=s["step_size"], start="uniform", mode="batch")  # "untouched", they say
    own = {name: s[name] for name in ("gamma", "lambda1", "lambda2")}
    return catalogue.get("avmixup")(case.network, ThreatModel("linf", s["epsilon"]), inner=inner, **own)
