"""FAT with both losses."""

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s, gaussian = case.settings, case.record["start"]["noise"] == "normal"
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="gaussian" if gaussian else "uniform",
        scale=1e-3 if gaussian else "epsilon",
        boxed=case.record["start"]["clipped_to_box"],
        mode=s["attack_mode"],
    )
    loss = {"loss": "trades", "beta": s["beta"]} if s["outer_loss"].startswith("TRADES") else {"loss": "ce"}
    threat = ThreatModel("linf", s["epsilon"])
    return catalogue.get("fat")(case.network, threat, tau=s["tau"], omega=s["omega"], inner=inner, **loss)
