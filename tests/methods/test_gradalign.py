"""What a faithful implementation of GradAlign must show."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from methods import FastAT, GradAlign
from methods.efficient import gradalign
from methods.efficient.gradalign import cosines
from methods.recipe import Recipe
from tests.golden import cases
from tests.methods.from_golden.gradalign import build as build_golden
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    gradients,
    images,
    loader,
    network,
    statistics,
    trace,
    trainer,
    weights,
)

THREAT = ThreatModel("linf", EPSILON)


def method(threat=THREAT, body=None, **changes):
    return GradAlign(network() if body is None else body, threat, **changes).train()


def term(step, ours, batch):
    """The regulariser, times lambda: what the loss has more than without it."""
    return step.loss.item() - trace(method(ours.threat, lam=0.0), batch).loss.item()


def cosine_of(ours):
    return ours._notes["cosine"][-1].item()


def test_without_the_term_it_is_fast_training_from_the_image_itself():
    plain, batch = method(lam=0.0), images()
    fast = FastAT(network(), THREAT, start="zero").train()
    with counting(plain.network) as passes:
        ours, theirs = trace(plain, batch), trace(fast, batch)
        assert (passes.forward, passes.backward) == (2 * len(batch[0]), len(batch[0]))
    assert torch.equal(ours.adversarial, theirs.adversarial)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(gradients(plain, ours.loss), gradients(fast, theirs.loss))
    assert_same(statistics(plain.network), statistics(fast.network))


def test_a_linear_network_with_two_classes_has_parallel_gradients():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    (x, y), ours = images(), method(body=body, lam=5.0)
    trace(ours, (x.double(), y % 2))
    assert cosine_of(ours) == pytest.approx(1.0, abs=1e-12)


def test_without_radius_the_gradients_agree_and_the_loss_is_natural():
    (x, y), ours = images(), method(THREAT.at(0.0), network().double(), lam=2.0)
    step = trace(ours, (x.double(), y))
    assert cosine_of(ours) == pytest.approx(1.0, abs=1e-9)
    assert torch.equal(step.adversarial, x.double())
    natural = nn.functional.cross_entropy(network().double().train()(x.double()), y)
    assert step.loss.item() == pytest.approx(natural.item(), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from([0.2, 2.0]))
def test_the_term_lies_between_zero_and_twice_lambda(seed, epsilon, lam):
    ours, batch = method(THREAT.at(epsilon), lam=lam), images(6, seed)
    assert -1e-5 <= term(trace(ours, batch), ours, batch) <= 2 * lam + 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_cosine_does_not_mind_how_long_the_gradients_are(seed, one, other):
    left, right = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(cosines(one * left, other * right), cosines(left, right))
    torch.testing.assert_close(cosines(left, right), torch.cosine_similarity(left.flatten(1), right.flatten(1)))


@pytest.mark.parametrize("attached", [False, True])
def test_a_detached_second_gradient_leaves_the_value_and_takes_the_terms_weight_gradient_away(attached, monkeypatch):
    batch, ours, plain = images(), method(lam=2.0), method(lam=0.0)
    taken = GradAlign.input_gradient

    def cut(self, *args, **more):
        found = taken(self, *args, **more)
        return found._replace(gradient=found.gradient.detach())

    if not attached:
        monkeypatch.setattr(GradAlign, "input_gradient", cut)
    step = trace(ours, batch)
    assert cosine_of(ours) == pytest.approx(1 - (step.loss.item() - trace(plain, batch).loss.item()) / 2, abs=1e-5)
    found, of_cross_entropy = gradients(ours, step.loss), gradients(plain, trace(plain, batch).loss)
    assert torch.allclose(found, of_cross_entropy) != attached


def test_both_gradients_may_be_attached():
    batch, detached, both = images(), method(lam=2.0), method(lam=2.0, detach=False)
    one, other = (trace(ours, batch).loss for ours in (detached, both))
    assert torch.equal(one, other)
    assert not torch.allclose(gradients(detached, one), gradients(both, other), rtol=1e-3)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_another_image_changes_an_images_cosine_through_batchnorm_alone(mode, monkeypatch):
    (x, y), seen = images(), []
    monkeypatch.setattr(gradalign, "cosines", lambda one, other: seen.append(cosines(one, other)) or seen[-1])
    for changed in (x, torch.cat([1 - x[:1], x[1:]])):
        ours = method().train(mode == "train")
        ours.inner = ours.inner.__class__(steps=1, step_size="1.25 epsilon", start="none", mode=mode)
        trace(ours, (changed, y))
    assert torch.allclose(seen[0][1:], seen[1][1:], atol=1e-6) == (mode == "eval")
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-6)


def test_the_statistics_move_on_the_image_on_the_fgsm_point_and_on_the_random_point_in_that_order():
    (x, y), ours, by_hand = images(), method(), network().train()
    step = trace(ours, (x, y))
    ours.draws.begin(epoch=0, step=0)
    for point in (x, step.adversarial, x + EPSILON * ours.draws.uniform(x)):
        by_hand(point)
    assert_same(weights(ours.network), weights(by_hand))
    assert batches_seen(ours.network) == [3, 3]


def test_the_random_point_is_fresh_fills_the_ball_and_is_not_brought_into_the_pixel_range():
    (x, y), ours, seen = images(200), method(), []
    ours.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for step in range(2):
        trace(ours, (x, y), step)
    first, second = (seen[at] - x for at in (2, 5))
    assert not torch.equal(first, second)
    assert first.abs().max() <= EPSILON + 1e-6
    assert first.std().item() == pytest.approx(EPSILON / 3**0.5, rel=0.02)
    assert seen[2].min() < 0
    assert seen[2].max() > 1


def test_from_the_image_itself_the_step_comes_to_epsilon():
    x, y = images()
    x = 0.25 + 0.5 * x
    step = trace(method(), (x, y))
    moved = (step.adversarial - x).abs()
    assert ((moved > EPSILON - 1e-6) | (moved == 0)).all()
    assert torch.equal(step.adversarial, trace(method(step_size="epsilon"), (x, y)).adversarial)


def test_with_a_uniform_start_the_gradient_there_serves_for_both_and_nothing_more_is_run():
    (x, y), ours = images(), method(start="uniform")
    with counting(ours.network) as passes:
        step = trace(ours, (x, y))
        step.loss.backward()
    assert (passes.forward, passes.backward) == (3 * len(x), 4 * len(x))
    fast = FastAT(network(), THREAT).train()
    assert torch.equal(step.adversarial, trace(fast, (x, y)).adversarial)


@pytest.mark.parametrize(("done", "share"), [(0.1, 0.375), (0.25, 0.9375), (1 / 3, 1.0), (0.9, 1.0)])
def test_the_step_grows_over_the_warm_up(done, share, monkeypatch):
    x, y = images()
    x, ours = 0.25 + 0.5 * x, method(warmup=1 / 3)
    monkeypatch.setattr(ours, "progress", lambda: done)
    moved = (trace(ours, (x, y)).adversarial - x).abs().max().item()
    assert moved == pytest.approx(share * EPSILON, rel=1e-4)


# Images without a gradient


def with_flat_images(flat):
    """A network whose gradient is exactly 0 at images that are dark, and the batch with ``flat`` of them."""

    class Dark(nn.Module):
        def forward(self, x):
            return (x - 0.5).relu()

    torch.manual_seed(0)
    body = nn.Sequential(Dark(), nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = images(10)
    return body, (torch.cat([torch.full_like(x[:flat], 0.1), x[flat:]]), y)


def test_images_without_a_gradient_are_left_out_of_the_mean_and_counted():
    body, (x, y) = with_flat_images(4)
    ours = method(body=body, lam=1.0)
    trace(ours, (x, y)).loss.backward()
    assert ours._notes["left_out"][0].item() == pytest.approx(0.4)
    few = torch.zeros(3, 1, 2, 2)
    few[0] = 1
    assert cosines(few, torch.ones_like(few)).tolist() == pytest.approx([1.0])


def test_where_no_image_has_a_gradient_the_term_is_zero():
    body, batch = with_flat_images(10)
    ours, plain = method(body=body, lam=2.0), method(body=body, lam=0.0)
    step = trace(ours, batch)
    assert torch.equal(step.loss, trace(plain, batch).loss)
    step.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in body.parameters())


def test_gradients_too_small_to_be_squared_leave_no_nan():
    tiny = torch.full((2, 1, 4, 4), 1e-21)
    other = tiny.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cosines(tiny, other).sum(), other)
    assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("flat", "marked"), [(0, False), (4, True)])
def test_the_row_shows_cosine_and_share_left_out_and_says_where_the_term_hardly_acts(flat, marked):
    body, batch = with_flat_images(flat)
    ours = method(body=body, recipe=Recipe(learning_rate=1e-4))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=10)
    trainer(1).fit(ours, data)
    found = ours.remarks()
    assert found["cosine"] == ours.history[-1]["cosine"]
    assert found["left_out"] == pytest.approx(flat / 10)
    assert ("hardly acts" in str(found.get("mark"))) == marked


@pytest.mark.filterwarnings("ignore")
def test_a_row_without_the_term_has_nothing_to_say():
    ours = method(lam=0.0)
    trainer(1).fit(ours, loader())
    assert ours.remarks() == {}


def test_the_reference_without_the_term_says_that_there_is_nothing_to_align_unless_it_collapsed():
    ours = method(lam=0.0)
    ours.history = [{"epoch": k, "held_out_fgsm": 0.9, "held_out_pgd10": 0.8} for k in range(3)]
    assert ours.remarks() == {"mark": "no collapse without the regulariser: nothing to align here"}
    ours.history[-1]["held_out_pgd10"] = 0.0
    assert ours.remarks() == {}


# The rule for lambda


@pytest.mark.parametrize(
    ("shape", "epsilon", "lam"),
    [
        ((3, 32, 32), 1 / 255, 0.0267),
        ((3, 32, 32), 4 / 255, 0.0632),
        ((3, 32, 32), 8 / 255, 0.2),
        ((3, 32, 32), 16 / 255, 2.0),
        ((3, 32, 32), 0.5 / 255, 0.2),
        ((3, 32, 32), 17 / 255, 0.2),
        ((1, 8, 8), 0.15, 0.2),
        ((1, 28, 28), 0.3, 0.2),
        ((1, 8, 8), 8 / 255, 0.2),
        ((3, 224, 224), 4 / 255, 0.2),
    ],
)
def test_lambda_is_the_authors_curve_where_it_was_fitted_and_else_a_fifth(shape, epsilon, lam):
    assert method(THREAT.at(epsilon)).weight_for(torch.zeros(2, *shape)) == pytest.approx(lam, rel=3e-3)
    assert method(THREAT.at(epsilon), lam=1.976).weight_for(torch.zeros(2, *shape)) == 1.976


@pytest.mark.filterwarnings("ignore")
def test_lambda_does_not_follow_a_ramp_but_both_points_do():
    ours = method(ThreatModel("linf", 16 / 255), recipe=Recipe(epsilon_ramp=1.0, epochs=2))
    found = []
    original = ours.input_gradient

    def watched(x, objective, **more):
        found.append((ours.present_threat().epsilon, ours.weight_for(torch.zeros(1, 3, 32, 32)), x))
        return original(x, objective, **more)

    ours.input_gradient = watched
    trainer(2).fit(ours, loader())
    assert {round(weight, 9) for _, weight, _ in found} == {2.0}
    data = images()[0]
    for step, (epsilon, _, point) in enumerate(found[1::2]):
        rows = slice(8 * (step % 3), 8 * (step % 3) + 8)
        assert (point - data[rows]).abs().max().item() == pytest.approx(epsilon, rel=0.05)
    assert found[0][0] == pytest.approx(16 / 255 / 6)


# The authors' values


@pytest.mark.parametrize(
    "case",
    [case for case in cases("gradalign", "training_step") if "cos_per_sample" in case.expected],
    ids=lambda case: case.name,
)
def test_every_images_cosine_is_the_authors(case, monkeypatch):
    seen = []
    monkeypatch.setattr(gradalign, "cosines", lambda one, other: seen.append(cosines(one, other)) or seen[-1])
    ours = build_golden(case).double()
    ours.draws = case.draws
    ours.trace_step(case.batch)
    expected = torch.tensor(case.expected["cos_per_sample"], dtype=torch.float64)
    torch.testing.assert_close(seen[0].detach(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lam": -0.1}, "lam is 0 or more, or null for the rule, but found -0.1"),
        ({"start": "random"}, "start is zero or uniform, but found 'random'"),
        ({"step_size": "2 eps"}, "step_size"),
        ({"warmup": 2.0}, "warmup is a share of the training"),
        ({"threat": ThreatModel("l2", 0.5)}, "gradalign is made for signs, within linf: threat.norm is 'l2'"),
    ],
)
def test_a_silly_setting_is_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        method(**wrong)
