"""CCAT, whose start is given."""

import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import Case, ScriptedDraws


class GivenStart(ScriptedDraws):
    """The direction and length of the case for the images at the batch's end; or the images themselves."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.draws._normal, case.draws._uniform)
        self._kind = 2 if case.record["start"]["noise"] == "none" else 1

    def integers(self, high, like, shape=None, **_):
        return torch.tensor(self._kind)

    def normal(self, like, shape=None):
        return self._normal[-len(like) :]

    def uniform(self, like, shape=None):
        return 2 * self._uniform[-len(like) :, :1, :1, :1].abs() - 1


draws = GivenStart


def build(case: Case):
    s = case.settings
    inner = Inner(steps=s["steps"], step_size=s["step_size"], start="none", mode=s["attack_mode"], keep="best")
    return catalogue.get("ccat")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        momentum=s["momentum"],
        backtracking=s["lr_factor"] if s["backtracking"] else 1.0,
        reach=0.0,
        inner=inner,
        **{name: s[name] for name in ("rho", "fraction") if name in s},
    )


def compare(method, case, trace):
    (share,) = method._notes["label_share"]
    uniform = torch.tensor(case.expected["uniform_weight_per_image"]["values"], dtype=torch.float64)
    torch.testing.assert_close(1 - share, uniform.mean(), rtol=1e-9, atol=1e-12)
