"""What a faithful implementation of feature scattering must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.modes import in_mode
from methods import FeatureScatter
from methods.base import Batch
from methods.recipe import Recipe
from methods.variants.avmixup import phi
from methods.variants.feature_scatter import cosine_cost, sinkhorn
from tests.golden import ScriptedDraws, cases
from tests.methods.tools import (
    EPSILON,
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

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)
every_space = pytest.mark.parametrize("space", ["logits", "features"])


def method(body=None, threat=THREAT, **settings_):
    return FeatureScatter(network() if body is None else body, threat, **settings_).train()


def scripted(order=slice(None), **settings_):
    """The golden files' network in float64, with its images, labels and noise in ``order``."""
    model, x, y, draws = toy()
    ours = method(model, ThreatModel("linf", 8 / 255), **settings_).double()
    ours.draws = ScriptedDraws(draws._normal[order], draws._uniform[order])
    return ours, x[order], y[order]


def alike(x, contrast=0.1):
    """Images so near one another that the plan of transport is spread over them."""
    return 0.5 + contrast * (x - 0.5)


def plan_of(ours, x, moved):
    return sinkhorn(cosine_cost(ours.frozen_logits(x), ours.frozen_logits(moved)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.6), st.sampled_from(["logits", "features"]), st.integers(1, 3))
def test_images_stay_in_ball_and_range_and_labels_play_no_part_in_them(seed, epsilon, space, steps):
    x, y = images(9, seed)
    threat = ThreatModel("linf", epsilon)
    found = [
        trace(method(threat=threat, space=space, steps=steps), (x, labels)).adversarial for labels in (y, y.flip(0))
    ]
    assert torch.equal(*found)
    assert threat.distance(found[0], x).max() <= epsilon + 1e-6
    assert found[0].min() >= 0
    assert found[0].max() <= 1


def test_without_the_random_start_the_distance_is_near_its_minimum_and_has_next_to_no_slope():
    ours, x, _ = scripted()
    clean = ours.frozen_logits(x)
    slopes, distances = [], []
    for share in (0, 0.01, 0.1, 1):
        point = (x + share * 8 / 255 * ours.draws.uniform(x)).requires_grad_()
        with in_mode(ours.network, "eval"):
            distance = ours.scatter_from(clean)(ours(point)).sum()
        slopes.append(torch.autograd.grad(distance, point)[0].norm().item())
        distances.append(distance.item())
    assert slopes[0] < 0.05 * slopes[-1]
    assert slopes == sorted(slopes)
    assert distances[0] == pytest.approx(min(distances), rel=1e-3)


def test_the_start_need_not_lie_in_the_pixel_range():
    x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    seen = []
    ours = method()
    ours.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    adversarial = trace(ours, (x, y)).adversarial
    assert seen[1].min() < -0.9 * EPSILON
    assert (adversarial.min(), adversarial.max() <= EPSILON) == (0, True)


def test_a_batch_of_one_is_moved_away_from_itself():
    one, other = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[2.0, 0.5, 0.3]])
    found = sinkhorn(cosine_cost(one.double(), other.double()))
    assert found.plan.item() == pytest.approx(1, abs=1e-5)
    distance = (found.plan * cosine_cost(one.double(), other.double())).sum().item()
    assert distance == pytest.approx(1 - F.cosine_similarity(one, other).item(), rel=1e-5)


def test_a_permuted_batch_gives_the_permuted_images():
    order = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])
    straight, x, y = scripted()
    permuted, xp, yp = scripted(order)
    expected = trace(straight, (alike(x), y)).adversarial[order]
    torch.testing.assert_close(trace(permuted, (alike(xp), yp)).adversarial, expected, rtol=0, atol=1e-12)


def test_one_other_image_changes_the_attack_on_all_where_the_plan_is_spread():
    ours, x, y = scripted()
    x = alike(x)
    changed = x.clone()
    changed[0] = changed[0].flip(-1)
    before, after = (
        scripted()[0].perturb(Batch.of((p, y)), ours.scatter_from(ours.frozen_logits(p))) for p in (x, changed)
    )
    assert (before[1:] != after[1:]).flatten(1).any(1).sum() >= 4


