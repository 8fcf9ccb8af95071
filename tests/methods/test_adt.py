"""What a faithful implementation of adversarial distributional training must show, with and without a generator."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.clip import clip
from benchmark import suite
from benchmark.experiment import plan
from methods import ADT
from methods.generator import Encoder, Generator
from methods.inner import Inner
from methods.recipe import Recipe
from methods.together import Together
from methods.variants.adt import Gaussian
from tests.golden import assert_images, cases, first_layer_gradient, gradient_norm
from tests.methods.from_golden import adt as golden
from tests.methods.ranks import SaveFirst
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    gradients,
    images,
    loader,
    network,
    trace,
    trainer,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)
AMORTISED = ("exp_am", "imp_am")


def method(body=None, threat=THREAT, steps=2, **settings_):
    inner = Inner(steps=steps, start="none", mode="eval")
    return ADT(network() if body is None else body, threat, inner=inner, **settings_).train()


def amortised(variant, **settings_):
    """In float64, with networks made for the images."""
    made = method(network().double(), variant=variant, **{"z_dim": 6} | settings_)
    made._make_networks(1, 8, 8)
    return made


def doubles():
    x, y = images()
    return x.double(), y


# Sought for each batch


def test_without_steps_images_hold_squashed_gaussian_noise():
    x, y = doubles()
    ours = method(network().double(), steps=0)
    step = trace(ours, (x, y))
    ours.draws.begin(epoch=0, step=0)
    noise = ours.draws.normal(x)
    expected = (x + EPSILON * (torch.log(torch.tensor(2.0).double()) * noise).tanh()).clamp(0, 1)
    torch.testing.assert_close(step.adversarial, expected)
    torch.testing.assert_close(step.loss, F.cross_entropy(network().double().train()(expected), y))


@pytest.mark.parametrize("variant", ["exp", *AMORTISED])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), epsilon=st.sampled_from([1 / 255, 0.15, 0.6]))
def test_samples_lie_strictly_inside_the_ball_and_in_the_pixel_range(variant, seed, epsilon):
    x, y = images(6, seed)
    ours = method(network().double(), THREAT.at(epsilon), variant=variant)
    moved = trace(ours, (x.double(), y)).adversarial
    assert (moved - x.double()).abs().max() < epsilon
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_without_lambda_there_is_no_gradient_of_the_entropy():
    x, y = doubles()
    ours = method(network().double(), lam=0.0).eval()
    present, climb = Gaussian(torch.randn_like(x), torch.randn_like(x)), cross_entropy_with(y)
    ours.draws.begin(epoch=0, step=0)
    found = ours._slopes(x, present, climb)
    ours.draws.begin(epoch=0, step=0)
    noise, leaves = ours.draws.normal(x), [part.clone().requires_grad_() for part in present]
    moved = clip(x + EPSILON * (leaves[0] + F.softplus(leaves[1]) * noise).tanh())
    expected = torch.autograd.grad(climb(ours.network(moved)).mean(), leaves)
    for ours_, by_hand in zip(found, expected, strict=True):
        assert torch.equal(ours_, by_hand)


def test_under_entropy_alone_the_distribution_grows_broader_step_by_step():
    x, y = doubles()
    broad = []
    for steps in range(4):
        ours = method(network().double(), lam=1e3, inner_lr=0.1, steps=steps)
        ours.draws.begin(epoch=0, step=0)
        broad.append(ours._search(x, cross_entropy_with(y)).deviation.mean().item())
    assert broad == sorted(broad)
    assert broad[0] == pytest.approx(0.6931, abs=1e-4)
    assert broad[3] > broad[0] + 0.05


def test_the_entropy_is_that_of_the_samples_but_for_a_constant():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 1, 1, 1, generator=draw, dtype=torch.float64)
    for mean, rho in ((0.0, 0.0), (0.5, -1.0)):
        gaussian = Gaussian(torch.full_like(noise, mean), torch.full_like(noise, rho))
        reached = gaussian.reached(noise)
        normal = torch.distributions.Normal(gaussian.mean, gaussian.deviation)
        squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
        constant = torch.log(torch.tensor(2 * torch.pi)).item() / 2
        expected = -squashed.log_prob(reached).mean().item() - constant
        assert gaussian.entropy(noise, reached).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("accumulate", [True, False])
def test_mean_and_rho_move_by_nearly_the_sign_of_the_gradients_that_count(accumulate):
    x, y = doubles()
    ours = method(network().double(), steps=3, samples=2, accumulate=accumulate)
    calls = []
    slopes = ours._slopes

    def watched(*args):
        calls.append(slopes(*args))
        return calls[-1]

    ours._slopes = watched
    found = ours._search(x, cross_entropy_with(y))
    mean, total = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(3):
        total = total * accumulate + calls[2 * step].mean + calls[2 * step + 1].mean
        mean = mean + 0.7 * total / (total.abs() + 1e-8)  # 2.1 / 3
    torch.testing.assert_close(found.mean, mean)


@pytest.mark.parametrize(("steps", "samples"), [(0, 5), (3, 1), (2, 5)])
def test_the_network_is_called_once_a_sample_in_eval_mode_and_once_in_train_mode(steps, samples):
    x, y = images()
    modes = []
    ours = method(steps=steps, samples=samples)
    ours.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    calls = steps * samples
    assert modes == [False] * calls + [True]
    assert (passes.forward, passes.backward) == ((calls + 1) * len(x), (calls + 1) * len(x))


@pytest.mark.parametrize("variant", ["exp", *AMORTISED])
def test_the_networks_gradient_is_that_of_the_cross_entropy_on_its_images_whatever_lambda(variant):
    x, y = doubles()
    for lam in (0.0, 0.01, 5.0):
        ours = method(network().double(), variant=variant, lam=lam)
        step = trace(ours, (x, y))
        by_hand = network().double().train()
        expected = F.cross_entropy(by_hand(step.adversarial), y)
        plain = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(by_hand.parameters()))])
        torch.testing.assert_close(gradients(ours, step.loss), plain)


# Given by a generator


@pytest.mark.parametrize("variant", AMORTISED)
def test_with_a_generator_the_network_is_called_twice_in_eval_and_once_in_train_mode(variant):
    x, y = images()
    modes = []
    ours = method(variant=variant)
    ours.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert modes == [False, False, True]
    assert (passes.forward, passes.backward) == (3 * len(x), 3 * len(x))
    assert set(batches_seen(ours.network)) == {1}


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_the_explicit_generator_climbs_cross_entropy_and_entropy(lam):
    x, y = doubles()
    ours, by_hand = amortised("exp_am", lam=lam), amortised("exp_am", lam=lam)
    trace(ours, (x, y)).loss.backward()
    by_hand.draws.begin(epoch=0, step=0)
    gaussian = Gaussian(*by_hand._generate(x, cross_entropy_with(y)).chunk(2, 1))
    noise = by_hand.draws.normal(x)
    reached = gaussian.reached(noise)
    images_ = clip(x + EPSILON * reached)
    aim = -F.cross_entropy(by_hand(images_), y) - lam * gaussian.entropy(noise, reached)
    expected = torch.autograd.grad(aim, list(by_hand.generator.parameters()))
    for parameter, gradient in zip(ours.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-12)
    assert max(gradient.abs().max() for gradient in expected) > 1e-6


def test_the_implicit_generator_climbs_cross_entropy_and_descends_the_hinge_of_its_code():
    x, y = doubles()
    ours, by_hand = (amortised("imp_am", lam=0.7, threshold=-5.0) for _ in range(2))
    trace(ours, (x, y)).loss.backward()
    by_hand.draws.begin(epoch=0, step=0)
    code = by_hand.draws.uniform(x, shape=(len(x), 6))
    reached = by_hand._generate(x, cross_entropy_with(y), code).tanh()
    mean, rho = by_hand.encoder(reached).chunk(2, 1)
    missed = -torch.distributions.Normal(mean, F.softplus(rho).sqrt()).log_prob(code).mean()
    hinge = 0.7 * (missed + 5.0)
    aim = hinge - F.cross_entropy(by_hand(clip(x + EPSILON * reached)), y)
    for part in ("generator", "encoder"):
        parameters = list(getattr(by_hand, part).parameters())
        expected = torch.autograd.grad(aim, parameters, retain_graph=True)
        for parameter, gradient in zip(getattr(ours, part).parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-9)


def test_where_the_code_is_told_well_enough_the_encoder_has_no_gradient():
    ours = amortised("imp_am", threshold=1e3)
    trace(ours, doubles()).loss.backward()
    assert all((parameter.grad == 0).all() for parameter in ours.encoder.parameters())
    assert any((parameter.grad != 0).any() for parameter in ours.generator.parameters())


def filled(modules, seed, scales):
    """Parameters as the golden file says."""
    from numpy.random import RandomState

    draw = RandomState(seed + 2000)
    with torch.no_grad():
        for module, scale in zip(modules, scales, strict=True):
            for parameter in module.parameters():
                parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * scale))


class SmallGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.z_encoder = nn.Conv2d(10, 3, 3, padding=1), nn.Linear(4, 64)

    def forward(self, x, code):
        return self.conv(torch.cat([x, self.z_encoder(code).view(-1, 1, 8, 8)], 1))


AMORTISED_CASES = [case for case in cases("adt", "training_step") if case.name in golden.SKIPPED]


@pytest.mark.parametrize("case", AMORTISED_CASES, ids=lambda case: case.name)
def test_a_generators_step_repeats_the_authors_code(case):
    expected, seed = case.expected, case.toy["seed"]
    ours = golden.build(case).double()
    if implicit := ours.variant == "imp_am":
        ours.generator, ours.encoder = (
            SmallGenerator().double(),
            nn.Sequential(nn.Flatten(), nn.Linear(192, 8)).double(),
        )
        filled([ours.generator, ours.encoder], seed, [0.3, 0.1])
    else:
        ours.generator = nn.Conv2d(9, 6, 3, padding=1).double()
        filled([ours.generator], seed, [0.3])
    ours.draws = golden.draws(case)
    step = ours.train().trace_step(case.batch)
    step.loss.backward()
    assert_images(step.adversarial, expected["x_adv"])
    if implicit:
        hinge = expected["hinge_relu(neg_entropy_bound - threshold)"]
        second = hinge * case.settings["lambda"]
        assert ours._notes["code_loss"][0].item() - ours.threshold == pytest.approx(hinge, rel=1e-7)
        assert gradient_norm(ours.encoder) == pytest.approx(expected["encoder_grad_norm"], rel=1e-7)
        found = ours.encoder[1].weight.grad.flatten()[: len(expected["encoder_grad_first"])]
        assert found.tolist() == pytest.approx(expected["encoder_grad_first"], rel=1e-7)
    else:
        second = -case.settings["lambda"] * expected["entropy"]
        assert ours._notes["entropy"][0].item() == pytest.approx(expected["entropy"], rel=1e-7)
    assert step.loss.item() == pytest.approx(expected["loss"] + second, rel=1e-7)
    assert gradient_norm(case.network) == pytest.approx(expected["grad_norm"], rel=1e-7)
    assert first_layer_gradient(case.network).tolist() == pytest.approx(expected["grad_first_layer"], rel=1e-7)
    assert gradient_norm(ours.generator) == pytest.approx(expected["generator_grad_norm"], rel=1e-7)
    found = next(ours.generator.parameters()).grad.flatten()[: len(expected["generator_grad_first"])]
    assert found.tolist() == pytest.approx(expected["generator_grad_first"], rel=1e-7)
    mean = case.network[1].running_mean.tolist()
    assert mean == pytest.approx(expected["first_bn_running_mean_after"], rel=1e-7, abs=1e-9)


def test_the_published_generator_has_ten_million_parameters_and_the_encoder_takes_any_image():
    count = sum(value.numel() for value in Generator(9, 6, width=256, size=(32, 32)).parameters())
    assert count == pytest.approx(10.3e6, rel=0.01)
    for side in (8, 28, 32, 64):
        made = Generator(10 - 1, 3, width=4, size=(side, side), latent=5)(
            torch.rand(2, 9, side, side), torch.rand(2, 5)
        )
        assert made.shape == (2, 3, side, side)
        assert Encoder(3, 10, size=(side, side))(made).shape == (2, 10)


def test_on_digits_the_suite_has_the_printed_numbers():
    rows = {"adt": None, "adt/exp_am": {"variant": "exp_am"}, "adt/imp_am": {"variant": "imp_am"}}
    plain, explicit, implicit = plan(suite.load("digits-common", {"methods": rows}))
    ours = plain.build_method(plain.build_network())
    assert (ours.variant, ours.inner.steps, ours.samples, ours.lam, ours.accumulate) == ("exp", 7, 5, 0.01, True)
    assert ours.threat.epsilon == 0.15
    for experiment, lam in ((explicit, 0.01), (implicit, 1.0)):
        ours = experiment.build_method(experiment.build_network())
        ours._make_networks(1, 8, 8)
        assert ours.lam == lam
        assert ours.generator.stem[0].out_channels == 32
        size = sum(value.numel() for value in ours.generator.blocks.parameters())
        assert size == pytest.approx(0.17e6, rel=0.05)
    assert (ours.z_dim, ours.threshold, ours.generator.plane[2].out_features) == (64, 0.9, 64)


# Training with a generator


def fit(variant, epochs=3, resume=None, save=None, precision="32-true", **recipe):
    ours = method(variant=variant, z_dim=6, recipe=Recipe(learning_rate=0.02, **recipe))
    callbacks = [SaveFirst(save)] if save else []
    run = trainer(epochs, *callbacks, precision=precision)
    run.fit(ours, loader(), loader(seed=2), ckpt_path=resume, weights_only=True)
    return ours


@pytest.mark.parametrize("variant", AMORTISED)
def test_a_resumed_training_with_a_generator_ends_as_an_undisturbed_one(variant, tmp_path):
    whole = fit(variant, save=tmp_path / "first.ckpt", average="ema", average_decay=0.9)
    torch.manual_seed(99)
    resumed = fit(variant, resume=tmp_path / "first.ckpt", average="ema", average_decay=0.9)
    assert_same(weights(whole), weights(resumed))
    assert whole.history == resumed.history
    first = method(variant=variant, z_dim=6)
    first._make_networks(1, 8, 8)
    assert not torch.equal(first.generator.end.weight, whole.generator.end.weight)
    assert whole.classifier().state_dict().keys() == network().state_dict().keys()


def test_in_mixed_precision_a_generator_trains_too():
    ours = fit("imp_am", epochs=1, precision="bf16-mixed")
    assert ours.history[0]["loss"] < 10


def test_the_generators_rate_does_not_follow_the_recipes_schedule_nor_its_gradient_the_limit():
    seen = []

    class Watched(ADT):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            groups = self.trainer.optimizers[0].param_groups
            seen.append([group["lr"] for group in groups])
            self.norms = [gradient_norm(part) for part in (self.network, self.generator)]

    recipe = Recipe(learning_rate=0.02, schedule="cyclic", gradient_clip=1e-6)
    ours = Watched(network(), THREAT, variant="imp_am", z_dim=6, generator_lr=0.003, recipe=recipe)
    trainer(2).fit(ours, loader())
    classifier, generator, encoder = zip(*seen, strict=True)
    assert len(set(classifier)) > 3
    assert {*generator, *encoder} == {0.003}
    betas = [group["betas"] for group in ours.trainer.optimizers[0].param_groups[1:]]
    assert betas == [(0.5, 0.999), (0.9, 0.999)]
    assert ours.norms[0] <= 1.01e-6 < ours.norms[1]


def test_what_is_trained_beside_is_listed_and_marked():
    ours = fit("imp_am", epochs=1)
    told = ours.remarks()
    assert told["generator_parameters"] == sum(value.numel() for value in ours.generator.parameters())
    assert told["encoder_parameters"] == sum(value.numel() for value in ours.encoder.parameters())
    assert "a generator is trained beside it" in told["mark"]
    assert {"reach", "code_loss"} <= ours.history[0].keys()


def test_training_on_noise_is_marked_and_reach_and_deviation_are_told():
    noisy, far = method(steps=0), method(steps=5, lam=0.0)
    for ours in (noisy, far):
        trainer(1).fit(ours, loader())
    assert noisy.remarks()["reach"] < 0.5 < far.remarks()["reach"]
    assert noisy.remarks()["mark"] == "training on noise more than on adversaries"
    assert far.remarks().keys() == {"reach", "deviation"}
    assert noisy.remarks()["deviation"] == pytest.approx(0.6931, abs=1e-4)


def test_optimizers_together_step_as_each_alone_and_resume():
    def parts():
        torch.manual_seed(0)
        one, other = nn.Linear(3, 2), nn.Linear(2, 1)
        return (
            one,
            other,
            torch.optim.SGD(one.parameters(), 0.1, momentum=0.9),
            torch.optim.Adam(other.parameters(), 0.1),
        )

    def steps(one, other, optimizers, count, start=0):
        for step in range(start, start + count):
            for optimizer in optimizers:
                optimizer.zero_grad()
            other(one(torch.full((1, 3), float(step)))).sum().backward()
            for optimizer in optimizers:
                optimizer.step()

    one, other, *alone = parts()
    steps(one, other, alone, 4)
    first, second, *both = parts()
    together = Together(*both)
    steps(first, second, [together], 2)
    saved = together.state_dict()
    third, fourth, *again = parts()
    third.load_state_dict(first.state_dict())
    fourth.load_state_dict(second.state_dict())
    resumed = Together(*again)
    resumed.load_state_dict(saved)
    steps(third, fourth, [resumed], 2, start=2)
    assert_same(weights(one), weights(third))
    assert_same(weights(other), weights(fourth))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"variant": "imp"}, "variant is one of exp, exp_am, imp_am, but found 'imp'"),
        ({"samples": 0}, "samples is 1 or more, but found 0"),
        ({"lam": -1.0}, "lam is 0 or more, but found -1"),
        ({"threat": ThreatModel("l2", 0.5)}, "adt's samples fill a ball of linf: threat.norm is 'l2'"),
    ],
)
def test_mistakes_in_settings_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        method(**wrong)


def test_an_attack_that_adt_does_not_make_is_refused():
    with pytest.raises(BadInput, match="of inner only steps and mode can be chosen"):
        ADT(network(), THREAT, inner=replace(Inner(start="none"), step_size=0.1))
    with pytest.raises(BadInput, match="generator_width follows from the first convolution, but found none in Seq"):
        method(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), variant="exp_am")._make_networks(1, 8, 8)
