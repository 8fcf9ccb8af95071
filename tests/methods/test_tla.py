"""What a faithful implementation of triplet loss adversarial training must show."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from benchmark.data import ImageData, load
from methods import PGDAT, TLA
from methods.anatomy import last_linear, with_features
from methods.base import Batch
from methods.recipe import Recipe
from methods.regularization.tla import angular_distance, cosines, hardest, mean_square, triplet_hinge
from tests.golden import assert_images, cases, first_layer_gradient, gradient_norm
from tests.methods.tools import (
    EPSILON,
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


def method(body=None, threat=THREAT, steps=3, **settings_):
    made = TLA((network() if body is None else body).double(), threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def batch(count=24):
    x, y = images(count)
    return x.double(), y


def vectors(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Noted(TLA):
    """Remembers which candidates were mined, and with which features."""

    def _choose_negatives(self, batch, attacked, pool):
        negative, found = super()._choose_negatives(batch, attacked, pool)
        anchors, candidates = self._frozen_features(attacked), self._frozen_features(pool.x)
        vars(self).setdefault("mined", []).append((batch, pool, negative, found, anchors, candidates))
        return negative, found


# The authors' values


@pytest.mark.parametrize("case", cases("tla", "loss"), ids=lambda case: case.name)
def test_mined_negatives_hinge_norm_term_and_gradients_are_the_authors(case):
    body, s, expected = case.network, case.settings, case.expected
    (x, y, _), noise = case.batch, case.draws
    attacked = (x + case.record["start"]["scale"] * noise.uniform(x)).clamp(0, 1)
    assert_images(attacked, expected["x_adv"])
    last = last_linear(body, x)
    body.eval()
    with torch.no_grad():
        candidates, anchors = (with_features(body, last, images_)[1] for images_ in (x, attacked))
    negative, found = hardest(cosines(anchors, candidates), y, y)
    assert negative.tolist() == expected["negative_index"]
    assert found.all()
    body.train()
    positive, anchor, farther = (with_features(body, last, images_)[1] for images_ in (x, attacked, x[negative]))
    assert angular_distance(anchor, positive).mean().item() == pytest.approx(expected["mean_positive_distance"])
    assert angular_distance(anchor, farther).mean().item() == pytest.approx(expected["mean_negative_distance"])
    square = mean_square(anchor, positive, farther)
    assert square.item() == pytest.approx(expected["norm_term"], rel=1e-9)
    loss = triplet_hinge(anchor, positive, farther, s["margin"]).mean() + s["norm_weight_inside_triplet"] * square
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    loss.backward()
    assert gradient_norm(body) == pytest.approx(expected["grad_norm"], rel=1e-7)
    torch.testing.assert_close(
        first_layer_gradient(body), torch.tensor(expected["grad_first_layer"]).double(), rtol=1e-7, atol=1e-9
    )
    moved = next(module.running_mean for module in body if isinstance(module, nn.BatchNorm2d))
    torch.testing.assert_close(moved.tolist(), expected["first_bn_running_mean_after"], rtol=1e-7, atol=1e-9)


# What a faithful implementation must show


def test_without_triplets_it_is_pgd_training():
    ours, pgd_at = method(lambda1=0.0), PGDAT(network().double(), THREAT).train()
    pgd_at.inner = ours.inner
    left, right = trace(ours, batch()), trace(pgd_at, batch())
    assert torch.equal(left.adversarial, right.adversarial)
    assert left.loss.item() == right.loss.item()
    torch.testing.assert_close(gradients(ours, left.loss), gradients(pgd_at, right.loss), rtol=1e-12, atol=1e-15)


def test_a_margin_below_minus_one_leaves_no_triplet_and_no_gradient():
    ours, without = method(alpha=-1.001, lambda2=0.0), method(lambda1=0.0)
    left, right = trace(ours, batch()), trace(without, batch())
    assert left.loss.item() == right.loss.item()
    torch.testing.assert_close(gradients(ours, left.loss), gradients(without, right.loss), rtol=1e-12, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-2, 1e2), st.floats(-1e2, -1e-2))
def test_the_distance_knows_no_scale_no_sign_and_lies_between_0_and_1(seed, up, down):
    u, v = vectors(6, 9, seed), vectors(6, 9, seed + 1)
    distance = angular_distance(u, v)
    assert ((distance >= 0) & (distance <= 1)).all()
    for left, right in ((up * u, v), (u, up * v), (down * u, v), (down * u, down * v)):
        torch.testing.assert_close(angular_distance(left, right), distance, rtol=0, atol=1e-9)
    assert angular_distance(u, u).abs().max() < 1e-9
    assert angular_distance(u, -u).abs().max() < 1e-9
    torch.testing.assert_close(angular_distance(v, u), distance)


def test_features_of_zeros_are_far_from_everything_and_break_nothing():
    zero, v = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True), vectors(2, 5, 0)
    distance = angular_distance(zero, v)
    assert distance.tolist() == [1, 1]
    distance.sum().backward()
    assert torch.isfinite(zero.grad).all()
    assert cosines(zero.detach(), v).abs().max() == 0


def test_with_the_anchor_as_positive_a_negative_beyond_the_margin_leaves_the_hinge_inactive():
    anchor = vectors(30, 4, 1)
    negative = vectors(30, 4, 2)
    hinge = triplet_hinge(anchor, anchor, negative, 0.03)
    beyond = angular_distance(anchor, negative) > 0.03 + 1e-9
    assert beyond.sum() > 0
    assert (hinge[beyond] == 0).all()
    near = triplet_hinge(anchor, anchor, anchor, 0.03)
    assert near.tolist() == pytest.approx([0.03] * 30)


def test_every_negative_is_the_most_similar_candidate_of_another_class():
    ours = Noted(network().double(), THREAT).train()
    trace(ours, batch())
    ((item, pool, negative, found, anchors, candidates),) = ours.mined
    assert found.all()
    for row, chosen in enumerate(negative.tolist()):
        assert pool.y[chosen] != item.y[row]
        cosine = torch.cosine_similarity(anchors[row][None], candidates)
        assert cosine[chosen] >= cosine[pool.y != item.y[row]].max() - 1e-7


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_no_candidate_of_the_own_class_is_chosen_even_where_all_others_are_opposite(seed):
    generator = torch.Generator().manual_seed(seed)
    y, candidates_y = (torch.randint(3, (n,), generator=generator) for n in (7, 12))
    similarity = -torch.rand(7, 12, generator=generator) - 0.1
    chosen, found = hardest(similarity, y, candidates_y)
    for row in range(7):
        others = candidates_y != y[row]
        assert bool(found[row]) == bool(others.any())
        if found[row]:
            assert others[chosen[row]]
            assert similarity[row, chosen[row]] == similarity[row][others].max()


def test_an_anchor_without_a_candidate_of_another_class_has_no_triplet():
    x, y = batch(12)
    ours = method(lambda2=0.0, alpha=0.9)
    step = trace(ours, (x, torch.zeros_like(y)))
    without = trace(method(lambda1=0.0), (x, torch.zeros_like(y)))
    assert step.loss.item() == without.loss.item()


@pytest.mark.parametrize("branch", ["noisy", "negative", "other"])
def test_gradients_reach_every_branch(branch, monkeypatch):
    whole = method(alpha=0.9)
    expected = gradients(whole, trace(whole, batch()).loss).norm()
    ours = method(alpha=0.9)
    look, calls = ours._look, []
    order = ["mining", "mining", "noisy", "adversarial", "negative", "other"]

    def detached(x):
        logits, features = look(x)
        calls.append(order[len(calls)])
        return logits, features.detach() if calls[-1] == branch else features

    monkeypatch.setattr(ours, "_look", detached)
    found = gradients(ours, trace(ours, batch()).loss).norm()
    assert calls == order
    assert abs(found - expected) > 1e-6 * expected


def test_the_attack_does_not_see_the_triplets():
    one, other = (trace(method(lambda1=weight), batch()).adversarial for weight in (0.0, 5.0))
    assert torch.equal(one, other)


# Settings


def test_the_loss_is_made_as_the_equation_says():
    x, y = batch()
    ours = Noted(network().double(), THREAT, lambda1=1.5, lambda2=0.01, alpha=0.4, positives="noisy").train()
    step = trace(ours, (x, y))
    ((_, pool, negative, *_),) = ours.mined
    ours.draws.begin(epoch=0, step=0)
    ours.draws.uniform(x)
    noisy = (x + EPSILON * ours.draws.uniform(x)).clamp(0, 1)  # the second draw: the attack starts from the first
    body = network().double().train()
    _, positive = with_features(body, "8", noisy)
    logits, anchor = with_features(body, "8", step.adversarial)
    _, farther = with_features(body, "8", pool.x[negative])
    cosine = torch.cosine_similarity
    hinge = (cosine(anchor, farther).abs() - cosine(anchor, positive).abs() + 0.4).clamp(min=0)
    square = (anchor**2 + positive**2 + farther**2).mean()
    expected = nn.functional.cross_entropy(logits, y) + 1.5 * (hinge.mean() + 0.01 * square)
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert (noisy - x).abs().max() > 0.9 * EPSILON


def test_two_positives_are_two_triplets():
    """The draws of the one positive are those of the other, hence the sum is of whole trainings' terms."""
    x, y = batch()
    free = trace(method(lambda1=0.0), (x, y)).loss.item()
    both, other = (trace(method(positives=kind, alpha=0.9), (x, y)).loss.item() - free for kind in ("both", "other"))
    noisy = trace(method(positives="noisy", alpha=0.9), (x, y)).loss.item() - free
    assert both == pytest.approx(noisy + other, rel=0.05)


