"""What a faithful implementation of ADP must show."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from methods import ADP, Natural
from methods.base import Batch
from methods.ensemble.adp import ensemble_entropy, log_determinant
from methods.ensemble.members import Ensemble
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import cases, first_layer_gradient, gradient_norm
from tests.methods.from_golden.adp import build as golden_adp
from tests.methods.tools import (
    assert_same,
    batches_seen,
    build,
    gradients,
    images,
    network,
    redrawn,
    statistics,
    toy,
    trace,
    weights,
)

THREAT = ThreatModel("linf", 8 / 255)
OFFSET = 1e-6


def method(members=3, threat=THREAT, steps=None, **settings_):
    """Members with ten classes, in float64."""
    first = toy()[0]
    made = ADP(Ensemble([first, *(redrawn(first, k) for k in range(1, members))]), threat, **settings_).train()
    if steps is not None:
        made.inner = replace(made.inner, steps=steps)
    return made


def batch(count=8):
    _, x, y, _ = toy()
    return x[:count], y[:count], torch.arange(count)


def random_logits(members=3, count=6, classes=10, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(members, count, classes, generator=generator, dtype=torch.float64)


# Golden values


@pytest.mark.parametrize("case", cases("adp", "loss", "training_step"), ids=lambda case: case.name)
def test_loss_its_terms_and_the_gradient_of_every_member_repeat_the_code_of_dverge(case):
    ours, expected = golden_adp(case).double(), case.expected
    ours.draws = case.draws
    x, y, _ = case.batch
    step = ours.trace_step(case.batch)
    step.loss.backward()
    assert step.loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    assert gradient_norm(case.network) == pytest.approx(expected["grad_norm"], rel=1e-8)
    assert first_layer_gradient(case.network).tolist() == pytest.approx(expected["grad_first_layer"], rel=1e-8)
    found = [gradient_norm(member) for member in case.network.members]
    assert found == pytest.approx(expected["grad_norm_per_member"], rel=1e-8)

    terms, logits = expected["terms"], case.network.members_logits(x)
    assert ours.members_loss(x, y).item() == pytest.approx(terms["ce_sum_over_members"], rel=1e-8)
    assert ensemble_entropy(logits).mean().item() == pytest.approx(terms["ensemble_entropy_mean"], rel=1e-8)
    assert log_determinant(logits, y).mean().item() == pytest.approx(-terms["minus_log_det_mean"], rel=1e-8)
    on_attacked = ours.members_loss(step.adversarial, y).item() if case.settings["plus_adv"] else 0.0
    assert on_attacked == pytest.approx(terms["adv_ce_sum_over_members"], rel=1e-8)


def test_every_case_of_the_golden_file_is_used():
    assert len(cases("adp", "loss", "training_step")) == 3
    assert [case.name for case in cases("adp", "other")] == ["ensemble_forward"]  # in test_ensemble.py


# Its properties


def test_without_alpha_and_beta_each_member_is_a_network_trained_alone():
    ours = method(alpha=0.0, beta=0.0)
    alone = [Natural(copy.deepcopy(member), THREAT).train() for member in ours.network.members]
    step = ours.trace_step(batch())
    losses = [natural.trace_step(batch()).loss for natural in alone]
    torch.testing.assert_close(step.loss, sum(losses))  # a sum, not a mean
    step.loss.backward()
    for member, natural, loss in zip(ours.network.members, alone, losses, strict=True):
        expected = gradients(natural, loss)
        found = torch.cat([p.grad.flatten() for p in member.parameters()])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [3, 5, 9])
def test_members_that_agree_leave_nothing_of_the_determinant_but_its_offset(members, dtype):
    logits = random_logits(1).expand(members, -1, -1).to(dtype)
    found = log_determinant(logits, torch.arange(6))
    expected = math.log(members + OFFSET) + (members - 1) * math.log(OFFSET)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-6, atol=0)
    if members == 3:
        assert expected == pytest.approx(-26.53, abs=0.005)


def test_members_with_wrong_classes_of_their_own_span_the_whole_volume():
    logits = torch.full((3, 1, 10), -1000.0).double()
    for member in range(3):
        logits[member, 0, 2 + member] = 0.0
    found = log_determinant(logits, torch.tensor([0]))
    assert found.item() == pytest.approx(3 * math.log(1 + OFFSET), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.01, 30))
def test_the_determinant_is_that_of_the_written_definition_and_never_above_one(seed, members, scale):
    logits, y = random_logits(members, seed=seed, scale=scale), torch.tensor([0, 9, 4, 4, 1, 7])
    found = log_determinant(logits, y)
    for image, label in enumerate(y.tolist()):
        p = logits[:, image].softmax(-1)
        p = p[:, [c for c in range(10) if c != label]]
        p = p / p.norm(dim=1, keepdim=True)
        expected = torch.linalg.slogdet(p @ p.T + OFFSET * torch.eye(members).double()).logabsdet
        assert found[image].item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    assert found.max() <= members * math.log(1 + OFFSET) + 1e-9


def test_the_dropped_class_is_the_label_of_the_image_not_the_predicted_one():
    logits = random_logits()
    right, other = logits.softmax(-1).mean(0).argmax(1), torch.zeros(6, dtype=torch.int64)
    differing = right != other
    assert differing.any()
    found = log_determinant(logits, right) != log_determinant(logits, other)
    assert torch.equal(found, differing)


def test_a_uniform_mean_prediction_has_the_entropy_of_ten_classes_though_no_member_is_uniform():
    logits = torch.full((10, 1, 10), -1000.0).double()
    logits[torch.arange(10), 0, torch.arange(10)] = 0.0
    for uniform in (torch.zeros(3, 4, 10).double(), logits):
        assert ensemble_entropy(uniform)[0].item() == pytest.approx(2.302585, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_the_determinant_does_not_see_how_likely_a_member_finds_the_true_class(seed, share):
    y, p = torch.tensor([3, 1, 4, 1, 5, 9]), random_logits(seed=seed).softmax(-1)
    moved = p.clone()
    rows = torch.arange(6)
    moved[1] *= ((1 - share) / (1 - p[1, rows, y]))[:, None]
    moved[1, rows, y] = share
    torch.testing.assert_close(moved.sum(-1), torch.ones(3, 6).double())
    torch.testing.assert_close(log_determinant(moved.log(), y), log_determinant(p.log(), y), rtol=1e-9, atol=1e-9)


def test_beta_alone_moves_every_member_and_permuted_members_have_permuted_gradients():
    made = [network(seed=seed).double() for seed in range(3)]
    x, y = images(9)
    found = []
    for order in itertools.permutations(range(3)):
        ours = ADP(Ensemble(made[k] for k in order), THREAT, alpha=0.0, beta=1.0).train()
        volume = ours.members_loss(x.double(), y) - ours.diverse_loss(x.double(), y)
        slopes = torch.autograd.grad(volume, [p for k in range(3) for p in made[k].parameters()])
        found.append(torch.cat([slope.flatten() for slope in slopes]))
        for member in made:
            (slope,) = torch.autograd.grad(ours.diverse_loss(x.double(), y), member[0].weight)
            assert slope.abs().max() > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


def test_the_loss_is_lowest_where_the_specification_says():
    p = torch.linspace(0.05, 0.999, 5000).double()
    logits = torch.cat([p[:, None], ((1 - p) / 9)[:, None].expand(-1, 9)], 1).log().expand(3, -1, -1)
    loss = -3 * p.log() - 2 * ensemble_entropy(logits)
    assert p[loss.argmin()].item() == pytest.approx(0.59, abs=0.005)


def test_one_plain_step_is_exactly_one_forward_and_one_backward_of_each_member():
    for members in (1, 3, 5):
        ours = method(members)
        with counting(ours.network) as passes:
            ours.trace_step(batch()).loss.backward()
        assert (passes.forward, passes.backward) == (members * 8, members * 8)
        assert batches_seen(ours.network) == [1, 1] * members


@pytest.mark.parametrize(("form", "forward", "backward", "updates"), [("pt", 9, 9, 9), ("tf", 10, 9, 10)])
def test_with_attacks_each_member_pays_for_every_step_the_clean_and_the_adversarial_images(
    form, forward, backward, updates
):
    ours = method(plus_adv=form, steps=7)  # of digits-common: 27 forward, 27 backward; tf asks for its labels too
    with counting(ours.network) as passes:
        trace(ours, batch()).loss.backward()
    assert (passes.forward, passes.backward) == (3 * forward * 8, 3 * backward * 8)
    assert set(batches_seen(ours.network)) == {updates}


# Adversarial images


def test_a_plain_step_attacks_nothing_and_draws_nothing():
    ours = method()
    ours.draws = None
    assert torch.equal(ours.trace_step(batch()).adversarial, batch()[0])


def test_the_attack_steps_a_quarter_of_epsilon_from_a_start_inside_the_range():
    ours, (x, _, _) = method(plus_adv="pt", steps=1), batch()
    moved = trace(ours, batch()).adversarial
    ours.draws.begin(epoch=0, step=0)
    start = ours.inner.begin(x, THREAT, ours.draws)
    assert start.min() >= 0
    assert start.max() <= 1
    inside = (moved > 0) & (moved < 1) & ((moved - x).abs() < THREAT.epsilon - 1e-9)
    assert (moved - start).abs()[inside].tolist() == pytest.approx([2 / 255] * int(inside.sum()))
    assert (ours.inner.mode, ours.inner.boxed) == ("train", True)


def test_pt_adds_the_members_cross_entropy_on_images_made_with_the_true_labels():
    ours, fresh = method(plus_adv="pt", steps=3), method(steps=3)
    x, y, _ = batch()
    step = trace(ours, batch())
    fresh.draws.begin(epoch=0, step=0)
    by_hand = fresh.perturb(Batch.of(batch()), cross_entropy_with(y))
    assert torch.equal(step.adversarial, by_hand)
    torch.testing.assert_close(step.loss, fresh.diverse_loss(x, y) + fresh.members_loss(by_hand, y))


def test_tf_adds_the_whole_loss_on_images_made_with_the_ensembles_own_labels():
    ours, fresh = (method(plus_adv="tf", steps=3) for _ in range(2))
    x, y, _ = batch()
    step = trace(ours, batch())
    own = fresh.frozen_logits(x).argmax(1)
    assert not torch.equal(own, y)
    images_ = []
    for labels in (own, y):
        fresh.draws.begin(epoch=0, step=0)
        images_.append(fresh.perturb(Batch.of(batch()), cross_entropy_with(labels)))
    assert torch.equal(step.adversarial, images_[0])
    assert not torch.equal(step.adversarial, images_[1])
    torch.testing.assert_close(step.loss, fresh.diverse_loss(x, y) + fresh.diverse_loss(step.adversarial, y))


def test_tf_draws_one_radius_a_batch_between_a_fifth_of_epsilon_and_epsilon():
    ours, (x, y, index) = method(1, plus_adv="tf", steps=0, threat=ThreatModel("linf", 0.15)), batch()
    x = x * 0 + 0.5
    reached = []
    for step in range(200):
        moved = (trace(ours, (x, y, index), step).adversarial - x).abs().flatten(1).amax(1)
        assert moved.max() - moved.min() < 0.2 * moved.max()  # of 192 pixels one lies near the radius, in every image
        reached.append(moved.max().item())
    assert 0.03 * 0.95 < min(reached) < 0.036
    assert 0.144 < max(reached) <= 0.15


def test_tf_steps_a_share_of_the_radius_whatever_the_step_size_of_the_other_form():
    x, y, index = batch()
    lengths = []
    for size in ("epsilon/4", 0.5):
        ours = method(plus_adv="tf", inner=Inner(steps=10, step_size=size, start="none", mode="train"))
        ours.draws.begin(epoch=0, step=0)
        radius = (0.6 + 0.4 * ours.draws.uniform(x, shape=(1, 1, 1, 1)).item()) * THREAT.epsilon
        moved = trace(ours, (x * 0.5 + 0.25, y, index)).adversarial - (x * 0.5 + 0.25)
        assert moved.abs().max().item() <= radius + 1e-12
        shares = (moved.abs() / (radius / 10)).flatten()
        assert (shares - shares.round()).abs().max() < 1e-6  # whole numbers of steps
        lengths.append(moved)
    assert torch.equal(*lengths)


# Precision


@pytest.mark.parametrize("form", ["none", "pt", "tf"])
def test_mixed_precision_stays_out_of_entropy_and_determinant(form):
    ours = build("adp", network(), plus_adv=form, steps=1).train()
    seen = []
    ours.note = lambda name, value: seen.append((name, value.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        step = trace(ours, images())
    step.loss.backward()
    assert step.loss.dtype == torch.float32
    assert {dtype for _, dtype in seen} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in ours.network.parameters())


def test_the_determinant_of_logits_is_the_same_inside_autocast():
    logits, y = random_logits(seed=4).float(), torch.arange(6)
    ours = method()
    plain = ours.diverse_loss  # the block inside switches autocast off
    ours.network.members_logits = lambda x: logits
    x = torch.zeros(6, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = plain(x, y)
    assert torch.equal(inside, plain(x, y))


def test_members_that_are_sure_of_themselves_give_a_number_where_the_authors_code_divides_by_zero():
    logits = torch.tensor([[[200.0, 1.0, 0.0, 0.0]], [[200.0, 0.0, 1.0, 0.0]]], requires_grad=True)
    probability = logits.softmax(-1)[..., 1:]
    assert (probability == 0).all()
    found = log_determinant(logits, torch.tensor([0])).sum()
    moved = log_determinant(logits.detach() - 200 * F.one_hot(torch.tensor(0), 4), torch.tensor([0])).sum()
    torch.testing.assert_close(found, moved)
    found.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[..., 0].abs().max() == 0


# As a method among others


def test_composed_it_is_as_many_members_as_asked_each_from_its_own_call():
    asked = []
    made = ADP.compose(lambda member: asked.append(member) or network(seed=member), members=5, alpha=1.0)
    assert asked == [0, 1, 2, 3, 4]
    assert_same(weights(made.members[3]), weights(network(seed=3)))
    assert Natural.compose(lambda member: member) == 0
    with pytest.raises(BadInput, match="members is 1 or more, but found 0"):
        ADP.compose(network, members=0)


def test_the_classifier_is_the_ensemble_and_with_averaging_an_ensemble_of_averages():
    ours = build("adp", network(), recipe=Recipe(average="ema", average_decay=0.5))
    assert ours.classifier() is ours.network
    ours.averaged.update_parameters(ours.network)
    assert isinstance(ours.classifier(), Ensemble)
    assert_same(weights(ours.classifier()), weights(ours.network))


def test_a_network_that_is_no_ensemble_is_refused_with_what_to_hand_in():
    with pytest.raises(BadInput, match=r"found one Sequential: hand in Ensemble\(\[first, second, third\]\)"):
        ADP(network(), THREAT)


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(BadInput, match="plus_adv is none, pt or tf, but found 'keras'"):
        method(plus_adv="keras")


def test_one_optimizer_moves_all_members_in_one_step():
    ours = build("adp", network())
    optimizer = ours.optimizers_for(Recipe(learning_rate=0.1, momentum=0.0, weight_decay=0.0))
    before = weights(ours.network)
    trace(ours.train(), images()).loss.backward()
    optimizer.step()
    moved = {name.split(".")[1] for name, p in ours.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0", "1", "2"}


def test_running_statistics_see_the_clean_images_once():
    ours, by_hand = method(), copy.deepcopy(method().network).train()
    ours.trace_step(batch())
    for member in by_hand.members:
        member(batch()[0])
    assert_same(statistics(ours.network), statistics(by_hand))


def test_its_description_warns_that_stronger_attacks_break_it():
    text = " ".join((ADP.__doc__ or "").split())
    assert "Warning: broken by stronger attacks" in text
    assert "Report AutoAttack beside PGD-10" in text
    assert "3 x ResNet-20" in text
