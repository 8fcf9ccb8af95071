"""What a faithful implementation of PGD adversarial training must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import ThreatModel, counting, fgsm
from methods import PGDAT, Natural
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import one
from tests.methods.tools import (
    assert_same,
    batches_seen,
    gradients,
    images,
    loader,
    network,
    statistics,
    toy,
    trace,
    trainer,
    weights,
)

THREAT = ThreatModel("linf", 8 / 255)


@pytest.mark.parametrize(
    ("threat", "inner"),
    [
        (THREAT.at(0.0), Inner(steps=10)),
        (THREAT, Inner(steps=0, start="none")),
        (ThreatModel("l2", 0.0), Inner(steps=3, start="sphere")),
    ],
)
def test_without_radius_or_without_steps_and_start_it_is_natural_training(threat, inner):
    model, x, y, draws = toy()
    twin, *_ = toy()
    method, natural = PGDAT(model, threat, inner=inner).train(), Natural(twin, threat).train()
    method.draws = draws
    ours, theirs = method.trace_step((x, y)), natural.trace_step((x, y))
    assert torch.equal(ours.adversarial, x)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(gradients(method, ours.loss), gradients(natural, theirs.loss))
    assert_same(statistics(model), statistics(twin))


def test_one_step_of_epsilon_from_the_image_itself_is_fgsm():
    model, x, y, _ = toy()
    expected = fgsm(model.eval(), x, y, THREAT)
    method = PGDAT(model, THREAT, inner=Inner(steps=1, step_size="epsilon", start="none")).train()
    assert torch.equal(method.trace_step((x, y)).adversarial, expected)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 100),
    st.sampled_from([1 / 255, 8 / 255, 0.3]),
    st.integers(0, 6),
    st.sampled_from(["none", "uniform", "gaussian"]),
    st.sampled_from(["last", "best"]),
)
def test_adversarial_images_lie_in_ball_and_box(seed, epsilon, steps, start, keep):
    x, y = images(6, seed)
    scale = "epsilon" if start == "uniform" else 1e-4
    inner = Inner(steps=steps, start=start, scale=scale, keep=keep)
    adversarial = trace(PGDAT(network(), THREAT.at(epsilon), inner=inner).train(), (x, y)).adversarial
    assert (adversarial - x).abs().max() <= epsilon + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_ten_steps_of_a_quarter_end_mostly_on_the_surface():
    model, x, y, draws = toy()
    method = PGDAT(model, THREAT).train()
    method.draws = draws
    adversarial = method.trace_step((x, y)).adversarial
    inside = (adversarial > 0) & (adversarial < 1)
    moved = (adversarial - x).abs()[inside]
    assert (moved > THREAT.epsilon - 1e-9).float().mean() > 0.5


def test_the_best_iterate_costs_one_forward_more_and_is_not_easier():
    x, y = images()
    method = PGDAT(network(), THREAT, inner=Inner(steps=4, keep="best")).train()
    last = PGDAT(network(), THREAT, inner=Inner(steps=4)).train()
    with counting(method.network) as passes:
        best = trace(method, (x, y))
        best.loss.backward()
    assert (passes.forward, passes.backward) == (6 * len(x), 5 * len(x))
    body = network().eval()
    harder = F.cross_entropy(body(best.adversarial), y) - F.cross_entropy(body(trace(last, (x, y)).adversarial), y)
    assert harder >= -1e-6


def test_ten_steps_cost_eleven_passes_and_move_statistics_once_from_adversarial_data():
    x, y = images()
    method, by_hand = PGDAT(network(), THREAT).train(), network().train()
    with counting(method.network) as passes:
        step = trace(method, (x, y))
        step.loss.backward()
    assert (passes.forward, passes.backward) == (11 * len(x), 11 * len(x))
    assert batches_seen(method.network) == [1, 1]
    by_hand(step.adversarial)
    assert_same(statistics(method.network), statistics(by_hand))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["none", "uniform"]))
def test_on_a_linear_model_one_long_step_reaches_the_exact_maximiser(seed, start):
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        body[1].weight.copy_(weight)
    x = images(6, seed)[0].double() * 0.5 + 0.25
    y = torch.arange(6) % 2
    inner = Inner(steps=1, step_size="2 epsilon", start=start)
    adversarial = trace(PGDAT(body, THREAT, inner=inner), (x, y)).adversarial
    uphill = (weight[1 - y] - weight[y]).sign().reshape(x.shape)
    torch.testing.assert_close(adversarial, x + THREAT.epsilon * uphill, rtol=0, atol=1e-12)


def test_a_train_mode_attack_moves_statistics_with_every_step():
    x, y = images()
    method = PGDAT(network(), THREAT, inner=Inner(steps=4, mode="train")).train()
    trace(method, (x, y))
    assert batches_seen(method.network) == [5, 5]


def test_train_mode_crafting_is_the_attack_of_rice_et_al_and_of_pang_et_al_alike():
    ours, theirs = one("bag_of_tricks", "bn_train").expected, one("robust_overfitting", "train_mode_identity").expected
    for key in ("loss", "grad_norm", "x_adv", "first_bn_running_mean_after_attack"):
        assert ours[key] == theirs[key]


def test_an_adversarial_share_mixes_the_two_losses():
    x, y = images()
    share = trace(PGDAT(network(), THREAT, adversarial_share=0.3).train(), (x, y)).loss
    alone = trace(PGDAT(network(), THREAT).train(), (x, y)).loss
    clean = Natural(network(), THREAT).train().trace_step((x, y)).loss
    torch.testing.assert_close(share, 0.3 * alone + 0.7 * clean)


@pytest.mark.filterwarnings("ignore")
def test_the_clean_forward_of_rice_et_al_moves_statistics_and_nothing_else():
    recipe = Recipe(schedule="constant", learning_rate=0.02)
    plain, clean = (PGDAT(network(), THREAT, recipe=recipe, clean_bn_forward=on) for on in (False, True))
    for method in (plain, clean):
        trainer(1, limit_train_batches=1).fit(method, loader())
    assert batches_seen(plain.network) == [1, 1]
    assert batches_seen(clean.network) == [2, 2]
    parameters = dict(plain.network.named_parameters())
    assert_same({k: weights(plain.network)[k] for k in parameters}, {k: weights(clean.network)[k] for k in parameters})