def test_a_switched_anchor_compares_the_positive_with_the_negative():
    a, p, n = (vectors(5, 4, seed) for seed in range(3))
    ours = method(switch_anchor=True, lambda2=0.0)
    total = ours._triplets(a, {"noisy": p}, n, torch.ones(5).double())
    assert total.item() == pytest.approx(triplet_hinge(p, a, n, 0.03).mean().item())
    assert total.item() != pytest.approx(triplet_hinge(a, p, n, 0.03).mean().item())


def test_random_negatives_cost_no_pool_and_are_of_other_classes():
    ours = Noted(network().double(), THREAT, negatives="random").train()
    chosen = []
    for step in range(20):
        trace(ours, batch(), step=step)
    for item, pool, negative, *_ in ours.mined:
        assert (pool.y[negative] != item.y).all()
        chosen.append(negative)
    assert len(torch.stack(chosen)[:, 0].unique()) > 5
    plain = method(negatives="random")
    with counting(plain.network) as passes:
        trace(plain, batch())
    assert passes.forward == (3 + 4) * 24


@pytest.mark.parametrize(("positives", "forwards"), [("both", 4), ("noisy", 3), ("other", 3)])
def test_each_positive_is_a_forward_and_a_backward_of_its_own(positives, forwards):
    ours = method(positives=positives)
    with counting(ours.network) as passes:
        trace(ours, batch()).loss.backward()
    assert (passes.forward, passes.backward) == ((1 + 3 + 1 + forwards) * 24, (3 + forwards) * 24)
    assert set(batches_seen(ours.network)) == {forwards}


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [
        ({"positives": "none"}, "positives is one of both, noisy, other, but found 'none'"),
        ({"negatives": "soft"}, "negatives is one of hard, random, but found 'soft'"),
        ({"lambda1": -1.0}, "lambda1 is 0 or more, but found -1"),
        ({"lambda2": math.nan}, "lambda2 is 0 or more, but found nan"),
        ({"pool_size": -5}, "pool_size is a number of images, 0 or more, or null, but found -5"),
        ({"noise": "wide"}, "noise is written like"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings_, sentence):
    with pytest.raises(BadInput, match=sentence if "noise" not in settings_ else "noise is"):
        TLA(network(), THREAT, **settings_)


def test_a_network_without_a_last_linear_layer_is_told_so():
    body = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(BadInput, match=r"the features are what the last nn\.Linear is given"):
        method(body).trace_step(batch())


# The common track


def test_on_the_digits_the_pool_has_119_images_and_the_features_512_numbers():
    from benchmark.architectures import build as build_network

    splits = load("digits")
    assert len(splits.train) == 1197
    ours = Noted(build_network("digits_cnn", classes=10, channels=1, size=8), ThreatModel("linf", 0.15))
    ours.inner = replace(ours.inner, steps=1)
    with counting(ours.network) as passes:
        data = ImageData(splits, batch_size=64, seed=0)
        trainer(
            1, limit_train_batches=2, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0
        ).fit(ours, datamodule=data)
    first, second = (mined[1] for mined in ours.mined)
    for pool in (first, second):
        assert len(pool.x) == 119
        assert len(pool.index.unique()) == 119  # without replacement
        assert torch.isin(pool.index, splits.train.index).all()
    assert not torch.equal(first.index, second.index)
    assert ours.mined[0][4].shape == (64, 512)
    assert passes.backward == 2 * 64 * (1 + 4)
    assert ours.training_set is None  # let go of


def test_a_large_set_gives_500_candidates_and_a_small_one_at_least_one():
    from methods.training_set import TrainingSet

    ours = method()
    for count, expected in ((50_000, 500), (1_197, 119), (5, 1)):
        ours.training_set = TrainingSet(torch.zeros(count).long(), None, lambda at: at)
        assert len(ours._candidates(ours.training_set)) == expected
    ours.pool_size = 7
    ours.training_set = TrainingSet(torch.zeros(50).long(), None, lambda at: at)
    assert len(ours._candidates(ours.training_set)) == 7


@pytest.mark.parametrize("pool_size", [None, 6, 0])
def test_an_ordinary_loader_trains_it_reproducibly(pool_size):
    ended = []
    for _ in range(2):
        ours = TLA(network(), THREAT, pool_size=pool_size, recipe=Recipe(learning_rate=0.05), seed=4)
        trainer(2).fit(ours, loader())
        ended.append(weights(ours.network))
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_noise_follows_a_ramp_of_the_radius():
    reached = []

    class Measured(TLA):
        def _noisy(self, x):
            noisy = super()._noisy(x)
            reached.append((noisy - x).abs().max().item())
            return noisy

    ours = Measured(network(), THREAT, recipe=Recipe(epsilon_ramp=0.5))
    trainer(4).fit(ours, loader(batch_size=12))
    ramp = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert reached == pytest.approx([EPSILON * share for share in ramp], rel=0.02)


def test_history_and_remarks_tell_how_much_the_triplets_did():
    ours = TLA(network(), THREAT, alpha=0.5)
    assert ours.remarks() == {}
    trainer(2).fit(ours, loader(indexed=True))
    names = {"active_noisy", "active_other", "active_anchors", "feature_square", "dead_features"}
    assert names <= ours.history[0].keys()
    said = ours.remarks()
    assert said.keys() == names
    assert 0 <= max(said["active_noisy"], said["active_other"]) <= said["active_anchors"] <= 1
    assert said["feature_square"] > 0
    mean = sum(line["active_noisy"] for line in ours.history) / 2
    assert said["active_noisy"] == pytest.approx(mean)


@pytest.mark.parametrize(("share", "marked"), [(0.049, True), (0.05, False)])
def test_a_row_whose_triplets_are_idle_is_marked(share, marked):
    ours = TLA(network(), THREAT)
    ours.history = [{"epoch": 0, "active_anchors": share + 0.01}, {"epoch": 1, "active_anchors": share - 0.01}]
    assert ("mark" in ours.remarks()) == marked
    if marked:
        assert ours.remarks()["mark"] == "pgd_at with a feature penalty: triplets idle"


def test_anchors_without_features_are_counted():
    ours = method()
    a, p, n = (vectors(4, 3, seed) for seed in range(3))
    a[1] = 0
    ours._triplets(a, {"noisy": p}, n, torch.ones(4).double())
    assert ours._notes["dead_features"][0].item() == 0.25


def test_training_in_mixed_precision_works():
    ours = TLA(network(), THREAT, recipe=Recipe(learning_rate=0.05, schedule="constant"))
    trainer(6, precision="bf16-mixed").fit(ours, loader())
    assert ours.history[-1]["loss"] < ours.history[0]["loss"]


def test_training_in_double_precision_reads_the_pool_in_it_too():
    ours = TLA(network(), THREAT)
    trainer(1, precision="64-true").fit(ours, loader())
    assert math.isfinite(ours.history[0]["loss"])


def test_items_of_a_batch_are_compared_with_others_of_the_set_and_not_with_themselves():
    seen = []

    class Watched(TLA):
        def training_loss(self, batch):
            others = self.training_set.another_of_its_class(batch, self.draws)
            seen.append((batch, self.training_set.read(others)))
            return super().training_loss(batch)

    trainer(2).fit(Watched(network(), THREAT), loader(indexed=True))
    for item, other in seen:
        assert (other.y == item.y).all()
        assert (other.index != item.index).all()
    assert isinstance(seen[0][1], Batch)


def test_in_mixed_precision_candidates_are_compared_in_single_precision():
    features, candidates = (torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows)) for rows in (64, 119))
    exact = cosines(features, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosines(features, candidates), exact)