@pytest.mark.parametrize("classes", [10, 3])
def test_a_smoothed_label_leaves_half_to_the_true_class_and_shares_the_rest(classes):
    y = torch.arange(classes)
    labels = phi(y, 1 - method().smoothing, torch.empty(1, classes))
    torch.testing.assert_close(labels.sum(1), torch.ones(classes))
    assert labels.diagonal().tolist() == pytest.approx([0.5] * classes)
    assert labels[0, 1].item() == pytest.approx(0.5 / (classes - 1))
    if classes == 10:
        assert labels[0, 1].item() == pytest.approx(0.056, abs=5e-4)


def test_without_smoothing_the_loss_is_the_plain_cross_entropy():
    x, y = images()
    ours, by_hand = method(smoothing=0), network().train()
    step = trace(ours, (x, y))
    torch.testing.assert_close(step.loss, F.cross_entropy(by_hand(step.adversarial), y))
    smoothed = trace(method(), (x, y))
    assert torch.equal(smoothed.adversarial, step.adversarial)
    assert smoothed.loss != step.loss


def test_the_recipes_own_smoothing_is_not_added():
    plain, smoothed = (trace(method(recipe=Recipe(label_smoothing=s)), images()).loss for s in (0.0, 0.3))
    assert torch.equal(plain, smoothed)


@every_space
def test_one_forward_in_train_mode_on_the_moved_images_alone_and_two_in_eval_mode(space):
    batch, modes = images(), []
    ours, by_hand = method(space=space), network().train()
    before = weights(ours.network)
    ours.network.register_forward_hook(lambda module, *_: modes.append(module.training))
    with counting(ours.network) as passes:
        step = trace(ours, batch)
        after = statistics(ours.network)
        step.loss.backward()
    assert sorted(modes) == [False, False, True]
    assert (passes.forward, passes.backward) == (3 * len(batch[0]), 2 * len(batch[0]))
    assert batches_seen(ours.network) == [1, 1]
    by_hand(step.adversarial)
    assert_same(after, statistics(by_hand))
    assert all(torch.equal(before[name], p) for name, p in ours.network.named_parameters())


def test_the_attack_runs_the_network_as_it_is_in_eval_mode():
    x, y = images()
    ours, other = method(), method()
    with in_mode(other.network, "eval"):
        clean = other.network(x)
        start = (x + EPSILON * ours.draws.uniform(x)).requires_grad_()
        cost = cosine_cost(clean, other.network(start))
        (gradient,) = torch.autograd.grad((sinkhorn(cost).plan * cost).sum(), start)
    expected = x + (start.detach() + EPSILON * gradient.sign() - x).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(trace(ours, (x, y)).adversarial, expected.clamp(0, 1))


def test_most_pixels_end_on_the_boundary_of_the_ball():
    x, y = torch.full((24, 1, 8, 8), 0.5) + 0.2 * (images()[0] - 0.5), images()[1]
    moved = (trace(method(), (x, y)).adversarial - x).abs()
    assert (moved > EPSILON - 1e-6).float().mean() > 0.4
    assert (moved < EPSILON / 2).float().mean() > 0.1  # where the noise opposes the step


# The plan


def test_sinkhorn_stops_when_the_potentials_stand_and_gives_the_columns_their_share_first():
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(12, 12, generator=generator, dtype=torch.float64)
    early, late = sinkhorn(cost), sinkhorn(cost, stop=0.0)
    assert early.iterations < 10
    assert late.iterations == 100
    torch.testing.assert_close(early.plan.sum(0), torch.full((12,), 1 / 12).double(), rtol=0, atol=1e-5)
    assert (early.plan.sum(1) - 1 / 12).abs().max() > (late.plan.sum(1) - 1 / 12).abs().max()


def test_a_larger_batch_lets_sinkhorn_run_longer():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 10, generator=generator, dtype=torch.float64)
    moved = rows + 0.5 * torch.randn(256, 10, generator=generator, dtype=torch.float64)
    assert sinkhorn(cosine_cost(rows, moved)).iterations >= sinkhorn(cosine_cost(rows[:8], moved[:8])).iterations


def test_costs_that_underflow_in_float32_leave_finite_numbers_and_gradients():
    cost = torch.full((5, 5), 2.0, requires_grad=True)
    found = sinkhorn(cost, at_most=3, stop=0.0)
    (gradient,) = torch.autograd.grad((found.plan * cost).sum(), cost)
    assert found.plan.isfinite().all()
    assert gradient.isfinite().all()


