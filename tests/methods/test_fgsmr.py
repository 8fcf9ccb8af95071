"""What a faithful reconstruction of FGSM training with curvature regularisation must show."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from methods import FGSMR, FastAT
from methods.efficient import fgsmr
from methods.input_gradient import input_gradient
from methods.recipe import Recipe
from tests.methods.tools import (
    EPSILON,
    assert_same,
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
every_form = pytest.mark.parametrize("form", ["gradient", "directional"])


def method(threat=THREAT, body=None, form="gradient", **changes):
    body = network() if body is None else body
    return FGSMR(body, threat, **{"lam": 1.0, "curvature_form": form, **changes}).train()


def smooth(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()


def bend_of(ours):
    """R of the last step."""
    return ours._notes["curvature"][-1].item()


def test_without_the_term_it_is_fast_training_from_the_image_itself():
    plain, batch = method(lam=0.0), images()
    fast = FastAT(network(), THREAT, start="zero", step_size="epsilon").train()
    ours, theirs = trace(plain, batch), trace(fast, batch)
    assert torch.equal(ours.adversarial, theirs.adversarial)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(gradients(plain, ours.loss), gradients(fast, theirs.loss))
    assert_same(statistics(plain.network), statistics(fast.network))


class Stub(nn.Module):
    """Gives the pixels themselves, times a weight, for a loss that a test makes of them."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x):
        return self.weight.sqrt() * x.flatten(1)


@every_form
def test_a_loss_that_is_linear_in_the_image_has_no_curvature(form, monkeypatch):
    monkeypatch.setattr(fgsmr, "cross_entropy_with", lambda y: lambda logits: logits.sum(1))
    (x, y), ours = images(), method(body=Stub(2.0), form=form)
    trace(ours, (x.double(), y))
    assert bend_of(ours) == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.sampled_from([0.05, 0.1, "epsilon", "epsilon/4"]), st.integers(0, 20))
def test_a_quadratic_loss_has_the_curvature_that_it_was_given(a, h, dark):
    step = {"epsilon": EPSILON, "epsilon/4": EPSILON / 4}.get(h, h)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 0.9 + 0.1
    x.flatten()[:dark] = 0  # no gradient, no sign
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fgsmr, "cross_entropy_with", lambda y: lambda logits: 0.5 * logits.pow(2).sum(1))
        found = {}
        for form in ("gradient", "directional"):
            ours = method(body=Stub(a), form=form, h=h)
            trace(ours, (x, torch.zeros(1, dtype=torch.int64)))
            found[form] = bend_of(ours)
    assert found["gradient"] == pytest.approx(a**2 * step**2 * (64 - dark))
    assert found["directional"] == pytest.approx(a)


@every_form
@pytest.mark.parametrize("nowhere", [{"h": 0.0}, {"threat": THREAT.at(0.0)}])
def test_a_second_point_at_the_image_itself_shows_no_curvature(form, nowhere):
    ours = method(form=form, **nowhere)
    trace(ours, images()).loss.backward()
    assert bend_of(ours) == 0
    assert all(parameter.grad.isfinite().all() for parameter in ours.network.parameters())


@every_form
def test_images_without_a_gradient_show_no_curvature(form):
    body = nn.Sequential(nn.Threshold(2.0, 0.0), nn.Flatten(), nn.Linear(64, 3))
    ours = method(body=body, form=form)
    trace(ours, images()).loss.backward()
    assert bend_of(ours) == 0
    assert all(parameter.grad.isfinite().all() for parameter in body.parameters())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.sampled_from(["gradient", "directional"]))
def test_the_term_is_not_negative_and_does_not_depend_on_the_size_of_the_batch(seed, form):
    (x, y), found = images(6, seed), []
    for times in (1, 3):
        ours = method(body=smooth(seed), form=form)
        trace(ours, (x.double().repeat(times, 1, 1, 1), y.repeat(times)))
        found.append(bend_of(ours))
    assert found[0] > 0
    assert found[0] == pytest.approx(found[1])


