"""What a faithful implementation of adversarial machine learning at scale must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.pgd import fgsm, pgd
from methods import Kurakin, Natural
from methods.base import Batch
from methods.draws import Draws
from methods.origins.kurakin import STEP_LL, truncated_normal
from methods.recipe import Recipe
from tests.golden import assert_images, cases
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

THREAT = ThreatModel("linf", 0.1)
LABELS = {"ll": "ll", "pred": "predicted", "true": "true"}  # as the golden files write them


def method(threat=THREAT, body=None, **settings_):
    return Kurakin(network() if body is None else body, threat, **settings_).train()


class Largest(Draws):
    """Draws the largest radius for every image."""

    def uniform(self, like, shape=None):
        return torch.ones(tuple(like.shape if shape is None else shape), dtype=like.dtype)


def whole(ours, x, y):
    """Attack every image, at the largest radius."""
    ours.draws = Largest()
    return ours.perturb(Batch.of((x, y)), ours.objective(x, y))


@pytest.mark.parametrize("case", cases("kurakin", "attack"), ids=lambda case: case.name)
def test_one_step_repeats_cleverhans(case):
    s, (x, y, _) = case.settings, case.batch
    threat = ThreatModel("linf", s["epsilon"])
    ours = Kurakin(case.network, threat, label=LABELS[s["label"]], attack_mode=s["attack_mode"])
    assert_images(whole(ours, x, y), case.expected["x_adv"])
    logits = case.network.eval()(x)
    chosen = {"ll": logits.argmin(1), "pred": logits.argmax(1), "true": y}[s["label"]]
    assert chosen.tolist() == case.expected["target_labels"]


def test_without_adversarial_images_it_is_natural_training():
    x, y = images()
    ours, natural = method(body=network().double(), ratio=0.0), Natural(network().double(), THREAT).train()
    step, expected = trace(ours, (x.double(), y)), natural.trace_step((x.double(), y)).loss
    assert torch.equal(step.adversarial, x.double())
    torch.testing.assert_close(step.loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected), rtol=1e-12, atol=1e-14)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 10))
def test_if_all_images_are_adversarial_their_weight_cancels(lam):
    x, y = images()
    ours = method(ratio=1.0, lam=lam)
    step = trace(ours, (x, y))
    assert not (step.adversarial == x).flatten(1).all(1).any()
    torch.testing.assert_close(step.loss, F.cross_entropy(network().train()(step.adversarial), y))


def attacked_rows(step, x):
    return (step.adversarial != x).flatten(1).any(1)


def test_without_a_weight_only_the_clean_images_count_but_in_batchnorm():
    x, y = images()
    ours, by_hand = method(lam=0.0), network().train()
    step = trace(ours, (x, y))
    clean = ~attacked_rows(step, x)
    assert clean.sum() == 12
    loss = F.cross_entropy(by_hand(step.adversarial)[clean], y[clean])
    torch.testing.assert_close(step.loss, loss)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(by_hand.parameters()))])
    torch.testing.assert_close(gradients(ours, step.loss), expected)
    assert_same(statistics(ours.network), statistics(by_hand))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 24), st.floats(0, 1), st.integers(0, 100))
def test_other_images_are_untouched_and_of_any_batch_the_ratio_is_rounded_down(count, ratio, step):
    x, y = images(count)
    ours = method(ratio=ratio).eval()  # so that a single image has logits
    made = trace(ours, (x, y), step=step)
    attacked = attacked_rows(made, x)
    assert attacked.sum() == int(ratio * count + 1e-9)
    assert torch.equal(made.adversarial[~attacked], x[~attacked])


def test_the_common_half_holds_for_an_incomplete_last_batch_too():
    ours = method()
    for count, attacked in ((24, 12), (13, 6), (2, 1)):
        x, y = images(count)
        assert attacked_rows(trace(ours, (x, y)), x).sum() == attacked
    x, y = images(1)
    assert not attacked_rows(trace(ours.eval(), (x, y)), x).any()


def test_an_image_moves_by_its_radius_at_most_and_radii_are_drawn_for_each():
    x, y = images()
    x = 0.3 + 0.4 * x
    ours, told = method(), []
    ours.note = lambda name, value: told.append(value)
    moved = (ours.perturb(Batch.of((x, y)), ours.objective(x, y)) - x).abs().flatten(1).amax(1)
    (radius,) = told
    assert len(radius.unique()) == 24
    torch.testing.assert_close(moved, radius.float(), rtol=1e-4, atol=1e-6)


def test_radii_have_the_distribution_of_a_normal_that_is_truncated_at_two_deviations():
    chance = (Draws(0).uniform(torch.empty(10_000, dtype=torch.float64)) + 1) / 2
    radii = truncated_normal(chance, 0.15)
    assert len(radii.unique()) == 10_000
    assert radii.min() >= 0
    assert radii.max() <= 0.15
    assert radii.mean().item() == pytest.approx(0.723 * 0.075, rel=0.02)
    assert radii.mean().item() == pytest.approx(0.36 * 0.15, rel=0.02)
    normal = Draws(1).normal(torch.empty(100_000, dtype=torch.float64)).abs()
    rejected = 0.075 * normal[normal <= 2]  # the equivalent recipe: drawn until it fits
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert radii.quantile(q).item() == pytest.approx(rejected.quantile(q).item(), rel=0.05)
    ends = truncated_normal(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.15)
    assert ends.tolist() == pytest.approx([0.0, 0.15])


def test_radii_and_rows_are_drawn_afresh_in_every_step():
    x, y = images()
    ours = method()
    first, second = (attacked_rows(trace(ours, (x, y), step=step), x) for step in (0, 1))
    assert not torch.equal(first, second)


def trained():
    body = network()
    trainer(4).fit(Natural(body, THREAT, recipe=Recipe(learning_rate=0.05, schedule="constant")), loader(48))
    return body.eval()


@pytest.mark.filterwarnings("ignore")
def test_the_step_goes_towards_the_least_likely_class_and_away_from_the_true_one():
    body, (x, y) = trained(), images(48)
    with torch.no_grad():
        target = body(x).argmin(1)
        made = whole(method(THREAT.at(0.01), body), x, y)
        nearer = F.cross_entropy(body(made), target, reduction="none") < F.cross_entropy(
            body(x), target, reduction="none"
        )
        assert nearer.float().mean() > 0.95
        assert F.cross_entropy(body(made), y) > F.cross_entropy(body(x), y)


def test_the_label_is_not_looked_at_unless_it_is_the_true_one():
    x, y = images()
    for label, same in (("ll", True), ("predicted", True), ("random", True), ("true", False)):
        right, wrong = (trace(method(label=label), (x, labels)).adversarial for labels in (y, (y + 1) % 3))
        assert torch.equal(right, wrong) == same, label


def test_with_the_true_label_it_is_fgsm():
    x, y = images()
    assert torch.equal(whole(method(label="true"), x, y), fgsm(network().eval(), x, y, THREAT))


def test_random_targets_are_drawn_from_all_classes_and_approached():
    model, x, y, _ = toy()
    ours, targets = method(THREAT.at(0.005), model, label="random"), []
    integers = ours.draws.integers
    ours.draws.integers = lambda *args: targets.append(integers(*args)) or targets[-1]
    adversarial = ours.perturb(Batch.of((x, y)), ours.objective(x, y))
    (target,) = targets
    assert target.unique().numel() > 3
    model.eval()
    before, after = (F.cross_entropy(model(part), target, reduction="none") for part in (x, adversarial))
    assert (after < before).all()


def test_the_iterative_attack_keeps_the_class_it_chose_first_and_travels_a_quarter_more_than_the_radius():
    model, x, y, _ = toy()
    ours = method(THREAT.at(0.06), model, steps=5)
    model.eval()
    target = model(x).argmin(1)
    by_hand = pgd(
        model,
        x,
        lambda logits: -cross_entropy_with(target)(logits),
        THREAT.at(0.06),
        start=x,
        steps=5,
        step_size=1.25 * 0.06 / 5,
    )
    torch.testing.assert_close(whole(ours, x, y), by_hand, rtol=0, atol=1e-9)


def test_a_step_has_one_training_forward_of_all_images_and_one_eval_forward_of_those_it_attacks():
    x, y = images()
    ours, seen = method(), []
    ours.network.register_forward_pre_hook(lambda body, inputs: seen.append((body.training, len(inputs[0]))))
    with counting(ours.network) as passes:
        step = trace(ours, (x, y))
        step.loss.backward()
    assert seen == [(False, 12), (True, 24)]
    assert (passes.forward, passes.backward) == (36, 36)
    assert batches_seen(ours.network) == [1, 1]
    by_hand = network().train()
    by_hand(step.adversarial)
    assert_same(statistics(ours.network), statistics(by_hand))


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 5))
def test_the_loss_is_the_weighted_mean_whatever_the_weight(lam):
    x, y = images(13)
    for weight in (lam, 2 * lam):
        step = trace(method(lam=weight), (x, y))
        attacked = attacked_rows(step, x)
        losses = F.cross_entropy(network().train()(step.adversarial), y, reduction="none")
        expected = (losses[~attacked].sum() + weight * losses[attacked].sum()) / (7 + weight * 6)
        torch.testing.assert_close(step.loss, expected)


def test_the_common_track_has_half_the_batch_and_radii_up_to_epsilon():
    x, y = images()
    ours, told = method(THREAT.at(0.15)), []
    ours.note = lambda name, value: told.append(value)
    assert (ours.ratio, ours.lam, ours.eps_max, ours.label) == (0.5, 0.3, "epsilon", "ll")
    assert (ours.inner.steps, ours.inner.mode) == (1, "eval")
    for step in range(200):
        ours.draws.begin(epoch=0, step=step)
        ours.perturb(Batch.of((x, y)), ours.objective(x, y))
    radii = torch.cat(told)
    assert radii.max() <= 0.15
    assert radii.mean().item() == pytest.approx(0.054, abs=0.002)


def test_the_variant_trains_up_to_twice_the_epsilon():
    x, y = 0.4 + 0.2 * images()[0], images()[1]
    moved = (whole(method(eps_max="2 epsilon"), x, y) - x).abs()
    assert moved.max().item() == pytest.approx(0.2)


@pytest.mark.filterwarnings("ignore")
def test_the_row_shows_accuracy_under_its_own_step_and_how_little_adversarial_images_weigh():
    ours = method(recipe=Recipe(learning_rate=0.05))
    trainer(3).fit(ours, loader(), loader(21, seed=2))
    ours.network.eval()
    x, y = images(21, seed=2)
    right = (ours.network(whole(ours, x, y)).argmax(1) == y).double().mean().item()
    assert ours.history[-1][STEP_LL] == pytest.approx(right)
    told = ours.remarks()
    assert told["variant"] == "step l.l. with radii up to epsilon"
    assert told["reminder"] == "adversarial images have 23 % of the weight"
    assert told["step_ll_accuracy_on_held_out_images_in_the_last_epoch"] == pytest.approx(right)
    assert told["radius_mean"] == pytest.approx(0.036, rel=0.2)


def test_variants_are_told_apart_before_anything_was_trained():
    told = method(label="random", steps=4, eps_max="2 epsilon", ratio=0.25, lam=1).remarks()
    assert told == {
        "variant": "iterative rnd. with radii up to 2 epsilon",
        "reminder": "adversarial images have 25 % of the weight",
    }


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"ratio": 1.5}, "ratio lies between 0 and 1, but found 1.5"),
        ({"lam": -1.0}, "lam is 0 or more, .* but found -1.0"),
        ({"lam": 0.0, "ratio": 1.0}, "above 0 where all images are adversarial, but found 0.0"),
        ({"eps_max": "2 eps"}, "eps_max is .* but found '2 eps'"),
        ({"label": "least"}, "label is one of ll, random, predicted, true, but found 'least'"),
        ({"steps": 0}, "steps is 1 or more, but found 0"),
        ({"attack_mode": "test"}, "attack_mode is one of eval, train, batch, but found 'test'"),
    ],
)
def test_a_silly_setting_is_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**wrong)
