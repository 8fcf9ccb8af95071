"""What a faithful implementation of adversarial logit pairing must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import towards
from attacks.pgd import pgd
from methods import ALP, Natural
from methods.recipe import Recipe
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
)

THREAT, K = ThreatModel("linf", 0.1), 3


def method(threat=THREAT, body=None, steps=K, **settings_):
    made = ALP(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def smooth():
    """Without BatchNorm, so that images do not see one another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, 3)).double()


def slopes(body, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(body.parameters()))])


@pytest.mark.parametrize("w_lp", [0.0, -1.0])
def test_without_pairing_the_gradient_is_the_mean_of_the_natural_and_the_adversarial_one(w_lp):
    x, y = images()[0].double(), images()[1]
    ours, body = method(body=smooth(), w_lp=w_lp), smooth()
    step = trace(ours, (x, y))
    natural, adversarial = (F.cross_entropy(body(part), y) for part in (x, step.adversarial))
    torch.testing.assert_close(step.loss, (natural + adversarial) / 2)
    expected = (slopes(body, natural) + slopes(body, adversarial)) / 2
    torch.testing.assert_close(gradients(ours, step.loss), expected)


@settings(max_examples=10, deadline=None)
@given(st.floats(0, 20), st.integers(0, 50))
def test_without_a_radius_both_halves_agree_and_it_is_natural_training(w_lp, seed):
    x, y = images(9, seed)
    x = x.double()
    ours, natural = method(THREAT.at(0.0), network().double(), w_lp=w_lp), Natural(network().double(), THREAT).train()
    step, expected = trace(ours, (x, y)), natural.trace_step((x, y)).loss
    assert torch.equal(step.adversarial, x)
    torch.testing.assert_close(step.loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected), rtol=1e-7, atol=1e-9)


class Fixed(nn.Module):
    """Gives the logits it was handed, the clean half first, whatever the images."""

    def __init__(self, clean, adversarial):
        super().__init__()
        self.logits = nn.Parameter(torch.cat([clean, adversarial]))

    def forward(self, x):
        return self.logits[: len(x)] + 0 * x.flatten(1).sum(1, keepdim=True)


def pairing(clean, adversarial, w_lp=0.5):
    """The pairing term that two sets of logits get."""
    x, y = images(len(clean))
    ours, told = method(body=Fixed(clean, adversarial), w_lp=w_lp), {}
    ours.note = lambda name, value: told.update({name: value})
    trace(ours, (x.double(), y))
    return told["logit_pairing"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.floats(0.01, 10), st.integers(2, 10))
def test_the_pairing_term_is_a_mean_over_images_and_classes_that_scales_with_its_weight(seed, w_lp, classes):
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = (torch.randn(6, 3 + classes, generator=generator, dtype=torch.float64) for _ in range(2))
    term = pairing(clean, adversarial, w_lp)
    summed = ((clean - adversarial) ** 2).sum(1).mean()  # over the classes
    torch.testing.assert_close(term, w_lp * summed / (3 + classes))
    torch.testing.assert_close(pairing(clean, adversarial, 2 * w_lp), 2 * term)
    constant = torch.randn(3 + classes, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pairing(clean + constant, adversarial + constant, w_lp), term)
    torch.testing.assert_close(pairing(adversarial, clean, w_lp), term)