@every_form
def test_the_terms_weight_gradient_is_not_zero_though_points_and_signs_are_constants(form):
    batch, ours, plain = images(), method(form=form, lam=3.0), method(lam=0.0)
    total, alone = trace(ours, batch).loss, trace(plain, batch).loss
    assert total.item() == pytest.approx(alone.item() + 3 * bend_of(ours), rel=1e-4)
    assert (gradients(ours, total) - gradients(plain, alone)).norm() > 0.01


@every_form
def test_the_weight_gradient_is_that_of_the_formula_written_out(form):
    (x, y), body = images(6), smooth()
    x = x.double()
    ours = method(body=body, form=form)
    found = gradients(ours, trace(ours, (x, y)).loss)
    climb = cross_entropy_with(y)
    here = input_gradient(body, x, climb, create_graph=True).gradient
    s = here.detach().sign()
    change = input_gradient(body, x + EPSILON * s, climb, create_graph=True).gradient - here
    if form == "gradient":
        bend = (change**2).sum((1, 2, 3))
    else:
        bend = (s * change).sum((1, 2, 3)).abs() / (EPSILON * (s**2).sum((1, 2, 3)))
    loss = (climb(body((x + EPSILON * s).clamp(0, 1))) + bend).mean()
    torch.testing.assert_close(found, gradients(ours, loss))


def test_permuting_the_batch_permutes_what_each_image_contributes(monkeypatch):
    (x, y), seen = images(6), []
    monkeypatch.setattr(fgsmr, "squared_length", lambda change: seen.append(change.pow(2).sum((1, 2, 3))) or seen[-1])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for rows in (torch.arange(6), order):
        trace(method(body=smooth()), (x.double()[rows], y[rows]))
    torch.testing.assert_close(seen[0][order], seen[1])


def test_the_statistics_move_on_the_image_on_the_fgsm_point_and_on_the_second_point_in_that_order():
    (x, y), ours, by_hand = images(), method(), network().train()
    seen = []
    ours.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    step = trace(ours, (x, y))
    assert len(seen) == 3
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1], step.adversarial)
    assert torch.equal(seen[1], seen[2].clamp(0, 1))  # the same point, before the range
    assert seen[2].min() < 0
    assert seen[2].max() > 1
    for point in seen:
        by_hand(point)
    assert_same(weights(ours.network), weights(by_hand))


