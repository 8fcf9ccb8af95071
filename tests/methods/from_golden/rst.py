"""RST by TRADES and by noise."""

from attacks import ThreatModel
from methods import catalogue
from tests.golden import Case
from tests.methods.from_golden.trades import gaussian_start


def build(case: Case):
    if case.settings["adversarial"]:
        return gaussian_start(case, entropy_weight=case.settings["entropy_weight"])
    threat = ThreatModel("l2", case.settings["epsilon"])
    return catalogue.get("rst")(case.network, threat, beta=case.settings["beta"], sigma="epsilon")
