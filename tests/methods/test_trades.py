"""What a faithful implementation of TRADES must show."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ThreatModel, counting, kl_divergence
from methods import TRADES, Natural
from methods.inner import Inner
from tests.golden import one
from tests.methods.from_golden.trades import build as golden_trades
from tests.methods.tools import assert_same, batches_seen, gradients, images, network, statistics, toy, trace

THREAT = ThreatModel("linf", 8 / 255)


def method(body=None, threat=THREAT, steps=10, **settings_):
    made = TRADES(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def test_without_beta_it_is_natural_training():
    batch = images()
    ours, natural = method(beta=0.0, steps=2), Natural(network(), THREAT).train()
    step, expected = trace(ours, batch), natural.trace_step(batch).loss
    assert torch.equal(step.loss, expected)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected))


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 20), st.integers(0, 50))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_radius_it_is_natural_training_for_any_beta(norm, beta, seed):
    x, y = images(9, seed)
    ours = method(network().double(), ThreatModel(norm, 0.0), beta=beta, steps=2)
    natural = Natural(network().double(), THREAT).train()
    step, expected = trace(ours, (x.double(), y)), natural.trace_step((x.double(), y)).loss
    assert torch.equal(step.adversarial, x.double())
    torch.testing.assert_close(step.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected), rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 30))
def test_the_divergence_is_never_negative_and_zero_for_equal_predictions(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = (scale * torch.randn(9, 5, generator=generator) for _ in range(2))
    assert (kl_divergence(clean, adversarial) >= -1e-6).all()
    assert torch.equal(kl_divergence(clean, clean), torch.zeros(9))


def test_the_divergence_grows_with_the_steps_on_a_fixed_network():
    model, x, y, draws = toy()
    model.eval()
    values = []
    for steps in (1, 2, 4, 7, 10):
        ours = method(model, steps=steps).eval()
        ours.draws = draws
        with torch.no_grad():
            adversarial = ours.trace_step((x, y)).adversarial
            values.append(kl_divergence(model(x), model(adversarial)).mean().item())
    assert values == sorted(values)
    assert values[-1] > 2 * values[0] > 0


def test_detaching_the_clean_prediction_would_be_another_method():
    case = one("trades", "linf_cifar_script")
    ours = golden_trades(case).double()
    ours.draws = case.draws
    x, y, _ = case.batch
    step = ours.trace_step(case.batch)
    clean, adversarial = case.network(x), case.network(step.adversarial)
    detached = (
        torch.nn.functional.cross_entropy(clean, y) + ours.beta * kl_divergence(clean.detach(), adversarial).mean()
    )
    torch.testing.assert_close(detached, step.loss)  # the same loss,
    expected = pytest.approx(case.expected["grad_norm"], rel=1e-7)
    assert gradients(ours, step.loss).norm().item() == expected
    assert gradients(ours, detached).norm().item() != pytest.approx(
        case.expected["grad_norm"], rel=1e-3
    )  # not gradient


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_does_not_look_at_labels(norm):
    x, y = images()
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 0.5)
    right, wrong = (trace(method(threat=threat, steps=3), (x, labels)) for labels in (y, y.flip(0)))
    assert torch.equal(right.adversarial, wrong.adversarial)
    assert right.loss != wrong.loss


@pytest.mark.parametrize(("exact", "forwards"), [(False, 2), (True, 3)])
def test_statistics_move_with_two_or_three_training_forwards_and_never_in_the_attack(exact, forwards):
    x, y = images()
    ours, by_hand = method(steps=3, exact_forwards=exact), network().train()
    with counting(ours.network) as passes:
        step = trace(ours, (x, y))
        step.loss.backward()
    assert batches_seen(ours.network) == [forwards, forwards]
    assert (passes.forward, passes.backward) == ((3 + 1 + forwards) * len(x), (3 + forwards) * len(x))
    for inputs in (x, step.adversarial, x)[:forwards]:
        by_hand(inputs)
    assert_same(statistics(ours.network), statistics(by_hand))


def test_the_third_forward_changes_neither_loss_nor_gradient():
    batch = images()
    two, three = method(steps=2), method(steps=2, exact_forwards=True)
    losses = [trace(ours, batch).loss for ours in (two, three)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(gradients(two, losses[0]), gradients(three, losses[1]), rtol=1e-4, atol=1e-6)


def test_a_batch_given_twice_has_the_same_loss_and_gradient():
    _, x, y, draws = toy()
    draws._normal = draws._normal.repeat(2, 1, 1, 1)
    steps, slopes = [], []
    for times in (1, 2):
        ours = method(toy()[0], steps=3)
        ours.draws = draws
        step = ours.trace_step((x.repeat(times, 1, 1, 1), y.repeat(times)))
        steps.append(step.loss)
        slopes.append(gradients(ours, step.loss))
    torch.testing.assert_close(*steps, rtol=1e-10, atol=0)
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 200), st.floats(0.01, 5.0), st.integers(0, 5))
def test_the_l2_branch_stays_in_ball_and_box(seed, epsilon, steps):
    x, y = images(6, seed)
    threat = ThreatModel("l2", epsilon)
    adversarial = trace(method(threat=threat, steps=steps), (x, y)).adversarial
    if steps > 0:
        assert threat.distance(adversarial, x).max() <= epsilon + 1e-5
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_the_l2_branch_takes_its_step_from_epsilon_and_a_random_direction_where_there_is_no_gradient():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x.flatten(1).sum(1, keepdim=True) * 0 + self.bias

    x, y = images(6)
    threat = ThreatModel("l2", 0.01)
    short, long = (
        trace(TRADES(Constant(), threat, inner=Inner(steps=1, step_size=size, start="none")), (x, y)).adversarial
        for size in (1e-5, 1e5)
    )
    assert torch.equal(short, long)
    assert not torch.equal(short, x)


def test_the_start_is_noise_of_a_thousandth_that_may_leave_the_pixel_range():
    x, _ = images()
    ours = method()
    noise = ours.inner.begin(x, THREAT.at(0.3), ours.draws) - x
    assert noise.std().item() == pytest.approx(1e-3, rel=0.05)
    assert (x + noise).min() < 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mixed_precision_stays_out_of_the_attack_the_clean_prediction_included(norm):
    batch, threat = images(), ThreatModel(norm, 0.1 if norm == "linf" else 0.5)
    plain = trace(method(threat=threat, steps=3), batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trace(method(threat=threat, steps=3), batch)
    assert torch.equal(plain.adversarial, mixed.adversarial)
    assert mixed.loss.dtype == torch.float32


def test_the_common_track_steps_at_seven_thirtyfirsts_of_epsilon():
    x, y = images()
    adversarial = trace(method(threat=THREAT.at(0.15), steps=1), (x, y)).adversarial
    inside = (adversarial > 0) & (adversarial < 1)
    assert (adversarial - x).abs()[inside].median().item() == pytest.approx(0.15 * 7 / 31, rel=0.05)
