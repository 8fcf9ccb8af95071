"""PGD training on its authors' two code bases."""

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import Case


def build(case: Case):
    s = case.settings
    l2 = s.get("constraint") == "2" or s.get("norm") == "l_2"
    noise = case.record["start"]["noise"]
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="none" if noise == "none" else "uniform" if not l2 else "sphere" if "constraint" in s else "ball",
        mode=s["attack_mode"],
        keep="best" if s.get("use_best") else "last",
        scored=case.method != "pgd_at",
        patience=(s.get("early_stop_pgd_max", 1) if s.get("early_stop") or s.get("early_stop_pgd") else None),
    )
    recipe = Recipe(label_smoothing=s.get("label_smoothing", 0.0))
    threat = ThreatModel("l2" if l2 else "linf", s["epsilon"])
    return catalogue.get("pgd_at")(case.network, threat, inner=inner, recipe=recipe)
