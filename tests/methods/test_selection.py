"""Which epoch is kept: the protocol's rule, and the rule of robust_overfitting."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks import ThreatModel, counting, cross_entropy_with
from attacks.pgd import pgd
from methods.selection import KeepBest, Score, held_out_verdicts, select
from tests.golden import one
from tests.methods.tools import images, network

accuracies = st.integers(0, 5).map(lambda count: count / 5)
curves = st.lists(st.builds(Score, accuracies, accuracies), min_size=1, max_size=12)


def robust_only(values):
    return [Score(value, 0.0) for value in values]


def test_the_authors_validation_curve_selects_their_epoch():
    (curve,) = one("robust_overfitting", "policy").expected["values"]
    chosen = select(robust_only(curve["values"]), ties="first")
    assert chosen == curve["selected_epoch"] == 102
    assert curve["values"][chosen] == curve["selected_value"] == 0.524


@given(curves)
def test_with_ties_to_the_first_the_earliest_maximum_is_kept(curve):
    robust = [score.robust for score in curve]
    assert select(curve, ties="first") == robust.index(max(robust))


@given(curves)
def test_the_protocol_decides_by_robust_then_clean_accuracy_then_for_the_later_epoch(curve):
    keys = [(score.robust, score.clean, epoch) for epoch, score in enumerate(curve)]
    assert select(curve) == max(keys)[-1]


def test_a_constant_curve_keeps_the_first_or_by_the_protocol_the_last_epoch():
    assert select(robust_only([0.4] * 5), ties="first") == 0
    assert select(robust_only([0.4] * 5)) == 4


@pytest.mark.parametrize("ties", ["first", "later"])
def test_a_rising_curve_keeps_the_last_epoch(ties):
    assert select(robust_only([0.1, 0.2, 0.3]), ties=ties) == 2


@given(curves, st.data())
@pytest.mark.parametrize("ties", ["first", "later"])
def test_nan_never_wins(ties, curve, data):
    spoilt = data.draw(st.sets(st.integers(0, len(curve) - 1)))
    broken = [Score(math.nan, score.clean) if epoch in spoilt else score for epoch, score in enumerate(curve)]
    chosen = select(broken, ties=ties)
    assert chosen is None if len(spoilt) == len(curve) else chosen not in spoilt


def test_where_robust_accuracy_is_constant_clean_accuracy_decides():
    assert select([Score(0.0, 0.3), Score(0.0, 0.9), Score(0.0, 0.5)]) == 1


def test_a_new_keep_best_takes_up_the_state_of_another():
    one_callback, other = KeepBest(), KeepBest()
    one_callback.score, one_callback.epoch, one_callback.weights = Score(0.5, 0.9), 3, {"w": torch.ones(2)}
    other.load_state_dict(one_callback.state_dict())
    assert (other.score, other.epoch) == (Score(0.5, 0.9), 3)
    other.load_state_dict(KeepBest().state_dict())
    assert (other.score, other.epoch, other.weights) == (None, None, None)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_held_out_attack_depends_on_the_image_and_its_number_alone(norm):
    body, threat = network().eval(), ThreatModel(norm, 0.1 if norm == "linf" else 0.8)
    x, y = images(24)
    index = torch.arange(24) + 100
    state = torch.get_rng_state()
    clean, _, robust = held_out_verdicts(body, x, y, index, threat, seed=1)
    pieces = [
        held_out_verdicts(body, x[part], y[part], index[part], threat, seed=1) for part in torch.arange(24).split(7)
    ]
    assert torch.equal(torch.cat([piece.clean for piece in pieces]), clean)
    assert torch.equal(torch.cat([piece.robust for piece in pieces]), robust)
    assert torch.equal(torch.get_rng_state(), state)
    assert not (robust & ~clean).any()


def test_the_held_out_attack_costs_what_the_specification_says():
    body = network().eval()
    x, y = images(6)
    with counting(body) as passes:
        held_out_verdicts(body, x, y, torch.arange(6), ThreatModel("linf", 0.1), seed=0)
    assert (passes.forward, passes.backward) == (23 * 6, 20 * 6)


def test_the_held_out_attack_is_the_worse_of_two():
    """A network whose cross-entropy has no gradient left falls to the margin."""

    class Saturated(torch.nn.Module):
        def forward(self, x):
            total = x.flatten(1).sum(1)
            return 1e6 * torch.stack([total, torch.full_like(total, 0.02 * 64)], 1)

    x = torch.full((4, 1, 8, 8), 0.05)
    y, threat = torch.zeros(4, dtype=torch.long), ThreatModel("linf", 0.2)
    by_cross_entropy = pgd(Saturated(), x, cross_entropy_with(y), threat, start=x, steps=10, step_size=0.05)
    assert torch.equal(by_cross_entropy, x)
    clean, _, robust = held_out_verdicts(Saturated(), x, y, torch.arange(4), threat, seed=0)
    assert clean.all()
    assert not robust.any()
