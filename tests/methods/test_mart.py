"""What a faithful implementation of MART must show."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ThreatModel, counting, kl_divergence
from methods import MART
from methods.regularization.mart import floored_kl, margin_term
from tests.golden import one
from tests.methods.from_golden.trades import gaussian_start
from tests.methods.tools import batches_seen, gradients, images, network, toy, trace

THREAT = ThreatModel("linf", 8 / 255)


def method(body=None, threat=THREAT, steps=10, **settings_):
    made = MART(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def logits(count=12, classes=5, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    made = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return made, torch.randint(classes, (count,), generator=generator)


def boosted(z, y):
    return F.cross_entropy(z, y, reduction="none") + margin_term(z, y)


class Scripted(torch.nn.Module):
    """Gives the logits ``clean`` and then ``adversarial``, as parameters."""

    def __init__(self, clean, adversarial):
        super().__init__()
        self.clean, self.adversarial = (torch.nn.Parameter(z.clone()) for z in (clean, adversarial))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.clean if self.calls % 2 else self.adversarial


def loss_of(clean, adversarial, y, **settings_):
    ours = MART(Scripted(clean, adversarial), THREAT, **settings_)
    ours.perturb = lambda batch, objective: batch.x
    return ours.training_loss(type("B", (), {"x": torch.rand(len(y), 1, 2, 2), "y": y})), ours


def test_without_beta_only_adversarial_images_count_and_the_clean_forward_has_no_gradient():
    (clean, y), (adversarial, _) = logits(), logits(seed=1)
    loss, ours = loss_of(clean, adversarial, y, beta=0.0)
    assert loss.item() == pytest.approx(boosted(adversarial, y).mean().item(), rel=1e-12)
    loss.backward()
    assert ours.network.clean.grad.abs().max() == 0
    assert ours.network.adversarial.grad.abs().max() > 0


def test_where_clean_images_are_certain_the_divergence_vanishes():
    adversarial, y = logits()
    certain = 40.0 * F.one_hot(y, 5).double()
    loss, _ = loss_of(certain, adversarial, y, beta=5.0)
    assert loss.item() == pytest.approx(boosted(adversarial, y).mean().item(), rel=1e-5)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 4))
def test_with_two_classes_the_boosted_loss_is_twice_the_cross_entropy(seed, scale):
    z, y = logits(classes=2, seed=seed, scale=scale)
    right = F.cross_entropy(z, y, reduction="none")
    bound = 1e-4 / right.neg().exp() + 1e-9  # the authors' 1e-4 beside the probability of the true class
    assert ((boosted(z, y) - 2 * right).abs() <= bound).all()


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0, 20), st.floats(0.1, 10))
def test_the_pull_is_at_most_beta_times_the_mean_divergence(seed, beta, scale):
    (clean, y), (adversarial, _) = logits(seed=seed, scale=scale), logits(seed=seed + 1, scale=scale)
    pull = loss_of(clean, adversarial, y, beta=beta)[0] - boosted(adversarial, y).mean()
    assert pull <= beta * floored_kl(clean, adversarial).mean() * 1.0000001 + 1e-9


def test_the_pull_is_whole_where_the_true_class_is_ruled_out():
    (clean, y), (adversarial, _) = logits(), logits(seed=1)
    clean = clean.scatter(1, y[:, None], -60.0)
    pull = loss_of(clean, adversarial, y, beta=5.0)[0] - boosted(adversarial, y).mean()
    assert pull.item() == pytest.approx(5 * floored_kl(clean, adversarial).mean().item(), rel=1e-6)


def test_detaching_the_doubt_is_another_method():
    case = one("mart", "resnet_script")
    norms, losses = [], []
    for detached in (False, True):
        case = one("mart", "resnet_script")
        ours = gaussian_start(case, detach_doubt=detached).double()
        ours.draws = case.draws
        step = ours.trace_step(case.batch)
        losses.append(step.loss.item())
        norms.append(gradients(ours, step.loss).norm().item())
    assert losses[0] == losses[1]
    assert norms[0] == pytest.approx(case.expected["grad_norm"], rel=1e-7)
    assert norms[1] != pytest.approx(case.expected["grad_norm"], rel=1e-4)


@settings(deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_the_order_of_the_wrong_classes_does_not_matter(seed, order):
    z, y = logits(seed=seed)
    wrong = torch.tensor([[k for k in range(5) if k != label] for label in y.tolist()])
    shuffled = z.scatter(1, wrong, z.gather(1, wrong[:, order]))
    torch.testing.assert_close(boosted(shuffled, y), boosted(z, y), rtol=1e-12, atol=1e-14)


def test_the_margin_looks_at_the_best_wrong_class_and_is_capped():
    z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 50.0]], dtype=torch.float64)
    q = z.softmax(1)
    expected = [-math.log(1.0001 - q[0, 1]), -math.log(1e-4)]
    assert margin_term(z, torch.tensor([0, 0])).tolist() == pytest.approx(expected, rel=1e-6)
    assert margin_term(z, torch.tensor([0, 0])).max() < 9.22


def test_the_floor_under_the_divergence_matters_only_where_a_probability_vanishes():
    (clean, _), (adversarial, _) = logits(scale=1.0), logits(seed=1, scale=1.0)
    torch.testing.assert_close(floored_kl(clean, adversarial), kl_divergence(clean, adversarial), rtol=0, atol=1e-9)
    clean, adversarial = torch.tensor([[0.0, 500.0]]), torch.tensor([[500.0, 0.0]])
    assert floored_kl(clean, adversarial).item() == pytest.approx(-math.log(1e-12), rel=1e-5)


def test_ten_steps_cost_twelve_forwards_and_two_updates_of_the_statistics():
    x, y = images()
    ours = method()
    with counting(ours.network) as passes:
        step = trace(ours, (x, y))
        step.loss.backward()
    assert (passes.forward, passes.backward) == (12 * len(x), 12 * len(x))  # eleven calls, one of them through two
    assert batches_seen(ours.network) == [2, 2]


def test_the_attack_climbs_the_cross_entropy_of_the_labels():
    x, y = images()
    right, wrong = (trace(method(steps=3), (x, labels)).adversarial for labels in (y, y.flip(0)))
    assert not torch.equal(right, wrong)


def test_the_loss_is_computed_in_float32_under_mixed_precision():
    model, x, y, _ = toy()
    ours = method(model.float(), steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        step = trace(ours, (x.float(), y))
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(gradients(ours, step.loss)).all()
