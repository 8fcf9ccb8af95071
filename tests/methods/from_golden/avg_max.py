"""AVG and MAX over the three attacks of the golden file."""

from attacks import ThreatModel
from attacks.union import PerNorm
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case, ScriptedDraws, cases


class NoL1Start(ScriptedDraws):
    """Leaves the L1 attack without a start, as the file's does."""

    def laplace(self, like, shape=None):
        return 0 * like


def build(case: Case):
    attacks = {attack.settings["norm"]: attack.settings for attack in cases("avg_max", "attack")}
    (steps,) = {s["steps"] for s in attacks.values()}
    return catalogue.get("avg_max")(
        case.network,
        ThreatModel("linf", attacks["linf"]["epsilon"]),
        strategy=case.name if case.name in ("avg", "max") else "max",
        radii=PerNorm(*(attacks[norm]["epsilon"] for norm in ("linf", "l2", "l1"))),
        step_sizes=PerNorm(*(attacks[norm]["step_size"] for norm in ("linf", "l2", "l1"))),
        percentile=attacks["l1"]["perc"],
        inner=Inner(steps=steps),
    )


def draws(case: Case):
    return NoL1Start(case.draws._normal, case.draws._uniform)


def compare(method, case: Case, trace):
    if "selected" in case.expected:
        for kind in ("linf", "l2", "l1"):
            share = case.expected["selected"].count(kind) / len(case.batch[1])
            assert method._notes[f"share_{kind}"][0].item() == share
