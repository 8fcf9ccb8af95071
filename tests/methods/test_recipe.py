"""Schedules, ramps and smoothing: the items of robust_overfitting and bag_of_tricks that are a recipe's."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from attacks import BadInput
from methods.recipe import Recipe, Schedule
from tests.golden import one
from tests.methods.tools import build, gradients, images, network, trace

fractions = st.floats(0.001, 1.0)
RICE = Recipe(epochs=200, learning_rate=0.1, schedule="piecewise", milestones=(0.5, 0.75))
PANG = Recipe(epochs=110, learning_rate=0.1, schedule="piecewise", milestones=(10 / 11, 21 / 22))


def test_the_schedule_of_rice_et_al_is_repeated():
    for point in one("robust_overfitting", "piecewise_lr_200_epochs").expected["values"]:
        assert RICE.learning_rate_at(point["t"] / 200) == pytest.approx(point["lr"], rel=1e-12)


@pytest.mark.parametrize(("t", "rate"), [(99.99, 0.1), (100, 0.01), (149.99, 0.01), (150, 0.001)])
def test_the_rate_drops_at_half_and_three_quarters_of_the_training(t, rate):
    assert RICE.learning_rate_at(t / 200) == pytest.approx(rate)


def test_the_schedule_of_pang_et_al_is_repeated_with_and_without_its_overshooting_warm_up():
    warm = replace(PANG, warmup=15 / 110, head_start=1.0, overshoot=True)
    for point in one("bag_of_tricks", "lr_schedule_110_epochs").expected["values"]:
        assert PANG.learning_rate_at(point["t"] / 110) == pytest.approx(point["base"], rel=1e-12)
        assert warm.learning_rate_at(point["t"] / 110) == pytest.approx(point["with_15_epoch_lr_warmup"], rel=1e-9)


@pytest.mark.parametrize("t", [14.0, 14.5, 14.999])
def test_by_default_the_warm_up_stops_at_the_peak(t):
    assert replace(PANG, warmup=15 / 110, head_start=1.0).learning_rate_at(t / 110) == 0.1
    assert replace(PANG, epsilon_ramp=15 / 110, head_start=1.0).epsilon_factor(t / 110) == 1


@given(fractions, fractions, st.floats(0, 3), st.sampled_from(get_args(Schedule)))
def test_rate_and_epsilon_stay_between_nothing_and_their_peak(progress, ramp, head_start, schedule):
    recipe = Recipe(schedule=schedule, warmup=ramp, epsilon_ramp=ramp, head_start=head_start)
    assert 0 <= recipe.learning_rate_at(progress) <= recipe.learning_rate + 1e-12
    assert 0 < recipe.epsilon_factor(progress) <= 1


@given(fractions, st.floats(0.01, 1.0))
def test_epsilon_rises_linearly_from_nothing_and_then_stays(progress, ramp):
    factor = Recipe(epsilon_ramp=ramp).epsilon_factor(progress)
    assert factor == pytest.approx(min(1.0, progress / ramp))


def test_without_a_ramp_epsilon_is_whole_from_the_first_step():
    assert Recipe().epsilon_factor(1e-9) == 1


def test_the_cyclic_rate_of_fast_at_is_a_triangle_with_its_peak_in_the_middle():
    recipe, total = Recipe(schedule="cyclic", learning_rate=0.2), 1000
    rates = [recipe.learning_rate_at((step + 1) / total) for step in range(total)]
    assert rates[0] == pytest.approx(0, abs=1e-3)
    assert rates[total // 2] == pytest.approx(0.2, abs=1e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-3)
    assert max(rates) == 0.2
    assert rates == pytest.approx([min(i, total - i) * 0.4 / total for i in range(1, total + 1)])


def test_the_cyclic_rate_of_the_mnist_script_peaks_after_two_fifths():
    recipe = Recipe(schedule="cyclic", learning_rate=5e-3, peak_at=2 / 5)
    assert [recipe.learning_rate_at(t / 10) for t in (2, 4, 7, 10)] == pytest.approx([2.5e-3, 5e-3, 2.5e-3, 0])


@pytest.mark.parametrize("peak_at", [0.0, 1.0])
def test_a_cycle_may_only_fall_or_only_rise(peak_at):
    recipe = Recipe(schedule="cyclic", learning_rate=1.0, peak_at=peak_at)
    assert recipe.learning_rate_at(0.25) == pytest.approx(0.25 if peak_at else 0.75)


def test_the_cosine_falls_to_nothing():
    recipe = Recipe(schedule="cosine", learning_rate=1.0)
    assert [recipe.learning_rate_at(p) for p in (1e-12, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


# Label smoothing


def target(smoothing, classes):
    """The distribution that the smoothed loss pulls towards: minus its gradient, plus the prediction."""
    logits = torch.zeros(classes, classes, dtype=torch.float64, requires_grad=True)
    y = torch.arange(classes)
    (gradient,) = torch.autograd.grad(Recipe(label_smoothing=smoothing).cross_entropy(logits, y).sum(), logits)
    return 1 / classes - gradient


@given(st.integers(2, 20), st.floats(0, 1))
def test_smoothed_targets_sum_to_one_and_share_the_smoothing_among_the_wrong_classes(classes, smoothing):
    expected = torch.full((classes, classes), smoothing / (classes - 1), dtype=torch.float64)
    expected.fill_diagonal_(1 - smoothing)
    torch.testing.assert_close(target(smoothing, classes), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(target(smoothing, classes).sum(1), torch.ones(classes, dtype=torch.float64))


@given(st.integers(2, 20))
def test_smoothing_by_all_but_one_class_makes_the_target_uniform(classes):
    expected = torch.full((classes, classes), 1 / classes, dtype=torch.float64)
    torch.testing.assert_close(target((classes - 1) / classes, classes), expected, rtol=0, atol=1e-12)


def test_no_smoothing_is_the_plain_cross_entropy_and_torchs_own_differs_by_its_convention():
    logits, y = torch.randn(9, 10, dtype=torch.float64), torch.arange(9)
    assert torch.equal(Recipe().cross_entropy(logits, y), F.cross_entropy(logits, y, reduction="none"))
    torch.testing.assert_close(
        Recipe(label_smoothing=0.2).cross_entropy(logits, y),
        F.cross_entropy(logits, y, reduction="none", label_smoothing=0.2 * 10 / 9),
    )


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "fast_at"])
def test_the_outer_criterion_does_not_reach_the_attack(name):
    x, y = images()
    plain, smooth = (build(name, network(), recipe=Recipe(label_smoothing=s)).train() for s in (0.0, 0.2))
    first, second = trace(plain, (x, y)), trace(smooth, (x, y))
    assert torch.equal(first.adversarial, second.adversarial)
    assert not torch.equal(gradients(plain, first.loss), gradients(smooth, second.loss))


# Values that no training has


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, r"recipe\.epochs lies between 1 and inf, but found 0"),
        ({"batch_size": 0}, r"recipe\.batch_size"),
        ({"learning_rate": -0.1}, r"recipe\.learning_rate lies between 0 and inf, but found -0\.1"),
        ({"learning_rate": float("nan")}, r"recipe\.learning_rate .* but found nan"),
        ({"weight_decay": -1e-4}, r"recipe\.weight_decay"),
        ({"momentum": 2}, r"recipe\.momentum"),
        ({"warmup": 1.5}, r"recipe\.warmup lies between 0 and 1"),
        ({"epsilon_ramp": -0.5}, r"recipe\.epsilon_ramp"),
        ({"head_start": -1}, r"recipe\.head_start"),
        ({"label_smoothing": 1.1}, r"recipe\.label_smoothing"),
        ({"average_from": 2}, r"recipe\.average_from"),
        ({"average_decay": 1.01}, r"recipe\.average_decay"),
        ({"milestones": (0.5, 100)}, r"recipe\.milestones are fractions of the training, but found \[0\.5, 100\]"),
        ({"gradient_clip": 0}, r"recipe\.gradient_clip is above 0, or null for no limit, but found 0"),
        ({"optimizer": "adamw"}, r"recipe\.optimizer is one of sgd, adam, rmsprop, but found 'adamw'"),
        (
            {"schedule": "linear"},
            r"recipe\.schedule is one of constant, .* cosine, but found 'linear'",
        ),
        ({"average": "EMA"}, r"recipe\.average is one of none, ema, swa, but found 'EMA'"),
    ],
)
def test_a_silly_value_is_refused_by_name(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        Recipe(**settings)


def test_recipes_are_values():
    assert Recipe(milestones=[0.5]) == Recipe(milestones=(0.5,))
    assert len({Recipe(), Recipe(), Recipe(epochs=31)}) == 2


def test_an_exponential_schedule_falls_after_every_so_many_epochs():
    recipe = Recipe(epochs=6, learning_rate=1.0, schedule="exponential", decay=0.94, decay_every=2)
    rates = [recipe.learning_rate_at(epoch / 6) for epoch in (0.5, 1.9, 2, 3.9, 4, 6)]
    assert rates == pytest.approx([1, 1, 0.94, 0.94, 0.94**2, 0.94**3])


def test_levels_give_the_rate_after_each_milestone():
    recipe = Recipe(learning_rate=0.3, milestones=(0.4, 0.6, 0.8), levels=(0.3, 0.1, 0.03))  # MMA's steps
    rates = [recipe.learning_rate_at(progress) for progress in (0.39, 0.4, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.3, 0.09, 0.03, 0.009, 0.009])
    with pytest.raises(BadInput, match=r"recipe\.levels holds a factor for each of the 2 milestones"):
        Recipe(levels=(0.1,))


def test_weight_decay_may_leave_biases_and_normalisation_alone():
    body = network()
    weights, others = Recipe(decayed="weights", weight_decay=3e-4).build_optimizer(body.parameters()).param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (3e-4, 0)
    assert {parameter.ndim for parameter in weights["params"]} == {2, 4}
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert len(weights["params"]) + len(others["params"]) == len(list(body.parameters()))


def test_rmsprop_has_its_own_constants():
    recipe = Recipe(optimizer="rmsprop", momentum=0.9, rms_decay=0.8, rms_epsilon=1.0)
    (group,) = recipe.build_optimizer(network().parameters()).param_groups
    assert (group["alpha"], group["eps"], group["momentum"]) == (0.8, 1.0, 0.9)
