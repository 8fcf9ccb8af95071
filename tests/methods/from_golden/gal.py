"""GAL with adversarial images; without them its own file tests loss and gradients."""

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s = case.settings
    attack = {"steps": s["steps"], "step_size": s["step_size"], "mode": s["attack_mode"]} if s["plus_adv"] else {}
    return catalogue.get("gal")(
        case.network,
        ThreatModel("linf", s["epsilon"] or 0.0),
        lam=s["lambda"],
        noise=0,
        plus_adv="pgd" if s["plus_adv"] else "none",
        inner=Inner(start="uniform", boxed=case.record["start"]["clipped_to_box"], **attack),
    )