def test_the_cost_is_one_minus_the_cosine_and_never_below_0():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    cost = cosine_cost(rows, torch.cat([rows, -rows]))
    assert cost.min() >= 0
    torch.testing.assert_close(cost[:, :6].diagonal(), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(cost[:, 6:].diagonal(), torch.full((6,), 2.0))
    torch.testing.assert_close(cost[1, 2], 1 - F.cosine_similarity(rows[1], rows[2], dim=0, eps=1e-6))
    assert cosine_cost(rows, torch.zeros(1, 4)).tolist() == [[1.0]] * 6


@pytest.mark.parametrize("contrast", [1.0, 0.1])
def test_the_gradient_runs_through_the_plan_unless_it_is_fixed(contrast):
    found = []
    for fixed in (False, True):
        ours, x, y = scripted(fixed_plan=fixed)
        found.append(trace(ours, (alike(x, contrast), y)).adversarial)
    different = (found[0] != found[1]).sum().item()
    if contrast == 0.1:
        assert different == 105  # the number that the golden file tells of


def test_the_transport_is_in_float32_under_mixed_precision():
    x, y = images()
    seen = []
    ours = method()
    climb = ours.scatter_from
    ours.scatter_from = lambda clean: lambda moved: seen.append((moved.dtype, climb(clean)(moved))) or seen[-1][1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace(ours, (x, y))
    ((given_as, distance),) = seen
    assert (given_as, distance.dtype) == (torch.bfloat16, torch.float32)


# In the common track


def test_history_tells_iterations_diagonal_mass_and_rows_and_the_last_batch_comes_as_it_is():
    ours = method()
    trainer(2).fit(ours, loader(21, batch_size=8))
    for line in ours.history:
        assert line["rows_per_plan"] == pytest.approx((8 + 8 + 5) / 3)
        assert 1 <= line["sinkhorn_iterations"] <= 100
        assert 1 / 8 - 0.01 < line["diagonal_mass"] <= 1
    told = ours.remarks()
    assert told["rows_per_plan"] == pytest.approx(7)
    assert "mark" not in told


def test_a_plan_that_joins_every_image_with_itself_is_marked_as_idle():
    ours = method()
    ours.history = [{"diagonal_mass": 0.95}, {"diagonal_mass": 0.91}]
    assert ours.remarks()["mark"].startswith("mechanism idle")
    ours.history[1]["diagonal_mass"] = 0.8
    assert "mark" not in ours.remarks()


def test_images_alike_have_a_uniform_plan_and_images_far_apart_a_diagonal_one():
    ours, x, _ = scripted()
    moved = x + 8 / 255 * ours.draws.uniform(x)
    apart, near = (plan_of(ours, a, b).plan.trace().item() for a, b in ((x, moved), (alike(x, 1e-3), alike(x, 1e-3))))
    assert near == pytest.approx(1 / 8, abs=0.01)
    assert apart > 4 / 8


def test_start_and_step_follow_a_ramp_of_epsilon():
    reached = []

    class Watched(FeatureScatter):
        def perturb(self, batch, *rest):
            moved = super().perturb(batch, *rest)
            reached.append((moved - batch.x).abs().max().item())
            return moved

    ours = Watched(network(), THREAT, recipe=Recipe(epsilon_ramp=1.0))
    trainer(4).fit(ours, loader(batch_size=24))
    assert reached == pytest.approx([EPSILON * share for share in (0.25, 0.5, 0.75, 1.0)], rel=1e-4)


def test_with_several_steps_every_iterate_passes_the_network_in_train_mode_and_the_last_one_counts():
    x, y = images()
    ours, by_hand = method(steps=3), network().train()
    step = trace(ours, (x, y))
    assert batches_seen(ours.network) == [3, 3]
    torch.testing.assert_close(step.loss, F.cross_entropy(by_hand(step.adversarial), phi(y, 0.5, torch.empty(1, 3))))
    assert gradients(ours, step.loss).norm() > 0


def test_the_golden_cases_have_a_case_of_two_steps():
    assert {case.settings["steps"] for case in cases("feature_scatter", "training_step")} == {1, 2}


def test_features_need_a_last_linear_layer():
    body = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    trace(method(body), images(6))
    with pytest.raises(BadInput, match=r"end the network with an nn\.Linear"):
        trace(method(body, space="features"), images(6))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"smoothing": 1.5}, "smoothing is a mass, between 0 and 1, but found 1.5"),
        ({"space": "pixels"}, "space is one of logits, features, but found 'pixels'"),
        ({"regularisation": 0.0}, "regularisation is above 0, but found 0.0"),
        ({"steps": 0}, "steps is 1 or more, but found 0"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**changed)
