"""What a faithful implementation of GAL must show."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.objectives import away_from_prediction
from benchmark import suite
from benchmark.experiment import plan
from methods import GAL, Natural
from methods.base import Batch
from methods.ensemble.gal import log_sum, pairwise_cosines, vanishing
from methods.ensemble.members import Ensemble
from methods.recipe import Recipe
from tests.golden import cases, first_layer_gradient, gradient_norm
from tests.methods.from_golden.gal import build as golden_gal
from tests.methods.tools import batches_seen, build, gradients, loader, network, redrawn, toy, trace, trainer

THREAT = ThreatModel("linf", 8 / 255)


def method(members=3, threat=THREAT, steps=None, noise=0, same=False, **settings_):
    """Members with ten classes, in float64, without noise."""
    first = toy()[0]
    others = [copy.deepcopy(first) if same else redrawn(first, k) for k in range(1, members)]
    made = GAL(Ensemble([first, *others]), threat, noise=noise, **settings_).train()
    if steps is not None:
        made.inner = replace(made.inner, steps=steps)
    return made


def batch(count=8):
    _, x, y, _ = toy()
    return Batch(x[:count], y[:count], torch.arange(count))


def term(ours, lam=1.0):
    """The alignment loss alone, with its graph."""
    return ours._errors_and_alignment(batch())[1] * lam


# Golden values


@pytest.mark.parametrize("case", cases("gal", "loss", "training_step"), ids=lambda case: case.name)
def test_loss_its_terms_and_the_gradient_of_every_member_repeat_the_code_of_dverge(case):
    ours, expected = golden_gal(case).double(), case.expected
    ours.draws = case.draws
    x, y, _ = case.batch
    step = ours.trace_step(case.batch)
    step.loss.backward()
    assert step.loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    assert gradient_norm(case.network) == pytest.approx(expected["grad_norm"], rel=1e-7)
    assert first_layer_gradient(case.network).tolist() == pytest.approx(expected["grad_first_layer"], rel=1e-7)
    found = [gradient_norm(member) for member in case.network.members]
    assert found == pytest.approx(expected["grad_norm_per_member"], rel=1e-7)
    terms = expected["terms"]
    ours.lam = 1.0
    errors, alignment = ours._errors_and_alignment(Batch(x, y, torch.arange(len(y))))
    assert 3 * errors.item() == pytest.approx(terms["ce_sum_over_members"], rel=1e-8)
    assert alignment.item() == pytest.approx(terms["gal_mean"], rel=1e-8)
    if case.settings["plus_adv"]:
        attacked = ours._mean_of_losses(ours.members_logits(step.adversarial), y)
        assert 3 * attacked.item() == pytest.approx(terms["adv_ce_sum_over_members"], rel=1e-8)


def test_every_case_of_the_golden_file_is_used():
    assert len(cases("gal", "loss", "training_step")) == 3
    assert [case.name for case in cases("gal", "other")] == ["ensemble_forward"]  # in test_ensemble.py


# Its properties


def test_without_lambda_the_loss_is_the_mean_of_networks_trained_alone():
    ours = method(lam=0.0)
    alone = [Natural(copy.deepcopy(member), THREAT).train() for member in ours.each_member()]
    step = ours.trace_step(batch())
    losses = [natural.trace_step(batch()).loss for natural in alone]
    torch.testing.assert_close(step.loss, sum(losses) / 3)
    step.loss.backward()
    for member, natural, loss in zip(ours.each_member(), alone, losses, strict=True):
        found = torch.cat([p.grad.flatten() for p in member.parameters()])
        torch.testing.assert_close(found, gradients(natural, loss) / 3, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("members", [2, 3, 5, 8])
def test_members_that_agree_have_cosines_of_one(members):
    ours, pairs = method(members, same=True), members * (members - 1) / 2
    assert term(ours).item() == pytest.approx(1 + math.log(pairs), rel=1e-9)
    if members == 3:
        assert 1 + math.log(pairs) == pytest.approx(2.0986, abs=5e-5)


def test_for_two_members_the_term_is_the_mean_cosine():
    cosines = torch.linspace(-1, 1, 7)[None].double().requires_grad_()
    log_sum(cosines).sum().backward()
    torch.testing.assert_close(log_sum(cosines), cosines[0])
    torch.testing.assert_close(cosines.grad, torch.ones_like(cosines))


@pytest.mark.parametrize("members", [2, 3, 5])
def test_orthogonal_gradients_and_those_of_a_regular_simplex_have_the_values_of_the_specification(members):
    axes = torch.eye(members).double().reshape(members, 1, 1, 1, members)
    pairs = members * (members - 1) / 2
    assert log_sum(pairwise_cosines(axes)).item() == pytest.approx(math.log(pairs), abs=1e-12)
    simplex = axes - axes.mean(0)
    lowest = -1 / (members - 1) + math.log(pairs)
    assert log_sum(pairwise_cosines(simplex)).item() == pytest.approx(lowest, abs=1e-12)
    if members == 3:
        assert lowest == pytest.approx(0.599, abs=5e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_the_term_lies_between_that_of_a_simplex_and_that_of_parallel_gradients(seed, members):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(members, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    cosines, pairs = pairwise_cosines(found), members * (members - 1) / 2
    for (i, j), cosine in zip(itertools.combinations(range(members), 2), cosines, strict=True):
        left, right = found[i].flatten(1), found[j].flatten(1)
        torch.testing.assert_close(cosine, (left * right).sum(1) / left.norm(dim=1) / right.norm(dim=1))
    value = log_sum(cosines)
    torch.testing.assert_close(value, (cosines.exp().sum(0) + 1e-20).log())
    assert (value <= 1 + math.log(pairs) + 1e-9).all()
    assert (value >= math.log(pairs) - 1 / (members - 1) - 1e-9).all()
    torch.testing.assert_close(log_sum(pairwise_cosines(found * torch.rand(members, 5, 1, 1, 1) * 9 + 0)), value)


@pytest.mark.parametrize("members", [2, 3])
def test_the_weights_of_every_member_follow_through_the_gradients(members):
    ours = method(members)
    parameters = list(ours.network.parameters())
    slopes = torch.autograd.grad(term(ours), parameters, allow_unused=True, materialize_grads=True)
    for member in ours.each_member():
        mine = {id(p) for p in member.parameters()}
        assert any((s != 0).any() for p, s in zip(parameters, slopes, strict=True) if id(p) in mine)
    # Against finite differences, along a direction of all weights.
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, along, strict=True):
                p += sign * 1e-6 * d
        ends.append(term(ours).item())
        with torch.no_grad():
            for p, d in zip(parameters, along, strict=True):
                p -= sign * 1e-6 * d
    slope = sum((s * d).sum().item() for s, d in zip(slopes, along, strict=True))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_one_member_has_no_pair_and_is_refused():
    with pytest.raises(BadInput, match="members is 2 or more, but found 1"):
        method(1)
    with pytest.raises(BadInput, match="members is 2 or more, but found 1"):
        GAL.compose(lambda member: network(), members=1)
    with pytest.raises(BadInput, match="gal trains an Ensemble of networks, but found one Sequential"):
        GAL(network(), THREAT)


@pytest.mark.filterwarnings("ignore")
def test_after_a_short_run_the_held_out_cosine_is_clearly_below_that_of_an_ensemble_without_the_term():
    cosine = {}
    for lam in (0.5, 0.0):
        recipe = Recipe(learning_rate=0.05, schedule="constant")
        ours = build("gal", network(), lam=lam, recipe=recipe, noise=0)
        trainer(6).fit(ours, loader(48), loader(24, seed=2))
        cosine[lam] = ours.history[-1]["held_out_cosine"]
        assert ours.remarks()["held_out_cosine"] == cosine[lam]
        assert ("cosine" in ours.history[-1]) == (lam > 0)
    assert cosine[0.5] < cosine[0.0] - 0.2


@pytest.mark.parametrize("scale", [1e-12, 0.0])
def test_gradients_without_a_direction_are_counted_and_leave_numbers_behind(scale):
    given_ = torch.randn(3, 4, 1, 2, 2).requires_grad_()
    found = given_ * torch.tensor([1.0, scale, 1.0]).reshape(3, 1, 1, 1, 1)
    assert vanishing(found).mean().item() == pytest.approx(1 / 3)
    cosines = pairwise_cosines(found)
    assert cosines[0].abs().max() < 1e-3
    log_sum(cosines).sum().backward()
    assert torch.isfinite(given_.grad).all()


# The step


def test_a_step_is_one_forward_two_backwards_and_one_update_of_statistics_for_each_member():
    for members in (2, 3, 5):
        ours = method(members)
        with counting(ours.network) as passes:
            ours.trace_step(batch()).loss.backward()
        assert (passes.forward, passes.backward) == (8 * members, 8 * 2 * members)
        assert batches_seen(ours.network) == [1, 1] * members


@pytest.mark.parametrize(("steps", "both"), [(7, (27, 30)), (5, (21, 24))])
def test_with_pgd_each_member_pays_for_every_step_and_for_the_adversarial_images(steps, both):
    ours = method(plus_adv="pgd", steps=steps)
    with counting(ours.network) as passes:
        trace(ours, batch()).loss.backward()
    assert (passes.forward / 8, passes.backward / 8) == both


def test_the_second_forward_of_the_code_changes_statistics_but_neither_loss_nor_gradient():
    once, twice = method(), method(exact_forwards=True)
    losses = [ours.trace_step(batch()).loss for ours in (once, twice)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(gradients(ours, loss) for ours, loss in zip((once, twice), losses, strict=True)))
    assert (set(batches_seen(once.network)), set(batches_seen(twice.network))) == ({1}, {2})


def test_pgd_attacks_the_mean_prediction_with_the_true_labels_and_adds_the_members_mean():
    ours, fresh = (method(plus_adv="pgd", steps=3) for _ in range(2))
    step = trace(ours, batch())
    fresh.draws.begin(epoch=0, step=0)
    by_hand = fresh.perturb(batch(), cross_entropy_with(batch().y))
    assert torch.equal(step.adversarial, by_hand)
    plain = method().trace_step(batch()).loss
    added = torch.stack([F.cross_entropy(one, batch().y) for one in fresh.members_logits(by_hand)]).mean()
    torch.testing.assert_close(step.loss, plain + added)


# The noise


def test_noise_meets_about_half_of_the_images_at_half_of_epsilon_and_is_not_clipped():
    ours = method(noise="epsilon/2", threat=ThreatModel("linf", 0.15))
    x = torch.full((2000, 1, 8, 8), 0.01).double()
    moved = ours.augmented(x) - x
    touched = (moved != 0).flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert moved[touched].std().item() == pytest.approx(0.075, rel=0.02)
    assert ours.augmented(x).min() < 0
    assert torch.equal(method(noise_share=0.0, noise=0.1).augmented(x), x)


@pytest.mark.parametrize(("epsilon", "deviation"), [(0.15, 0.075), (8 / 255, 0.0157), (0.3, 0.15)])
def test_the_deviation_of_the_noise_is_half_of_epsilon(epsilon, deviation):
    ours = method(noise="epsilon/2", threat=ThreatModel("linf", epsilon))
    assert ours.noise.at(epsilon) == pytest.approx(deviation, abs=5e-5)


def test_the_whole_step_is_about_the_noisy_images():
    ours, fresh = (method(noise=0.2, lam=0.0) for _ in range(2))
    loss = trace(ours, batch()).loss
    fresh.draws.begin(epoch=0, step=0)
    noisy = fresh.augmented(batch().x)
    torch.testing.assert_close(loss, fresh._mean_of_losses(fresh.members_logits(noisy), batch().y))


# The activation


def test_composed_every_relu_is_a_leaky_one_and_the_row_says_so():
    made = GAL.compose(lambda member: network(seed=member), members=4)
    kinds = [module for module in made.modules() if isinstance(module, nn.ReLU | nn.LeakyReLU)]
    assert len(kinds) == 8
    assert all(isinstance(kind, nn.LeakyReLU) and kind.negative_slope == 0.1 for kind in kinds)
    assert GAL(made, THREAT).remarks() == {"activation": "LeakyReLU(0.1) in place of ReLU"}


def test_without_a_slope_the_networks_own_activation_stays():
    made = GAL.compose(lambda member: network(seed=member), slope=None)
    assert not any(isinstance(module, nn.LeakyReLU) for module in made.modules())
    assert "activation" not in GAL(made, THREAT, slope=None).remarks()
    other = GAL.compose(lambda member: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(64, 3)))
    assert "activation" not in GAL(other, THREAT).remarks()


# On sources


def test_with_eats_sources_half_of_the_loss_is_about_images_made_for_one_of_them():
    ours = build("gal", network(), plus_adv="eat", sources=[0.5, 1], noise=0, source_floor=0).train()
    assert len(ours.sources) == 2
    assert not any(isinstance(module, nn.LeakyReLU) for module in ours.sources.modules())
    assert {id(p) for p in ours.network.parameters()}.isdisjoint(id(p) for p in ours.sources.parameters())
    x, y = (item for item in loader(24, batch_size=24).dataset.tensors)
    plain = build("gal", network(), noise=0).train()
    drawn = set()
    for step in range(12):
        found = trace(ours, (x, y), step)
        ours.draws.begin(epoch=0, step=step)
        source = ours.draw_source()
        drawn.add(source)
        if source == 3:
            continue
        twin = copy.deepcopy(ours.sources[source - 1]).eval()
        point = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(away_from_prediction(twin(point)).sum(), point)
        expected = (x + ours.threat.epsilon * slope.sign()).clamp(0, 1)
        torch.testing.assert_close(found.adversarial, expected, rtol=0, atol=1e-6)
        adversarial = plain._mean_of_losses(plain.members_logits(found.adversarial), y)
        clean, alignment = plain._errors_and_alignment(Batch(x, y, y))
        torch.testing.assert_close(found.loss, (clean + adversarial) / 2 + 0.5 * alignment, rtol=1e-4, atol=1e-5)
    assert drawn == {1, 2, 3}


@pytest.mark.filterwarnings("ignore")
def test_with_sources_the_history_says_how_good_they_are():
    ours = build("gal", network(), plus_adv="eat", source_floor=0, recipe=Recipe(epochs=2, learning_rate=0.05))
    trainer(2).fit(ours, loader(), loader(seed=2))
    names = {"held_out_cosine", "held_out_vanishing", "held_out_source_1", "held_out_source_3"}
    assert names <= ours.history[-1].keys()
    assert ours.remarks()["pool"].startswith("narrow pool")


# The common track


def test_on_digits_it_is_plain_gal_with_three_members():
    (of,) = plan(suite.load("digits-common", {"methods": {"gal": None}}))
    ours = of.build_method(of.build_network())
    assert (ours.members, ours.lam, ours.plus_adv, ours.inner.steps) == (3, 0.5, "none", 7)
    assert ours.noise.at(ours.present_threat().epsilon) == pytest.approx(0.075)
    assert any(isinstance(module, nn.LeakyReLU) for module in ours.classifier().modules())


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"lam": -1}, "lam is 0 or more, but found -1"),
        ({"slope": 1.0}, "slope lies between 0 and 1"),
        ({"noise_share": 2}, "noise_share lies between 0 and 1, but found 2"),
        ({"plus_adv": "tf"}, "plus_adv is none, pgd or eat, but found 'tf'"),
        ({"plus_adv": "eat"}, r"gal takes its sources from a Pool, but found one Ensemble: hand in Pool\("),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings_, says):
    with pytest.raises(BadInput, match=says):
        method(**settings_)
