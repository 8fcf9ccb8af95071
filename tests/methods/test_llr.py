"""What a faithful implementation of local linearity regularisation must show."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, cross_entropy_with
from attacks.pixels import Pixels
from methods import LLR, Natural
from methods.base import Batch
from methods.inner import Inner
from methods.input_gradient import input_gradient
from methods.recipe import Recipe
from methods.regularization.recorded_statistics import RecordedStatistics
from tests.golden import ScriptedDraws
from tests.methods.tools import EPSILON, batches_seen, gradients, images, loader, network, toy, trace, trainer

THREAT = ThreatModel("linf", EPSILON)
ALONE = {"w_nom": 0.0, "w_llr": 1.0}  # the regulariser


def inner(**changes):
    return replace(Inner(steps=3, step_size="3.1875 epsilon", start="uniform", mode="batch"), **changes)


def method(threat=THREAT, body=None, **changes):
    return LLR(network() if body is None else body, threat, **{"inner": inner(), **changes}).train()


def smooth():
    """The toy network with Softplus, and images whose whole ball lies in the pixel range."""
    model, x, y, draws = toy()
    for name, part in model.named_children():
        if isinstance(part, nn.ReLU):
            setattr(model, name, nn.Softplus())
    return model, 0.25 + 0.5 * x, y, draws


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.sampled_from([0.01, 0.1, 0.4]))
def test_a_loss_that_is_linear_in_the_image_has_no_gap_whatever_the_perturbation(seed, epsilon):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("methods.regularization.llr.cross_entropy_with", lambda y: lambda logits: logits[:, 0])
        torch.manual_seed(seed)
        body, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), images(6, seed)
        linear = method(THREAT.at(epsilon), body, s=0.0, **ALONE)
        assert trace(linear, (x.double(), y)).loss.item() == pytest.approx(0, abs=1e-12)


def test_without_radius_the_regulariser_is_zero_and_its_gradient_too():
    ours, batch = method(THREAT.at(0.0), **ALONE), images()
    step = trace(ours, batch)
    assert torch.equal(step.adversarial, batch[0])
    assert step.loss == 0
    assert (gradients(ours, step.loss) == 0).all()


@pytest.mark.parametrize("without", [{"w_llr": 0.0}, {"threat": THREAT.at(0.0)}])
def test_without_regulariser_it_is_natural_training_times_its_weight(without):
    ours, natural, batch = method(w_nom=3.0, **without), Natural(network(), THREAT).train(), images()
    loss, expected = trace(ours, batch).loss, trace(natural, batch).loss
    assert torch.equal(loss, 3 * expected)
    torch.testing.assert_close(gradients(ours, loss), 3 * gradients(natural, expected))


def gaps_of_halved_perturbations(frozen):
    """g at a random perturbation, at half of it and at a quarter, with and without BatchNorm on running statistics."""
    gaps = []
    for epsilon in (1e-2, 5e-3, 2.5e-3):
        model, x, y, draws = smooth()
        ours = method(THREAT.at(epsilon), model, s=0.0, inner=inner(steps=0), **ALONE)
        for part in model:
            part.train(not (frozen and isinstance(part, nn.BatchNorm2d)))
        ours.draws = draws
        gaps.append(trace(ours, (x, y)).loss.item())
    return gaps


def test_the_gap_is_never_negative_and_halving_the_perturbation_divides_it_by_about_four():
    gaps = gaps_of_halved_perturbations(frozen=True)
    assert min(gaps) > 0
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.1)


def test_with_stored_statistics_the_gap_of_the_fixed_function_decays_as_fast():
    model, x, y, draws = smooth()
    fixed, climb = RecordedStatistics(model), cross_entropy_with(y)
    fixed(x)
    value, slope = input_gradient(fixed, x, climb)[1:]  # at statistics that are stored already
    delta, gaps = 0.01 * draws.uniform(x), []
    for part in (1, 0.5, 0.25):
        gaps.append((climb(fixed(x + part * delta)) - value - part * (delta * slope).flatten(1).sum(1)).abs().mean())
    assert (gaps[0] / gaps[1]).item() == pytest.approx(4, rel=0.1)
    assert (gaps[1] / gaps[2]).item() == pytest.approx(4, rel=0.1)


def test_the_gradient_of_the_recording_forward_has_cross_image_terms_so_that_with_batchnorm_the_gap_halves():
    """As in the authors' values: their gradient runs through the batch's statistics, their l(x + d) keeps them."""
    gaps = gaps_of_halved_perturbations(frozen=False)
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)


def test_the_ascent_finds_more_gap_than_its_random_start_has():
    gaps = {}
    for steps in (0, 2, 10):
        model, x, y, draws = smooth()
        ours = method(THREAT.at(8 / 255), model, s=0.0, inner=inner(steps=steps), **ALONE)
        ours.draws = draws
        gaps[steps] = trace(ours, (x, y)).loss.item()
    assert gaps[0] < gaps[2]
    assert gaps[0] < gaps[10]


@pytest.mark.parametrize("exact", [False, True])
def test_the_first_step_follows_the_sign_of_the_codes_gradient_or_of_the_papers(exact):
    model, x, y, draws = smooth()
    ours = method(THREAT.at(0.02), model, exact_inner_gradient=exact, inner=inner(steps=1))
    ours.draws = draws
    climb, fixed = cross_entropy_with(y), RecordedStatistics(model)
    value, slope = (part.detach() for part in input_gradient(fixed, x, climb)[1:])
    start = (x + 0.02 * draws.uniform(x)).requires_grad_()
    linear = slope * ((start if exact else start.detach()) - x)
    gap = (climb(fixed(start)) - value - linear.flatten(1).sum(1)).abs()
    (ascent,) = torch.autograd.grad(gap.mean(), start)
    torch.testing.assert_close(trace(ours, (x, y)).adversarial, x + 0.02 * ascent.sign(), rtol=0, atol=1e-12)


def test_the_attack_is_pytorchs_adam_on_the_mean_with_an_epsilon_of_1e_9():
    model, x, y, draws = smooth()
    x = x[:3]
    ours = method(THREAT.at(0.02), model, exact_inner_gradient=True, inner=inner(steps=5, step_size=0.003))
    ours.draws = draws
    climb, fixed = cross_entropy_with(y[:3]), RecordedStatistics(model)
    value, slope = (part.detach() for part in input_gradient(fixed, x, climb)[1:])
    moved = nn.Parameter(x + 0.02 * draws.uniform(x))
    adam = torch.optim.Adam([moved], lr=0.003, betas=(0.9, 0.999), eps=1e-9)
    for _ in range(5):
        gap = (climb(fixed(moved)) - value - ((moved - x) * slope).flatten(1).sum(1)).abs()
        (gradient,) = torch.autograd.grad(-gap.mean(), moved)
        moved.grad = gradient
        adam.step()
        moved.data = x + (moved.data - x).clamp(-0.02, 0.02)
    torch.testing.assert_close(trace(ours, (x, y[:3])).adversarial, moved.data, rtol=0, atol=1e-10)


def test_a_detached_input_gradient_gives_another_weight_gradient(monkeypatch):
    attached, batch = method(**ALONE), images()
    loss = trace(attached, batch).loss
    expected = gradients(attached, loss)
    detached = method(**ALONE)
    taken = LLR.input_gradient

    def cut(self, x, objective, *, create_graph=True, network=None):
        found = taken(self, x, objective, create_graph=create_graph, network=network)
        return found._replace(gradient=found.gradient.detach())

    monkeypatch.setattr(LLR, "input_gradient", cut)
    same = trace(detached, batch).loss
    torch.testing.assert_close(same, loss)
    assert not torch.allclose(gradients(detached, same), expected, rtol=0.01)


def test_running_averages_move_once_a_step_by_the_nominal_forward():
    ours, natural, batch = method(), network().train(), images()
    trace(ours, batch)
    natural(batch[0])
    assert batches_seen(ours.network) == [1, 1]
    torch.testing.assert_close(ours.network[1].running_var, natural[1].running_var, rtol=0, atol=0)


def test_the_loss_at_the_image_itself_is_the_recorded_one_bit_for_bit():
    body, (x, y) = network(dropout=0.5).train(), images()
    fixed = RecordedStatistics(body)
    assert torch.equal(*(F.cross_entropy(fixed(x), y, reduction="none") for _ in range(2)))


# The radius over time


@pytest.mark.parametrize(("step", "share"), [(1, 1 / 500), (250, 0.5), (500, 1.0), (501, 1.0), (100_000, 1.0)])
def test_epsilon_is_half_of_its_final_value_in_the_middle_of_the_warm_up(step, share, monkeypatch):
    ours = method(ThreatModel("linf", 8 / 255), warmup=500 / 100_000)
    monkeypatch.setattr(ours, "_trainer", object())
    monkeypatch.setattr(ours, "progress", lambda: step / 100_000)
    assert ours.present_threat().epsilon == pytest.approx(share * 8 / 255)


class Radii(pl.Callback):
    def __init__(self):
        self.radii = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.radii.append(module.present_threat().epsilon)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recipe", "warmup", "expected"),
    [
        (Recipe(), 0.5, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        (Recipe(), 0.0, [1] * 6),
        (Recipe(epsilon_ramp=1.0), 0.5, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),  # in place of the warm-up
    ],
)
def test_the_warm_up_takes_its_share_of_the_training_unless_the_recipe_ramps(recipe, warmup, expected):
    ours, seen = method(recipe=replace(recipe, epochs=2), warmup=warmup), Radii()
    trainer(2, seen).fit(ours, loader())
    assert [radius / EPSILON for radius in seen.radii] == pytest.approx(expected)


def test_in_the_digits_suite_28_of_570_steps_have_a_smaller_radius(monkeypatch):
    ours = method()
    monkeypatch.setattr(ours, "_trainer", object())
    radii = []
    for step in range(1, 571):
        monkeypatch.setattr(ours, "progress", lambda step=step: step / 570)
        radii.append(ours.present_threat().epsilon)
    assert sum(radius < EPSILON for radius in radii) == 28


@pytest.mark.parametrize(("epsilon", "rate"), [(0.15, 0.478), (8 / 255, 0.1)])
def test_the_inner_learning_rate_keeps_its_ratio_to_epsilon(epsilon, rate):
    ours = LLR(network(), THREAT)
    assert Pixels.read(ours.inner.step_size).at(epsilon) == pytest.approx(rate, abs=2e-4)


# The row


def test_g_the_tangent_and_the_share_of_vanished_gradients_are_told():
    class Half(nn.Module):
        """Sees the upper half of the image alone."""

        def forward(self, x):
            return x[:, :, :4]

    body = nn.Sequential(Half(), nn.Flatten(), nn.Linear(32, 3), nn.Softplus(), nn.Linear(3, 3))
    ours, batch = method(body=body, s=0.5, **ALONE), images()
    loss = trace(ours, batch).loss
    told = {name: ours._notes[name][0].item() for name in ("g", "tangent", "zero_gradients")}
    assert told["zero_gradients"] == 0.5
    assert told["g"] + 0.5 * told["tangent"] == pytest.approx(loss.item())


@pytest.mark.filterwarnings("ignore")
def test_the_row_shows_the_last_epochs():
    ours = method(recipe=Recipe(learning_rate=0.01))
    assert ours.remarks() == {}
    trainer(2).fit(ours, loader())
    assert ours.remarks() == {name: ours.history[-1][name] for name in ("g", "tangent", "zero_gradients")}


def test_label_smoothing_is_the_nominal_losss_alone():
    plain, smoothed = (method(recipe=Recipe(label_smoothing=share), **ALONE) for share in (0.0, 0.2))
    assert torch.equal(trace(plain, images()).loss, trace(smoothed, images()).loss)


def test_perturb_by_itself_records_the_statistics_that_it_needs():
    ours, (x, y) = method(), images()
    ours.draws = ScriptedDraws(torch.zeros_like(x), torch.linspace(-1, 1, x.numel()).reshape(x.shape))
    expected = trace(ours, (x, y)).adversarial
    assert torch.equal(ours.perturb(Batch.of((x, y)), cross_entropy_with(y)), expected)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"w_nom": -1}, "w_nom is 0 or more, but found -1"),
        ({"w_llr": -1}, "w_llr is 0 or more"),
        ({"s": float("nan")}, "s is 0 or more, but found nan"),
        ({"warmup": 5}, "warmup is a share of the training, between 0 and 1, but found 5"),
        ({"inner": inner(start="none")}, "give inner another start"),
        ({"inner": inner(mode="eval")}, "leave inner.mode batch"),
        ({"inner": inner(keep="best")}, "inner.keep last"),
    ],
)
def test_a_silly_setting_is_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        method(**wrong)
