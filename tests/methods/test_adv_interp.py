"""What a faithful implementation of adversarial interpolation must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.modes import in_mode
from methods import AdvInterp
from methods.anatomy import Features, last_linear
from methods.recipe import Recipe
from methods.variants.adv_interp import feature_distance, interpolated_labels
from tests.golden import ScriptedDraws
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
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


def method(body=None, threat=THREAT, **settings_):
    return AdvInterp(network() if body is None else body, threat, **settings_).train()


def labels(y, partner_y, share, classes=10):
    return interpolated_labels(y, partner_y, share, torch.empty(1, classes, dtype=torch.float64))


def features(body, x):
    with in_mode(body, "eval"), torch.no_grad():
        return Features(body, last_linear(body, x))(x)


def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 3)).double()


def test_images_come_closer_to_their_partners_features():
    x, y = (images()[0].double(), images()[1])
    body, still = smooth(), smooth()
    moved = trace(method(body), (x, y)).adversarial
    start = trace(method(still, image_step=False), (x, y)).adversarial
    partner = features(body, x.flip(0))
    before, after = (feature_distance(features(body, images_), partner) for images_ in (start, moved))
    assert after.mean() < before.mean()
    assert (after < before).double().mean() > 0.8


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.6), st.booleans(), st.sampled_from(["reversed", "random"]))
def test_images_stay_in_ball_and_range(seed, epsilon, step, partner):
    x, y = images(9, seed)
    threat = ThreatModel("linf", epsilon)
    moved = trace(method(threat=threat, image_step=step, partner=partner), (x, y)).adversarial
    assert threat.distance(moved, x).max() <= epsilon + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1


@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0, 1))
def test_labels_are_distributions_that_give_the_partners_class_nothing(seed, classes, share):
    generator = torch.Generator().manual_seed(seed)
    y, other = torch.randint(classes, (2, 9), generator=generator)
    found = labels(y, other, share, classes)
    torch.testing.assert_close(found.sum(1), torch.ones(9).double())
    assert found.min() >= 0
    different = y != other
    assert found.gather(1, other[:, None]).squeeze(1)[different].tolist() == [0] * int(different.sum())


def test_labels_of_ten_classes_are_those_of_the_specification():
    same, different = labels(torch.tensor([3, 3]), torch.tensor([3, 5]), 0.5)
    assert same.tolist() == pytest.approx([0.5 if c == 3 else 0.5 / 9 for c in range(10)])
    assert different.tolist() == pytest.approx(
        [0.5 + 0.5 / 9 if c == 3 else 0 if c == 5 else 0.5 / 9 for c in range(10)]
    )
    assert same[0].item() == pytest.approx(0.056, abs=5e-4)


def test_without_a_share_the_labels_are_hard():
    x, y = images()
    ours, by_hand = method(epsilon_y=0), network().train()
    assert torch.equal(labels(y, y.flip(0), 0.0), F.one_hot(y, 10).double())
    step = trace(ours, (x, y))
    torch.testing.assert_close(step.loss, F.cross_entropy(by_hand(step.adversarial), y))


def test_images_depend_on_no_label_and_labels_on_no_network():
    x, y = images()
    one, other = (trace(method(), (x, labels_)) for labels_ in (y, (y + 1) % 3))
    assert torch.equal(one.adversarial, other.adversarial)
    assert one.loss != other.loss
    assert torch.equal(one.adversarial, trace(method(epsilon_y=0), (x, y)).adversarial)


def test_a_reversed_batch_gives_the_reversed_images_and_labels():
    found = []
    for order in (slice(None), torch.arange(7, -1, -1)):
        model, x, y, draws = toy()
        ours = method(model, ThreatModel("linf", 8 / 255)).double()
        ours.draws = ScriptedDraws(draws._normal[order], draws._uniform[order])
        x, y = x[order], y[order]
        found.append((trace(ours, (x, y)).adversarial, labels(y, y[ours.partners(x)], 0.5)))
    (moved, soft), (moved_too, soft_too) = found
    torch.testing.assert_close(moved_too, moved.flip(0), rtol=0, atol=1e-12)
    assert torch.equal(soft_too, soft.flip(0))


def test_one_forward_in_train_mode_on_the_moved_images_alone_and_two_in_eval_mode():
    batch, modes = images(), []
    ours, by_hand = method(), network().train()
    before = weights(ours.network)
    ours.network.register_forward_hook(lambda module, *_: modes.append(module.training))
    with counting(ours.network) as passes:
        step = trace(ours, batch)
        after = statistics(ours.network)
        step.loss.backward()
    assert modes == [False, False, True]
    assert (passes.forward, passes.backward) == (3 * len(batch[0]), 2 * len(batch[0]))
    assert batches_seen(ours.network) == [1, 1]
    by_hand(step.adversarial)
    assert_same(after, statistics(by_hand))
    assert all(torch.equal(before[name], p) for name, p in ours.network.named_parameters())


def test_the_step_goes_down_the_distance_from_a_start_outside_the_pixel_range():
    x, y = images()
    ours, body = method(), network().eval()
    start = (x + EPSILON * ours.draws.uniform(x)).requires_grad_()
    assert start.min() < 0
    view = Features(body, last_linear(body, x))
    distance = feature_distance(view(start), view(x.flip(0)).detach())
    (gradient,) = torch.autograd.grad(distance.sum(), start)
    expected = x + (start.detach() - EPSILON * gradient.sign() - x).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(trace(ours, (x, y)).adversarial, expected.clamp(0, 1))


def test_the_label_side_alone_leaves_images_at_their_start():
    x, y = images()
    ours = method(image_step=False)
    expected = (x + EPSILON * method().draws.uniform(x)).clamp(0, 1)
    with counting(ours.network) as passes:
        torch.testing.assert_close(trace(ours, (x, y)).adversarial, expected)
    assert passes.forward == len(x)


def test_the_middle_image_of_an_odd_batch_is_its_own_partner():
    x = images(45)[0]
    partners = method().partners(x)
    assert partners.tolist() == list(range(44, -1, -1))
    assert (partners == torch.arange(45)).sum() == 1
    same = labels(torch.tensor([4]), torch.tensor([4]), 0.5)[0]
    assert (same[4].item(), same[0].item()) == (0.5, pytest.approx(0.056, abs=5e-4))


def test_random_partners_are_an_order_that_is_drawn_anew_each_step():
    x = images()[0]
    ours = method(partner="random")
    drawn = []
    for step in (0, 1, 0):
        ours.draws.begin(epoch=0, step=step)
        drawn.append(ours.partners(x).tolist())
    assert sorted(drawn[0]) == list(range(24))
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_batch_of_one_is_refused_unless_it_is_left_over():
    with pytest.raises(BadInput, match="pairs the images of a batch, which holds 2 or more, but found 1"):
        trainer(1).fit(method(), loader(5, batch_size=1))
    trainer(1).fit(method(), loader(5, batch_size=2))


def test_a_network_without_a_last_linear_layer_is_refused():
    with pytest.raises(BadInput, match=r"end the network with an nn\.Linear"):
        trace(method(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())), images(6))


def test_distances_of_features_behind_a_relu_lie_between_0_and_1():
    x = images()[0]
    found = feature_distance(features(network(), x), features(network(), x.flip(0)))
    assert 0 <= found.min() <= found.max() <= 1
    zero = torch.zeros(1, 4)
    assert feature_distance(zero, torch.ones(1, 4)).item() == 1


def test_history_tells_the_largest_probability_and_partners_of_the_same_class():
    ours = method()
    trainer(2).fit(ours, loader())
    for line in ours.history:
        assert 1 / 3 < line["top_probability"] < 1
        assert line["own_class"] == pytest.approx(0.25)  # 2 of the 8 images, in every batch
    assert ours.remarks() == {name: ours.history[-1][name] for name in ("top_probability", "own_class")}


def test_the_step_follows_a_ramp_of_epsilon():
    reached = []

    class Watched(AdvInterp):
        def perturb(self, batch, *rest):
            moved = super().perturb(batch, *rest)
            reached.append((moved - batch.x).abs().max().item())
            return moved

    trainer(4).fit(Watched(network(), THREAT, recipe=Recipe(epsilon_ramp=1.0)), loader(batch_size=24))
    assert reached == pytest.approx([EPSILON * share for share in (0.25, 0.5, 0.75, 1.0)], rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"epsilon_y": 1.5}, "epsilon_y is a share, between 0 and 1, but found 1.5"),
        ({"partner": "next"}, "partner is one of reversed, random, but found 'next'"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**changed)
