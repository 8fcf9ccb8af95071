"""Golden cases of single-step training with checkpoints."""

from attacks import ThreatModel
from methods import catalogue
from tests.golden import Case


def build(case: Case):
    s = case.settings
    return catalogue.get("single_step_checkpoints")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        checkpoints=s["checkpoints_c"],
        step_size=s["step_size"],
        inf_batch=s["inf_batch"],
        attack_mode=s["attack_mode"],
    )
