"""MSD by its authors' two files, with a fixed number of L1 pixels."""

import re

from attacks import ThreatModel
from attacks.union import PerNorm
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case


def build(case: Case):
    s = case.settings
    mnist = case.record["source"]["file"].startswith("MNIST")
    lengths = {**s["step_size"], "l1": s["step_size"]["l1"] * (1 if mnist else 20)}  # their alpha_l_1 is of one of 20
    k = int(re.search(r"\d+", str(s["k"]))[0])
    return catalogue.get("msd")(
        case.network,
        ThreatModel("linf", s["epsilon"]["linf"]),
        radii=PerNorm("epsilon", s["epsilon"]["l2"], s["epsilon"]["l1"]),
        step_sizes=PerNorm(**lengths),
        k_min=k,
        k_max=k,
        form="mnist" if mnist else "cifar",
        inner=Inner(steps=s["steps"], start="none", mode=s["attack_mode"], keep="best"),
    )
