"""One attack on the whole batch, or the groups of a mixed batch; r stands a quarter of its way, in every group."""

import pytest

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from tests.golden import ScriptedDraws

SKIPPED = {"perturb_quad_k3_eval"}  # the held-out measurement


class WithFactor(ScriptedDraws):
    """Has the place of r in its interval, from -1 to 1, where a single number is drawn."""

    share = 0.25

    def uniform(self, like, shape=None):
        return super().uniform(like) if shape is None else like.new_full(shape, 2 * self.share - 1)


def build(case):
    s, mixed = case.settings, "k" in case.settings
    lesson = s["k"] if mixed else s["steps"]
    method = catalogue.get("cat_curriculum")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        batch_mixing=mixed,
        first_lesson=lesson,
        inner=Inner(steps=lesson, step_size="2 epsilon", start="uniform", boxed=False, mode=s["attack_mode"]),
    )
    method.told = {}
    method.note = method.told.__setitem__
    return method


def draws(case):
    _, _, normal, uniform = case._batch
    scripted = WithFactor(normal, uniform)
    if multiplier := case.record["inputs"].get("multiplier"):
        scripted.share = (multiplier - 1) / (10 / case.settings["steps"] - 1)
    return scripted


def compare(method, case, trace):
    if "correct" in case.expected:
        assert method.told["train_accuracy"].sum() == case.expected["correct"]
    if groups := case.record["inputs"].get("groups"):
        assert [[rows.start, rows.stop, steps] for steps, rows in method.groups(len(trace.adversarial))] == groups
    assert method.told["lesson"] == pytest.approx(method.lesson)
