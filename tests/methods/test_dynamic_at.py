"""What a faithful implementation of dynamic adversarial training must show."""

from dataclasses import replace
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.pgd import pgd
from attacks.pixels import Pixels
from methods import PGDAT, DynamicAT
from methods.curriculum.dynamic_at import fosc, scheduled_threshold
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import cases, gradient_norm, one
from tests.methods.from_golden import dynamic_at as golden
from tests.methods.tools import gradients, images, loader, network, trace, trainer
from tests.models import linear

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT, K = ThreatModel("linf", 0.2), 6
MIDDLING = 0.025  # a threshold at which images of the network below stop at all times


def method(body=None, threat=THREAT, steps=K, **settings_):
    made = DynamicAT(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def told_by(made):
    """What ``made`` notes of its next attack, image by image."""
    told = {}
    made.note = told.__setitem__
    return told


def attack(made, batch):
    told = told_by(made)
    return trace(made, batch).adversarial, told


def curve(told, steps=K):
    return torch.stack([told[f"fosc_{step}"] for step in range(1, steps + 1)], dim=1)


# 1, 2


def test_with_a_threshold_of_zero_it_is_pgd_from_the_same_start():
    ours = method(network(), c_max=0.0)
    pgd_at = PGDAT(network(), THREAT, inner=ours.inner).train()
    told = told_by(ours)
    step, expected = trace(ours, images()), trace(pgd_at, images())
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    assert (told["steps_per_image"] == K).all()


@pytest.mark.parametrize("threshold", [1e9, float("inf")])
def test_with_an_endless_threshold_it_is_one_step_of_a_quarter_epsilon_from_the_start(threshold):
    (x, y), ours = images(), method(network(), c_max=threshold)
    adversarial, told = attack(ours, (x, y))
    ours.draws.begin(epoch=0, step=0)
    start = ours.inner.begin(x, THREAT, ours.draws)
    by_hand = pgd(network().eval(), x, cross_entropy_with(y), THREAT, start=start, steps=1, step_size=0.05)
    assert torch.equal(adversarial, by_hand)
    assert (told["steps_per_image"] == 1).all()


def test_the_first_step_is_taken_even_where_the_start_has_converged():
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(body[1].weight)  # no gradient: c is 0 everywhere
    _, told = attack(method(body), images())
    assert (told["steps_per_image"] == 1).all()
    assert (curve(told) == 0).all()


# 3, 4, 5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["linf", "l2", "l1"]))
def test_c_is_never_negative_in_the_ball_and_is_the_largest_product(seed, norm):
    draw = torch.Generator().manual_seed(seed)
    x, gradient, a, b = (torch.randn(8, 1, 4, 4, generator=draw, dtype=torch.float64) for _ in range(4))
    threat = ThreatModel(norm, 0.3, low=-99.0, high=99.0)
    point, other = (threat.project(x + moved, x) for moved in (a, b))
    c = fosc(point, gradient, x, threat)
    assert (c >= -1e-12).all()
    assert (c >= ((other - point) * gradient).flatten(1).sum(1) - 1e-12).all()


def test_c_is_zero_at_the_corner_that_the_gradient_points_to():
    draw = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(8, 1, 4, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    corner = x + 0.2 * gradient.sign()
    torch.testing.assert_close(fosc(corner, gradient, x, THREAT), torch.zeros(8).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [0.03, 0.07])
def test_on_a_linear_loss_c_falls_linearly_until_the_travel_is_used_up(step):
    body, x = linear(classes=2, dtype=torch.float64), images(6)[0].double()
    y = torch.zeros(6, dtype=torch.long)
    threat = ThreatModel("linf", 0.2, low=-99.0, high=99.0)
    slope = (body.weight[1] - body.weight[0]).detach()
    seen = []

    def stationary(point, gradient):
        seen.append(fosc(point, gradient, x, threat))
        return torch.zeros(6, dtype=torch.bool)

    def climb(logits):
        return (logits @ torch.tensor([-1.0, 1.0], dtype=torch.float64)) + 0 * y

    pgd(body, x, climb, threat, start=x, steps=6, step_size=step, stationary=stationary)
    for k, c in enumerate(seen):
        expected = (0.2 - min(k * step, 0.2)) * slope.abs().sum()
        torch.testing.assert_close(c, expected.expand(6), rtol=1e-9, atol=1e-12)


@given(st.floats(0.01, 100))
def test_c_scales_with_the_loss_of_the_image(factor):
    draw = torch.Generator().manual_seed(1)
    x, gradient = (torch.randn(4, 1, 4, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    point = x + 0.1
    torch.testing.assert_close(fosc(point, factor * gradient, x, THREAT), factor * fosc(point, gradient, x, THREAT))


def test_c_does_not_depend_on_the_other_images_of_the_batch():
    x, y = images(24)
    inner = Inner(steps=K, start="none", boxed=False)
    found = []
    for rows in (slice(None), slice(0, 7)):
        made = method(network().double(), c_max=0.3, inner=inner)
        found.append(attack(made, (x.double()[rows], y[rows]))[1])
    torch.testing.assert_close(curve(found[0])[:7], curve(found[1]), rtol=1e-9, atol=1e-12)
    assert torch.equal(found[0]["steps_per_image"][:7], found[1]["steps_per_image"])


# 6


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_a_larger_threshold_never_takes_an_image_further(seed):
    x, y = images(16, seed)
    taken = [
        attack(method(network(seed=seed % 5).double(), c_max=c_max), (x.double(), y))[1]["steps_per_image"]
        for c_max in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
    ]
    assert all((more >= fewer).all() for more, fewer in pairwise(taken))


def test_an_image_that_has_stopped_keeps_every_bit_and_its_c():
    longer, told = attack(method(network(), c_max=MIDDLING), images(48))
    taken = told["steps_per_image"]
    assert len(taken.unique()) > 3
    for steps in range(1, K):
        shorter, _ = attack(method(network(), steps=steps, c_max=MIDDLING), images(48))
        stopped = taken <= steps
        assert torch.equal(shorter[stopped], longer[stopped])
        assert ((shorter != longer).flatten(1).any(1) <= ~stopped).all()
    c, last = curve(told), taken.long() - 1
    for image in range(48):
        assert (c[image, last[image] :] == c[image, last[image]]).all()
        assert (c[image, : last[image]] > MIDDLING).all()


def test_only_images_that_still_move_go_through_the_network_and_the_last_gradient_measures():
    ours, sizes = method(network(), c_max=MIDDLING), []
    told = told_by(ours)
    ours.network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    trace(ours, images(48))
    taken = told["steps_per_image"]
    assert sizes == [48, *[int((taken >= step).sum()) for step in range(1, K + 1)], 48]
    assert sizes[K] < 48


@pytest.mark.parametrize(("c_max", "gradients_"), [(0.0, K + 1), (1e9, 2)])
def test_k_steps_cost_k_and_one_gradients_and_one_step_costs_two(c_max, gradients_):
    ours = method(network(), c_max=c_max)
    with counting(ours.network) as passes:
        trace(ours, images()).loss.backward()
    assert (passes.forward, passes.backward) == ((gradients_ + 1) * 24, (gradients_ + 1) * 24)


def test_in_train_mode_the_whole_batch_goes_through_the_network_and_who_stopped_stays():
    inner, sizes = Inner(steps=K, start="uniform", boxed=False, mode="train"), []
    _, told = attack(DynamicAT(network(), THREAT, c_max=0.0, inner=inner).train(), images(48))
    ours = DynamicAT(network(), THREAT, c_max=curve(told)[:, 2].median().item(), inner=inner).train()
    ours.network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    _, told = attack(ours, images(48))
    assert len(told["steps_per_image"].unique()) > 1
    assert sizes == [48] * (K + 2)


# 7


@pytest.mark.parametrize("line", one("dynamic_at", "threshold_schedule").expected["values"], ids=str)
def test_the_threshold_falls_to_zero_over_five_sixths_of_the_training_as_in_the_authors_code(line):
    assert scheduled_threshold(0.5, line["epoch"], 120) == pytest.approx(line["threshold"], abs=1e-15)


@pytest.mark.parametrize("epochs", [10, 30, 50, 110, 120])
def test_the_threshold_is_exactly_zero_from_five_sixths_on_and_not_before(epochs):
    found = [scheduled_threshold(0.5, epoch, epochs) for epoch in range(epochs)]
    assert found[0] == 0.5
    assert [c == 0 for c in found] == [6 * epoch >= 5 * epochs for epoch in range(epochs)]
    assert found == sorted(found, reverse=True)


def test_on_the_laptop_the_threshold_is_a_fiftieth_in_the_ninth_epoch_and_zero_in_the_last():
    assert scheduled_threshold(0.5, 8, 10) == pytest.approx(0.02)
    assert scheduled_threshold(0.5, 9, 10) == 0
    assert scheduled_threshold(0.5, 24, 30) > 0
    assert scheduled_threshold(0.5, 25, 30) == 0


@pytest.mark.parametrize("end", [{"epochs": 6}, {"epochs": -1, "max_steps": 18}])
def test_in_training_the_threshold_is_that_of_the_epoch(end):
    found = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            found.append(module.present_threshold())

    end = dict(end)
    trainer(end.pop("epochs"), Watch(), **end).fit(method(steps=1), loader())
    assert found == pytest.approx([c for c in (0.5, 0.4, 0.3, 0.2, 0.1, 0.0) for _ in range(3)])


# 8


@pytest.mark.parametrize("case", cases("dynamic_at", "training_step"), ids=lambda case: case.name)
def test_the_self_weighted_loss_is_that_of_the_authors_from_the_second_epoch_on(case, monkeypatch):
    ours = golden.build(case).double()
    ours.draws, ours.loss_weighting = case.draws, "self"
    assert ours.trace_step(case.batch).loss.item() == pytest.approx(case.expected["loss"], rel=1e-7)
    monkeypatch.setattr(DynamicAT, "current_epoch", 1)
    again = golden.build(one("dynamic_at", case.name)).double()
    again.draws, again.loss_weighting = case.draws, "self"
    loss = again.trace_step(case.batch).loss
    assert loss.item() == pytest.approx(case.expected["self_weighted_loss"], rel=1e-7)


def test_no_gradient_flows_through_the_weights(monkeypatch):
    monkeypatch.setattr(DynamicAT, "current_epoch", 1)
    (x, y), ours, twin = images(), method(network(), loss_weighting="self"), network()
    step = trace(ours, (x, y))
    with torch.no_grad():
        weight = F.cross_entropy(twin.eval()(step.adversarial), y, reduction="none")
    loss = (weight * F.cross_entropy(twin.train()(step.adversarial), y, reduction="none")).mean()
    loss.backward()
    torch.testing.assert_close(step.loss, loss)
    assert gradients(ours, step.loss).norm().item() == pytest.approx(gradient_norm(twin), rel=1e-5)


def test_images_without_a_weight_do_not_count_in_the_mean(monkeypatch):
    monkeypatch.setattr(DynamicAT, "current_epoch", 1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(body[1].weight)
    body[1].bias.data = torch.tensor([200.0, 0.0])  # class 0 has a loss of exactly 0, class 1 one of 200
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 0, 1])
    assert trace(method(body, loss_weighting="self"), (x, y)).loss.item() == pytest.approx(200.0**2)


# The reading, the settings and what is told


def test_measured_from_the_start_c_may_be_negative():
    measured = {}
    for reference in ("image", "start"):
        made = method(c_max=0.0, fosc_reference=reference)
        measured[reference] = curve(attack(made, images(48))[1])
    assert measured["image"].min() >= 0
    assert not torch.allclose(measured["image"], measured["start"])
    gradient = (x := images()[0]) - 0.5
    corner, opposite = x + 0.2 * gradient.sign(), x - 0.2 * gradient.sign()
    assert (fosc(corner, gradient, opposite, THREAT) < 0).all()


def test_by_default_the_step_is_a_quarter_of_epsilon_from_an_unboxed_start_in_eval_mode():
    inner = DynamicAT(network(), THREAT).inner
    assert (inner.start, inner.scale, inner.boxed, inner.mode) == ("uniform", "epsilon", False, "eval")
    assert Pixels.read(inner.step_size).at(0.15) == pytest.approx(0.0375)
    assert Pixels.read(inner.step_size).at(8 / 255) == pytest.approx(2 / 255)


def test_history_tells_the_threshold_the_steps_and_how_far_the_attacks_converged():
    ours = method(steps=3, recipe=Recipe(epochs=6, learning_rate=0.05))
    trainer(6).fit(ours, loader(48))
    assert ours.noted("fosc_threshold") == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    last = ours.history[-1]
    assert last["steps_per_image"] == pytest.approx(3, abs=0.2)
    assert last["took_all_steps"] > 0.9
    assert min(last[f"fosc_{step}"] for step in (1, 2, 3)) > 0
    assert min(last["median_fosc_first"], last["median_fosc_last"]) > 0
    assert ours.remarks()["steps_per_image"] == pytest.approx(sum(ours.noted("steps_per_image")) / 6)


def line(threshold, one_step, all_steps):
    return {
        "fosc_threshold": threshold,
        "steps_per_image": 1.0,
        "took_one_step": one_step,
        "took_all_steps": all_steps,
    }


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([line(0.5, 0.0, 0.96), line(0.0, 0.0, 1.0)], "pgd_at under another name"),
        ([line(0.5, 0.0, 0.94), line(0.0, 0.0, 1.0)], None),
        ([line(0.5, 0.97, 0.0), line(0.0, 0.0, 1.0)], "one-step training"),
        ([line(0.5, 0.97, 0.0), line(0.1, 0.6, 0.0), line(0.0, 0.0, 1.0)], None),
    ],
)
def test_a_row_that_is_another_method_in_truth_is_marked(lines, words):
    ours = method()
    assert ours.remarks() == {}
    ours.history = lines
    mark = ours.remarks().get("mark")
    assert mark is None if words is None else mark.startswith(words)


def test_it_is_watched_for_catastrophic_overfitting_because_it_may_be_one_step_training():
    ours = method(steps=1)
    trainer(1).fit(ours, loader(), loader(seed=2))
    assert {"held_out_fgsm", "held_out_pgd10"} <= ours.history[0].keys()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"c_max": -0.1}, "c_max is 0 or more, but found -0.1"),
        ({"c_max": float("nan")}, "c_max is 0 or more, but found nan"),
        ({"loss_weighting": "own"}, "loss_weighting is none or self, but found 'own'"),
        ({"fosc_reference": "x"}, "fosc_reference is image or start, but found 'x'"),
        ({"inner": Inner(patience=1)}, "stops images by c_max: leave inner.patience null, but found 1"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        DynamicAT(network(), THREAT, **changed)
