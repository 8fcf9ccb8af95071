"""What a faithful implementation of FGSM adversarial training must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from methods import FGSMAT, PGDAT, Natural
from methods.alarm import FGSM, PGD10
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import cases
from tests.methods.from_golden.fgsm_at import build as from_golden
from tests.methods.tools import (
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

THREAT = ThreatModel("linf", 0.1)


def method(threat=THREAT, body=None, **settings_):
    return FGSMAT(network() if body is None else body, threat, **settings_).train()


@pytest.mark.parametrize("attack_mode", ["eval", "train"])
def test_with_all_weight_on_clean_images_loss_and_gradient_are_those_of_natural_training(attack_mode):
    batch = images()
    ours, natural = method(alpha=1.0, attack_mode=attack_mode), Natural(network(), THREAT).train()
    loss, expected = trace(ours, batch).loss, natural.trace_step(batch).loss
    assert torch.equal(loss, expected)
    torch.testing.assert_close(gradients(ours, loss), gradients(natural, expected))


@pytest.mark.parametrize("attack_mode", ["eval", "train"])
def test_without_weight_on_clean_images_it_is_pgd_training_of_one_step_from_the_image(attack_mode):
    batch = images()
    one_step = Inner(steps=1, step_size="epsilon", start="none", mode=attack_mode)
    ours, theirs = method(alpha=0.0, attack_mode=attack_mode), PGDAT(network(), THREAT, inner=one_step).train()
    step, expected = trace(ours, batch), trace(theirs, batch)
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    assert torch.equal(gradients(ours, step.loss), gradients(theirs, expected.loss))
    assert_same(weights(ours.network), weights(theirs.network))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 1), st.integers(0, 50))
def test_without_a_radius_the_loss_is_the_natural_one_and_statistics_move_twice(alpha, seed):
    x, y = images(9, seed)
    x = x.double()
    ours, natural = method(THREAT.at(0.0), network().double(), alpha=alpha), Natural(network().double(), THREAT).train()
    step, expected = trace(ours, (x, y)), natural.trace_step((x, y)).loss
    assert torch.equal(step.adversarial, x)
    torch.testing.assert_close(step.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected), rtol=1e-9, atol=1e-12)
    assert batches_seen(ours.network) == [2, 2]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.sampled_from([1 / 255, 0.1, 0.4]), st.sampled_from(["eval", "train"]))
def test_every_pixel_that_is_not_clipped_moves_by_epsilon_or_stays(seed, epsilon, attack_mode):
    x, y = images(9, seed)
    x = x.double()
    ours = method(THREAT.at(epsilon), network().double(), attack_mode=attack_mode)
    moved = (trace(ours, (x, y)).adversarial - x).abs()
    assert moved.max() <= epsilon + 1e-12
    clipped = (x + moved == 1) | (x - moved == 0)
    assert ((moved == 0) | ((moved - epsilon).abs() < 1e-12) | clipped).all()
    assert (moved > 0).float().mean() > 0.5


def test_a_pixel_without_a_gradient_stays_where_it_is():
    class HalfBlind(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 3)

        def forward(self, x):
            return self.layer(x[..., :4].flatten(1))

    x, y = images()
    x = 0.2 + 0.6 * x
    moved = (trace(method(body=HalfBlind()), (x, y)).adversarial - x).abs()
    assert (moved[..., 4:] == 0).all()
    torch.testing.assert_close(moved[..., :4], torch.full_like(moved[..., :4], 0.1))


def test_on_a_linear_logistic_model_the_step_is_exact():
    class Logistic(nn.Module):
        """Logits 0 and w.x + b."""

        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(3)
            self.w = nn.Parameter(torch.randn(64, generator=generator, dtype=torch.float64) / 8)
            self.b = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, x):
            score = x.flatten(1) @ self.w + self.b
            return torch.stack([torch.zeros_like(score), score], 1)

    body, epsilon = Logistic(), 0.1
    x, y = 0.3 + 0.4 * images()[0].double(), images()[1] % 2  # the whole ball lies in the pixel range
    adversarial_loss = trace(method(THREAT.at(epsilon), body, alpha=0.0), (x, y)).loss
    sign = 2 * y - 1
    margin = sign * (x.flatten(1) @ body.w + body.b)
    expected = torch.log(1 + torch.exp(-margin + epsilon * body.w.abs().sum())).mean()
    torch.testing.assert_close(adversarial_loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("attack_mode", ["eval", "train"])
def test_no_gradient_of_the_weights_flows_through_the_adversarial_images(attack_mode):
    x, y = images()
    ours, by_hand = method(alpha=0.3, attack_mode=attack_mode), network().train()
    step = trace(ours, (x, y))
    stored = step.adversarial.clone()
    loss = 0.3 * F.cross_entropy(by_hand(x), y) + 0.7 * F.cross_entropy(by_hand(stored), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(by_hand.parameters()))])
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(gradients(ours, step.loss), expected)


@pytest.mark.parametrize(
    ("settings_", "forwards", "backwards", "updates"),
    [
        ({}, 3, 3, 2),
        ({"attack_mode": "train"}, 2, 3, 2),  # the shared forward is gone back through twice
        ({"attack_mode": "train", "exact_forwards": True}, 3, 3, 3),
        ({"attack_mode": "batch"}, 3, 3, 2),
        ({"alpha": 0.0}, 2, 2, 1),
    ],
)
def test_a_step_has_the_passes_of_its_mode(settings_, forwards, backwards, updates):
    x, y = images()
    ours = method(**settings_)
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (forwards * len(x), backwards * len(x))
    assert set(batches_seen(ours.network)) == {updates}


def test_statistics_see_the_clean_images_first_and_each_kind_by_itself():
    x, y = images()
    ours, by_hand = method(), network().train()
    adversarial = trace(ours, (x, y)).adversarial
    by_hand(x)
    by_hand(adversarial)
    assert_same(statistics(ours.network), statistics(by_hand))


def test_a_shared_forward_changes_neither_images_nor_loss_nor_gradient():
    _, x, y, _ = toy()
    shared, apart = (method(body=toy()[0], attack_mode="train", exact_forwards=exact) for exact in (False, True))
    one, other = trace(shared, (x, y)), trace(apart, (x, y))
    assert torch.equal(one.adversarial, other.adversarial)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(shared, one.loss), gradients(apart, other.loss), rtol=1e-10, atol=1e-12)


def test_the_authors_train_mode_step_is_repeated_with_a_shared_forward_too():
    (case,) = (c for c in cases("fgsm_at", "training_step") if c.settings["attack_mode"] == "train")
    ours = from_golden(case).double()
    ours.exact_forwards = False
    step = ours.trace_step(case.batch)
    assert step.loss.item() == pytest.approx(case.expected["loss"], rel=1e-7)
    assert gradients(ours, step.loss).norm().item() == pytest.approx(case.expected["grad_norm"], rel=1e-7)


def test_the_modes_make_different_images_of_a_network_with_batchnorm():
    batch = images()
    made = [trace(method(attack_mode=mode), batch).adversarial for mode in ("eval", "train")]
    assert not torch.equal(*made)


@pytest.mark.filterwarnings("ignore")
def test_the_step_follows_a_ramp_of_epsilon():
    moved = []

    class Watching(FGSMAT):
        def perturb(self, batch, objective, seen=None):
            adversarial = super().perturb(batch, objective, seen)
            moved.append((adversarial - batch.x).abs().max().item())
            return adversarial

    ours = Watching(network(), THREAT, recipe=Recipe(epochs=3, epsilon_ramp=1.0))
    trainer(3).fit(ours, loader(24, batch_size=24))
    assert moved == pytest.approx([0.1 / 3, 0.2 / 3, 0.1], rel=1e-5)


def test_the_common_track_steps_once_by_the_whole_epsilon():
    x, y = 0.3 + 0.4 * images()[0], images()[1]
    ours = method(THREAT.at(0.15))
    assert (ours.alpha, ours.inner.steps, ours.inner.mode) == (0.5, 1, "eval")
    moved = (trace(ours, (x, y)).adversarial - x).abs()
    assert moved.median().item() == pytest.approx(0.15)


@pytest.mark.filterwarnings("ignore")
def test_every_epoch_shows_accuracy_under_fgsm_and_under_pgd():
    ours = method(recipe=Recipe(learning_rate=0.02))
    trainer(2).fit(ours, loader(), loader(seed=2))
    assert all({FGSM, PGD10, "held_out_clean"} <= line.keys() for line in ours.history)


def test_the_number_of_steps_is_no_setting():
    with pytest.raises(TypeError, match="inner"):
        method(inner=None)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"alpha": 1.5}, "alpha lies between 0 and 1, but found 1.5"),
        ({"alpha": float("nan")}, "alpha lies between 0 and 1, but found nan"),
        ({"attack_mode": "test"}, "attack_mode is one of eval, train, batch, but found 'test'"),
    ],
)
def test_a_silly_setting_is_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**wrong)
