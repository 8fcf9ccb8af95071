"""Fast AT, on images and on MNIST."""

from attacks import ThreatModel
from methods import catalogue
from tests.golden import Case


def build(case: Case):
    s = case.settings
    return catalogue.get("fast_at")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        step_size=s["step_size"],
        start="zero" if case.record["start"]["noise"] == "none" else "uniform",
        form="mnist" if "mnist" in case.name else "cifar",
    )