def test_in_train_mode_the_statistics_of_two_points_add_to_the_difference():
    """A network that is linear in the image but for BatchNorm, with a loss that is linear in the logits."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    (x, y), found = images(), {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fgsmr, "cross_entropy_with", lambda y: lambda logits: logits[:, 0])
        for mode in ("train", "eval"):
            ours = method(body=body).train(mode == "train")
            if mode == "eval":
                ours.inner = ours.inner.__class__(steps=1, step_size="epsilon", start="none", mode="eval")
            trace(ours, (x.double(), y))
            found[mode] = bend_of(ours)
    assert found["train"] > 1e-6
    assert found["eval"] == pytest.approx(0, abs=1e-20)


# The options


def test_the_first_gradient_may_be_detached():
    batch, both, one = images(), method(), method(detach=True)
    with counting(one.network) as passes:
        loss = trace(one, batch).loss
        found = gradients(one, loss)
    assert (passes.forward, passes.backward) == (3 * len(batch[0]), 4 * len(batch[0]))
    attached = trace(both, batch).loss
    assert torch.equal(loss, attached)
    assert not torch.allclose(found, gradients(both, attached), rtol=1e-3)


@pytest.mark.parametrize("other", [{"start": "uniform"}, {"attack_mode": "eval"}])
def test_another_start_or_mode_of_the_attack_takes_a_forward_more_and_leaves_the_direction(other):
    (x, y), ours, plain = images(), method(**other), method()
    with counting(ours.network) as passes:
        moved = trace(ours, (x, y)).adversarial
    assert passes.forward == 4 * len(x)
    expected = trace(plain, (x, y)).adversarial
    assert not torch.equal(moved, expected)
    assert bend_of(ours) == pytest.approx(bend_of(plain), rel=1e-5)


def test_an_attack_in_eval_mode_leaves_the_statistics_alone():
    ours, plain = method(attack_mode="eval", lam=0.0), FastAT(network(), THREAT).train()
    trace(ours, images())
    assert plain.network[1].num_batches_tracked == 0
    assert ours.network[1].num_batches_tracked == 1


# The rule for lambda


@pytest.mark.parametrize(
    ("shape", "epsilon", "lam"),
    [((1, 8, 8), 0.15, 0.072), ((3, 32, 32), 8 / 255, 0.151), ((1, 28, 28), 0.3, 3.53)],
)
def test_lambda_is_a_twentieth_of_epsilon_squared_times_the_number_of_inputs(shape, epsilon, lam):
    x = torch.zeros(2, *shape)
    assert method(THREAT.at(epsilon), lam=None).weight_for(x) == pytest.approx(lam, rel=2e-3)
    assert method(THREAT.at(epsilon), lam=None, factor=0.15).weight_for(x) == pytest.approx(3 * lam, rel=2e-3)
    assert method(THREAT.at(epsilon)).weight_for(x) == 1.0


@settings(max_examples=10, deadline=None)
@given(st.floats(0.5, 4))
def test_a_change_of_pixel_units_leaves_the_weighted_term_as_it_is(unit):
    """Pixels that are ``unit`` times as large, in a ball that is, before a network that divides them again."""

    class Scaled(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(x / unit)

    (x, y), found = images(6), []
    for scale, body in ((1.0, smooth()), (unit, Scaled(smooth()))):
        ours = method(ThreatModel("linf", EPSILON * scale, 0.0, scale), body, lam=None)
        trace(ours, (scale * x.double(), y))
        found.append(ours.weight_for(x) * bend_of(ours))
    assert found[0] == pytest.approx(found[1])


@pytest.mark.filterwarnings("ignore")
def test_lambda_and_h_follow_a_ramp():
    ours, found = method(lam=None, recipe=Recipe(epsilon_ramp=1.0, epochs=2)), []
    weight_for = ours.weight_for
    ours.weight_for = lambda x: found.append((weight_for(x), ours.h.at(ours.present_threat().epsilon))) or found[-1][0]
    trainer(2).fit(ours, loader())
    shares = [step / 6 for step in range(1, 7)]
    assert [weight for weight, _ in found] == pytest.approx([0.05 * (EPSILON * share) ** 2 * 64 for share in shares])
    assert [h for _, h in found] == pytest.approx([EPSILON * share for share in shares])


# The row


@pytest.mark.filterwarnings("ignore")
def test_the_row_shows_the_form_and_curvature_and_length_of_the_gradient_at_both_ends():
    ours = method(recipe=Recipe(learning_rate=0.01))
    assert ours.remarks() == {"form": "gradient form"}
    trainer(2).fit(ours, loader())
    first, last = ours.history
    assert ours.remarks() == {
        "form": "gradient form",
        "first_curvature": first["curvature"],
        "first_gradient_length": first["gradient_length"],
        "curvature": last["curvature"],
        "gradient_length": last["gradient_length"],
    }
    assert all(math.isfinite(value) for value in last.values())


def test_it_is_marked_as_a_reconstruction():
    assert FGSMR.card.reconstruction


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lam": -1.0}, "lam is 0 or more, or null for the rule, but found -1"),
        ({"factor": -1.0}, "factor is 0 or more, but found -1"),
        ({"form": "hessian"}, "curvature_form is gradient or directional, but found 'hessian'"),
        ({"h": "2 eps"}, "h is a number in pixel units"),
        ({"start": "none"}, "start is zero or uniform"),
        ({"attack_mode": "test"}, "attack_mode is one of eval, train, batch, but found 'test'"),
        ({"threat": ThreatModel("l2", 0.5)}, "fgsmr is made for signs, within linf: threat.norm is 'l2'"),
    ],
)
def test_a_silly_setting_is_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        method(**wrong)