def test_swapping_the_halves_leaves_the_loss_as_it_is():
    x, y = images()[0].double(), images()[1]
    generator = torch.Generator().manual_seed(0)
    clean, adversarial = (torch.randn(24, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    orders = (clean, adversarial), (adversarial, clean)
    torch.testing.assert_close(*(trace(method(body=Fixed(*halves)), (x, y)).loss for halves in orders))


def test_both_logits_carry_gradients():
    x, y = images()
    ours, body = method(body=smooth()), smooth()
    step = trace(ours, (x.double(), y))
    logits = body(torch.cat([x.double(), step.adversarial]))
    clean, adversarial = logits.chunk(2)
    loss = F.cross_entropy(logits, y.repeat(2)) + 0.5 * ((clean - adversarial) ** 2).mean()
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(gradients(ours, step.loss), slopes(body, loss))


def test_statistics_move_once_a_step_by_the_mixture():
    x, y = images()
    ours, by_hand = method(), network().train()
    with counting(ours.network) as passes:
        step = trace(ours, (x, y))
        step.loss.backward()
    by_hand(torch.cat([x, step.adversarial]))
    assert batches_seen(ours.network) == [1, 1]
    assert_same(statistics(ours.network), statistics(by_hand))
    assert (passes.forward, passes.backward) == ((1 + K + 2) * len(x), (K + 2) * len(x))


def test_the_true_label_needs_no_forward_to_choose_a_class():
    x, y = images()
    ours = method(label="true")
    with counting(ours.network) as passes:
        trace(ours, (x, y))
    assert passes.forward == (K + 2) * len(x)


@pytest.mark.filterwarnings("ignore")
def test_the_attack_comes_nearer_to_its_target_on_nearly_all_images():
    body, (x, y) = network(), images(48)
    trainer(4).fit(Natural(body, THREAT, recipe=Recipe(learning_rate=0.05, schedule="constant")), loader(48))
    target = body.eval()(x).argmin(1)
    adversarial = trace(method(body=body).eval(), (x, y)).adversarial
    before, after = (F.cross_entropy(body(part), target, reduction="none") for part in (x, adversarial))
    assert (after < before).float().mean() > 0.95


@pytest.mark.parametrize(("label", "same"), [("ll", True), ("predicted", True), ("random", True), ("true", False)])
def test_the_attack_does_not_look_at_the_label_unless_it_is_the_true_one(label, same):
    x, y = images()
    right, wrong = (trace(method(label=label), (x, labels)).adversarial for labels in (y, (y + 1) % 3))
    assert torch.equal(right, wrong) == same


def test_the_target_is_chosen_by_the_clean_image_once_and_for_all_steps():
    model, x, y, draws = toy()
    ours = method(body=model, steps=5)
    ours.draws = draws
    adversarial = ours.eval().trace_step((x, y)).adversarial
    start = (x + 0.1 * draws.uniform(x)).clamp(0, 1)
    climb = towards(model(x).argmin(1))
    by_hand = pgd(model, x, climb, THREAT, start=start, steps=5, step_size=0.025)
    torch.testing.assert_close(adversarial, by_hand, rtol=0, atol=1e-9)


def test_the_common_track_takes_quarter_steps_from_a_uniform_start():
    ours = ALP(network(), THREAT.at(0.15))
    assert (ours.w_lp, ours.label) == (0.5, "ll")
    inner = ours.inner
    assert (inner.step_size, inner.start, inner.scale, inner.boxed) == ("epsilon/4", "uniform", "epsilon", True)
    x, y = 0.4 + 0.2 * images()[0], images()[1]
    ours.inner = replace(inner, steps=1, start="none")
    moved = (trace(ours, (x, y)).adversarial - x).abs()
    assert moved.median().item() == pytest.approx(0.0375)


@pytest.mark.parametrize(
    ("shares", "marked"),
    [((1.0, 0.9, 0.4, 0.3, 0.3, 0.3), False), ((1.0, 0.9, 0.6, 0.3, 0.3, 0.3), True), ((), False), ((1.0,), False)],
)
def test_a_row_whose_images_share_one_target_after_the_first_third_is_marked(shares, marked):
    ours = method()
    ours.history = [{"epoch": epoch, "commonest_target": share} for epoch, share in enumerate(shares)]
    assert ("mark" in ours.remarks()) == marked


@pytest.mark.filterwarnings("ignore")
def test_the_share_of_the_commonest_target_is_logged_for_each_epoch():
    ours = method(recipe=Recipe(learning_rate=0.05))
    trainer(3).fit(ours, loader())
    assert all(1 / 3 <= line["commonest_target"] <= 1 for line in ours.history)
    assert all(line["logit_pairing"] >= 0 for line in ours.history)
    x, y = images()
    told = {}
    ours.note = lambda name, value: told.update({name: value})
    target = ours.eval().network(x).argmin(1)
    trace(ours, (x, y))
    assert told["commonest_target"].mean().item() == pytest.approx(target.bincount().max().item() / len(x))


def test_an_unknown_label_is_refused_in_a_sentence():
    with pytest.raises(BadInput, match="label is one of ll, random, predicted, true, but found 'least'"):
        method(label="least")
