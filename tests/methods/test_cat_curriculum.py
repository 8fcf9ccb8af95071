"""What a faithful implementation of curriculum adversarial training must show."""

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
from attacks.randomness import uniform
from methods import PGDAT, CATCurriculum, Natural
from methods.base import Batch
from methods.curriculum.cat_curriculum import Best, lessons_at_once, longest_lesson
from methods.curriculum.quantised import Quantised, quantise
from methods.inner import Inner
from methods.recipe import Recipe
from methods.selection import KeepBest
from methods.snapshot import Snapshot
from tests.golden import assert_images, first_layer_gradient, gradient_norm, one
from tests.methods.from_golden import cat_curriculum as golden
from tests.methods.tools import (
    assert_same,
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
THREAT, K = ThreatModel("linf", 0.1), 3


def method(body=None, threat=THREAT, steps=K, **settings_):
    inner = Inner(steps=steps, step_size="2 epsilon", start="uniform", boxed=False, mode=settings_.pop("mode", "train"))
    return CATCurriculum(network() if body is None else body, threat, inner=inner, **settings_).train()


# 1, 2


def test_lesson_zero_is_standard_training_without_an_attack():
    (x, y), ours, natural = images(), method(), Natural(network(), THREAT).train()
    with counting(ours.network) as passes:
        step, expected = trace(ours, (x, y)), natural.trace_step((x, y)).loss
    assert torch.equal(step.adversarial, x)
    assert torch.equal(step.loss, expected)
    assert torch.equal(gradients(ours, step.loss), gradients(natural, expected))
    assert (passes.forward, batches_seen(ours.network)) == (24, [1, 1])


def test_without_lessons_it_never_leaves_the_first():
    ours = method(steps=0, longest=1, patience=1)
    trainer(3).fit(ours, loader(), loader(seed=2))
    assert ours.noted("lesson") == [0, 0, 0]
    assert "mark" not in ours.remarks()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_fixed_lesson_without_batch_mixing_is_pgd_training(mode):
    ours = method(batch_mixing=False, first_lesson=K, mode=mode)
    ours._factor = lambda x, steps: 1.0
    inner = replace(ours.inner, step_size="2 epsilon/3")
    pgd_at = PGDAT(network(), THREAT, inner=inner).train()
    step, expected = trace(ours, images()), trace(pgd_at, images())
    torch.testing.assert_close(step.adversarial, expected.adversarial)
    torch.testing.assert_close(step.loss, expected.loss)
    assert batches_seen(ours.network) == batches_seen(pgd_at.network)


# 3, 4, 8


def test_eight_rows_in_lesson_two_are_two_clean_two_of_one_step_and_four_of_two():
    assert method(first_lesson=2).groups(8) == [(0, slice(0, 2)), (1, slice(2, 4)), (2, slice(4, 8))]


@given(st.integers(1, 300), st.integers(0, 12))
def test_the_groups_part_the_batch_and_the_last_takes_the_rest(size, lesson):
    groups = method(steps=12, first_lesson=lesson).groups(size)
    assert [row for _, rows in groups for row in range(size)[rows]] == list(range(size))
    share = size // (lesson + 1)
    if share:
        assert [steps for steps, _ in groups] == list(range(lesson + 1))
        assert [rows.stop - rows.start for _, rows in groups[:-1]] == [share] * lesson
    else:
        assert groups == [(lesson, slice(0, size))]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_the_one_step_group_lands_on_a_corner_of_the_ball_wherever_it_has_a_gradient(seed):
    x, y = images(seed=seed)
    ours = method(first_lesson=1)
    start = ours.inner.begin(x, THREAT, ours.draws)[12:]
    body = network().train()
    point = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(body(point), y[12:], reduction="sum"), point)
    adversarial = trace(ours, (x, y)).adversarial[12:]
    corner = (x[12:] + 0.1 * slope.sign()).clamp(0, 1)
    has_one = slope != 0
    torch.testing.assert_close(adversarial[has_one], corner[has_one])
    assert has_one.float().mean() > 0.5


@pytest.mark.parametrize(("size", "lesson"), [(24, 0), (24, 3), (25, 3), (64, 7), (10, 2)])
def test_a_batch_costs_group_size_times_group_number_and_one_forward_and_backward_more(size, lesson):
    ours, (x, y) = method(steps=7, first_lesson=lesson), images(size)
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    attack = sum(steps * (rows.stop - rows.start) for steps, rows in ours.groups(size))
    assert (passes.forward, passes.backward) == (attack + size, attack + size)
    share = size // (lesson + 1)
    assert attack == sum(group * share for group in range(lesson)) + lesson * (size - lesson * share)


def test_each_group_is_attacked_alone_so_that_its_statistics_are_its_own():
    ours, seen = method(first_lesson=2), []
    ours.network.register_forward_hook(lambda module, inputs, __: seen.append((len(inputs[0]), module.training)))
    trace(ours, images(8))
    assert seen == [(2, True), (4, True), (4, True), (8, True)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_in_the_last_lesson_images_lie_in_ball_and_box_and_the_network_is_as_it_was(norm):
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 0.5)
    ours, (x, y) = method(threat=threat, first_lesson=K, mode="eval"), images()
    step = trace(ours, (x, y))
    assert threat.distance(step.adversarial, x).max() <= threat.epsilon + 1e-6
    assert 0 <= step.adversarial.min() <= step.adversarial.max() <= 1
    assert not step.adversarial.requires_grad
    assert ours.network.training
    assert batches_seen(ours.network) == [1, 1]
    again = trace(method(threat=threat, first_lesson=K, mode="eval"), (x, y))
    other = trace(method(threat=threat, first_lesson=K, mode="eval", seed=1), (x, y))
    assert torch.equal(step.adversarial, again.adversarial)
    assert not torch.equal(step.adversarial, other.adversarial)


# The random factor


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 40])
def test_the_factor_is_one_number_from_one_to_ten_over_k(steps):
    ours, found = method(), []
    for step in range(200):
        ours.draws.begin(epoch=0, step=step)
        found.append(ours._factor(torch.zeros(5, 1, 8, 8), steps))
    assert all(factor.shape == (1,) for factor in found)
    low, high = sorted((1, 10 / steps))
    assert low - 1e-6 <= min(found) <= max(found) <= high + 1e-6
    assert torch.cat(found).mean().item() == pytest.approx((low + high) / 2, abs=0.1 * (high - low) + 1e-6)


def test_every_group_of_every_batch_draws_a_factor_of_its_own():
    ours, found = method(first_lesson=K), []
    draw = ours._factor
    ours._factor = lambda x, steps: found.append(draw(x, steps)) or found[-1]
    for step in (0, 1):
        trace(ours, images(), step)
    shares = [
        (float(factor) - 1) / (10 / steps - 1) for factor, steps in zip(found, [0, 1, 2, 3] * 2, strict=True) if steps
    ]
    assert len({round(share, 5) for share in shares}) == 6


@pytest.mark.parametrize(
    ("epsilon", "steps", "low", "high"), [(0.15, 7, 0.0429, 0.0612), (8 / 255, 5, 3.2 / 255, 6.4 / 255)]
)
def test_in_the_common_track_the_step_is_a_share_of_two_epsilon(epsilon, steps, low, high):
    length = Pixels.read(CATCurriculum(network(), THREAT).inner.step_size).at(epsilon) / steps
    assert (length, length * 10 / steps) == pytest.approx((low, high), rel=2e-3)


# 5, 6: the lessons


class Scripted(pl.Callback):
    """Scripts the share of held-out images that are right, now and as the lesson began, and watches the lessons."""

    def __init__(self, right, began=(), learned=None):
        self.right, self.began, self.learned = list(right), dict(began), learned
        self.lessons, self.validated, self.started, self.momenta = [], [], [], []

    def setup(self, trainer, module, stage):
        def count(batch):
            standing_in = not all(torch.equal(a, b) for a, b in zip(self.now(module), self.live, strict=True))
            script = self.began if standing_in else self.right
            share = script[trainer.current_epoch]
            return torch.tensor([round(share * len(batch.y))] * 2)

        module.right_in_lesson = count
        module.held_out_counts = lambda batch: torch.tensor([0, 0, len(batch.y)])  # costs time, and is not looked at
        if self.learned is not None:
            note = module.note
            module.note = lambda name, value: note(
                name, torch.tensor(self.learned[trainer.current_epoch]) if name == "train_accuracy" else value
            )

    @staticmethod
    def now(module):
        return [value.clone() for value in module.network.state_dict().values()]

    def on_validation_epoch_start(self, trainer, module):
        self.live = self.now(module)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.lessons.append(module.lesson)
            self.started.append(weights(module))
            state = trainer.optimizers[0].state_dict()["state"]
            self.momenta.append({i: s["momentum_buffer"].clone() for i, s in state.items()})

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.validated.append(weights(module))
            state = trainer.optimizers[0].state_dict()["state"]
            self.kept = [*getattr(self, "kept", []), {i: s["momentum_buffer"].clone() for i, s in state.items()}]


RECIPE = Recipe(learning_rate=0.05, schedule="constant")


def lessons(right, began=(), learned=None, **settings_):
    """The lesson of each epoch, where held-out accuracies follow a script."""
    ours, script = method(recipe=RECIPE, longest=99, **settings_), Scripted(right, began, learned)
    data = loader(batch_size=24)
    trainer(len(right), script).fit(ours, data, data)
    return ours, script


def test_nine_epochs_without_improvement_do_not_end_a_lesson_and_ten_do():
    right = [0.5] * 12
    _, script = lessons(right, began={11: 0.5}, patience=10)
    assert script.lessons == [0] * 11 + [1]


def test_an_equal_accuracy_is_no_improvement_and_a_higher_one_counts_anew():
    _, script = lessons([0.25, 0.25, 0.5, 0.5, 0.5, 0.5], began={5: 1.0}, patience=2)
    assert script.lessons == [0, 0, 0, 0, 0, 1]


def test_by_default_patience_alone_decides_and_a_train_accuracy_may_be_asked_for():
    learned, right = [0.1, 0.1, 0.85, 0.9, 0.95, 0.1], [0.5] * 6
    assert lessons(right, {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}, learned, patience=1)[1].lessons[:3] == [0, 0, 1]
    _, script = lessons(right, {5: 1.0}, learned, patience=1, min_train_accuracy=0.9)
    assert script.lessons == [0, 0, 0, 0, 0, 1]


def test_after_a_change_weights_averages_and_momentum_are_those_of_the_lessons_best():
    recipe = Recipe(learning_rate=0.05, schedule="constant", average="ema", average_decay=0.5)
    ours, script = method(recipe=recipe, longest=99, patience=2), Scripted([0.25, 0.75, 0.5, 0.5, 0.5], {4: 1.0})
    trainer(5, script).fit(ours, loader(batch_size=12), loader(batch_size=24))
    assert script.lessons == [0, 0, 0, 0, 1]
    assert_same(script.started[4], script.validated[1])  # the best was the second epoch's
    assert_same(script.momenta[4], script.kept[1])
    assert not torch.equal(script.validated[3]["network.0.weight"], script.validated[1]["network.0.weight"])


def test_the_new_lesson_must_beat_the_accuracy_of_the_weights_that_it_began_with():
    _, script = lessons([0.5, 0.5, 0.625, 0.75, 0.75, 0.75], {2: 0.75, 3: 0.625, 5: 0.0}, patience=1)
    assert script.lessons == [0, 0, 1, 2, 2, 3]  # the third epoch did not, the fourth did
    assert_same(script.started[3], script.started[2])  # so that the weights went back to those


def test_a_change_leaves_the_learning_rate_to_the_schedule():
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    recipe = Recipe(learning_rate=0.1, schedule="cyclic")
    for longest in (1, 99):
        ours = method(recipe=recipe, longest=longest, patience=99)
        trainer(4, Rates()).fit(ours, loader(), loader(batch_size=24))
        assert ours.lesson == (3 if longest == 1 else 0)
    assert rates[:12] == rates[12:]
    assert len(set(rates)) > 6


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 24), min_size=8, max_size=8), st.integers(1, 3))
def test_lessons_never_go_down_and_stop_at_the_last(right, patience):
    shares = [count / 24 for count in right]
    ours, script = lessons(shares, dict(enumerate(reversed(shares))), patience=patience, steps=2)
    assert script.lessons == sorted(script.lessons)
    assert max(script.lessons) <= 2
    assert all(after - before <= 1 for before, after in pairwise(script.lessons))
    assert ours.lesson == script.lessons[-1]
    assert (ours.best is None) == (ours.lesson == 2)


def test_lesson_k_goes_on_to_the_end_of_the_training():
    _, script = lessons([0.5] * 7, dict.fromkeys(range(7), 1.0), patience=1, steps=1)
    assert script.lessons == [0, 0, 1, 1, 1, 1, 1]


def test_by_the_train_accuracy_a_lesson_ends_above_95_percent_with_the_weights_as_they_are():
    learned = [0.9, 0.95, 0.97, 0.5, 0.99, 0.99]
    ours, script = lessons([0.9, 0.1, 0.1, 0.1, 0.1, 0.1], learned=learned, policy="train_accuracy", steps=2)
    assert script.lessons == [0, 0, 0, 1, 1, 2]
    assert_same(script.started[3], script.validated[2])
    assert ours.best is None


def test_without_held_out_images_the_longest_lesson_alone_decides():
    ours = method(longest=2, patience=1)
    trainer(6).fit(ours, loader())
    assert ours.noted("lesson") == [0, 0, 1, 1, 2, 2]
    assert ours.remarks() == {"last_lesson": 2.0, "mark": "curriculum not completed"}


def test_validation_in_every_other_epoch_still_ends_lessons():
    ours = method(longest=2, patience=1)
    trainer(6, check_val_every_n_epoch=2).fit(ours, loader(), loader(seed=2))
    assert ours.noted("lesson") == [0, 0, 1, 1, 2, 2]
    assert len(ours.noted("lesson_accuracy")) == 3


def test_a_lesson_that_was_never_measured_is_not_thrown_away():
    ours, ends = method(longest=1), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            ends.append([weights(module.network), None])

        def on_train_epoch_end(self, trainer, module):
            ends[-1][1] = weights(module.network)

    trainer(4, Watch(), check_val_every_n_epoch=2).fit(ours, loader(), loader(seed=2))
    assert_same(ends[3][0], ends[2][1])  # its epoch had no validation


def test_groups_of_one_row_are_skipped_where_batchnorm_wants_two():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    ours = method(flat, first_lesson=3)
    x, y = images(7)
    assert ours.training_step((x, y), 0) is None
    assert method(flat, first_lesson=3).training_step(images(8), 0) is not None


def test_the_sanity_check_is_no_epoch_of_the_lesson():
    ours = method(longest=99)
    trainer(1, num_sanity_val_steps=2).fit(ours, loader(), loader(seed=2))
    assert ours.best.epoch == 0
    assert len(ours.noted("lesson_accuracy")) == 1
    trainer(1).validate(ours, loader(), verbose=False)
    assert ours._notes == {}


# The rules of the common track


@pytest.mark.parametrize(
    ("epochs", "last", "longest", "rise", "patience"),
    [(30, 7, 3, 1, 2), (10, 5, 1, 1, 1), (110, 10, 8, 1, 7), (10, 10, 1, 2, 1), (300, 7, 34, 1, 20)],
)
def test_the_rules_give_the_numbers_of_the_presets(epochs, last, longest, rise, patience):
    assert longest_lesson(epochs, last) == longest
    assert lessons_at_once(epochs, last) == rise
    assert method(steps=last, recipe=Recipe(epochs=epochs)).patience == patience


@pytest.mark.parametrize(
    ("epochs", "last", "expected"),
    [
        (30, 7, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3 + [7] * 9),  # 7 from epoch 22
        (10, 5, [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]),  # 5 from epoch 6
        (10, 10, [0, 2, 4, 6, 8, 10, 10, 10, 10, 10]),
    ],
)
def test_where_every_lesson_lasts_its_longest_the_last_has_a_fifth_of_the_training(epochs, last, expected):
    ours, found = method(steps=last, recipe=Recipe(epochs=epochs), policy="train_accuracy"), []
    ours._trainer = type("Alone", (), {"strategy": type("One", (), {"broadcast": staticmethod(bool)})})
    for epoch in range(epochs):
        ours.on_epoch(epoch)
        found.append(ours.lesson)
    assert found == expected
    assert found.count(last) >= epochs / 5


def test_by_default_the_attack_is_in_train_mode_from_an_unboxed_start():
    inner = CATCurriculum(network(), THREAT).inner
    assert (inner.start, inner.scale, inner.boxed, inner.mode) == ("uniform", "epsilon", False, "train")


# The lesson accuracy


def test_a_lesson_is_judged_by_its_attack_without_a_factor_in_eval_mode():
    (x, y), ours = images(48), method(first_lesson=2)
    trainer(3).fit(ours, loader(48))
    batch = Batch.of((x, y))
    before, random = batches_seen(ours.network), torch.get_rng_state()
    judged, plain = ours.train().right_in_lesson(batch).tolist()
    assert batches_seen(ours.network) == before
    assert ours.network.training
    assert torch.equal(torch.get_rng_state(), random)
    body, start = ours.network.eval(), x + 0.1 * uniform(x, range(48), ours.seed, "lesson")
    attacked = pgd(body, x, cross_entropy_with(y), THREAT, start=start, steps=2, step_size=0.1)
    assert judged == plain == int((body(attacked).argmax(1) == y).sum())


@pytest.mark.parametrize(
    ("lesson", "attacks"),
    [
        (0, [0]),
        (3, [0, 1, 2, 3]),
        (10, list(range(11))),
        (14, list(range(11))),
        (20, [*range(11), 20]),
        (30, [*range(11), 20]),
    ],
)
def test_in_the_worst_case_an_image_counts_if_it_is_right_under_all_attacks(lesson, attacks):
    assert method(steps=40, first_lesson=lesson, worst_case=True).judged_by() == attacks
    assert method(steps=40, first_lesson=lesson).judged_by() == [lesson]


def test_the_worst_case_is_no_better_than_any_lesson():
    ours, batch = method(steps=6, worst_case=True, first_lesson=6), Batch.of(images(48))
    trainer(3).fit(ours, loader(48))
    worst = ours.right_in_lesson(batch)[0]
    ours.worst_case = False
    for lesson in range(7):
        ours.lesson = lesson
        assert ours.right_in_lesson(batch)[0] >= worst


def test_standing_in_for_a_moment_leaves_every_bit():
    ours = method(recipe=Recipe(average="ema"))
    then = Snapshot({name: value.clone() for name, value in ours.state_dict().items()}, {})
    trainer(1).fit(ours, loader())
    now = weights(ours)
    with then.standing_in(ours):
        assert_same(weights(ours), then.weights)
    assert_same(weights(ours), now)
    assert not torch.equal(now["network.0.weight"], then.weights["network.0.weight"])


# Small batches


@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_batch_without_a_row_for_each_group_is_skipped(average):
    recipe = Recipe(learning_rate=0.05, schedule="constant", average=average)
    ours = method(steps=7, first_lesson=7, recipe=recipe)
    before = weights(ours.network)
    trainer(1).fit(ours, loader(7, batch_size=7))
    assert_same(weights(ours.network), before)
    alone = method(steps=7, first_lesson=7, recipe=recipe, batch_mixing=False)
    trainer(1).fit(alone, loader(7, batch_size=7))
    assert not torch.equal(alone.network[0].weight, before["0.weight"])


def test_the_last_batch_may_be_the_one_that_is_skipped():
    short, whole = (method(steps=7, first_lesson=7, recipe=RECIPE) for _ in range(2))
    trainer(1).fit(short, loader(15, batch_size=8))
    trainer(1).fit(whole, loader(8, batch_size=8))
    assert_same(weights(short.network), weights(whole.network))
    assert len(short.history) == 1


def test_on_several_devices_a_skipped_batch_has_a_gradient_of_zero_for_everyone_to_wait_for():
    ours = method(steps=7, first_lesson=7)
    ours._ranks = lambda: 2
    ours.training_step(images(7), 0).backward()
    assert all((parameter.grad == 0).all() for parameter in ours.network.parameters())
    assert batches_seen(ours.network) == [0, 0]


# 7: quantisation


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_quantisation_is_monotone_idempotent_and_has_sixteen_values(values):
    x = torch.tensor(sorted(values), dtype=torch.float64)
    q = quantise(x, 16)
    assert (q.diff() >= 0).all()
    assert torch.equal(quantise(q, 16), q)
    assert {round(value, 12) for value in q.tolist()} <= {round(level / 15, 12) for level in range(16)}
    assert ((q - x).abs() <= 1 / 16).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantisation_keeps_its_levels_and_counts_the_bounds(dtype):
    levels = torch.arange(16, dtype=dtype) / 15
    assert torch.equal(quantise(levels, 16), levels)
    assert torch.equal(quantise(torch.linspace(0, 1, 9973, dtype=dtype), 16).unique(), levels)
    bounds = torch.arange(1, 16, dtype=dtype) / 16
    assert torch.equal(quantise(bounds, 16), levels[1:])
    below = torch.nextafter(bounds, torch.zeros(()).to(dtype))
    assert torch.equal(quantise(below, 16), levels[:-1])


def test_of_the_grey_levels_of_digits_only_the_two_brightest_merge():
    greys = torch.arange(17) / 16
    assert len(quantise(greys, 16).unique()) == 16
    assert quantise(greys, 16)[-2:].tolist() == [1, 1]


def test_quantisation_has_no_gradient_and_in_front_of_a_network_that_of_the_identity():
    x = images(4)[0].requires_grad_()
    assert not quantise(x, 16).requires_grad
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    (through,) = torch.autograd.grad(Quantised(body, 16)(x).sum(), x)
    (plain,) = torch.autograd.grad(body(x).sum(), x)
    assert torch.equal(through, plain)
    assert torch.equal(Quantised(body, 16)(x), body(quantise(x, 16)))


def test_the_quantised_accuracy_of_an_attack_that_does_not_know_is_the_authors():
    case = one("cat_curriculum", "perturb_quad_k3_eval")
    s = case.settings
    ours = golden.build(one("cat_curriculum", case.name)).double()
    ours.levels = s["levels"]
    case_batch, draws = Batch(*case.batch), golden.draws(case)
    start = case_batch.x + s["epsilon"] * draws.uniform(case_batch.x)
    ours.eval()
    attacked = ours.attack(case_batch, cross_entropy_with(case_batch.y), ours.inner, ours.threat, start)
    assert_images(attacked, case.expected["x_adv"])
    assert_images(quantise(attacked, s["levels"]), case.expected["x_adv_quantized"])
    loss = F.cross_entropy(ours.classifier().eval()(attacked), case_batch.y)
    loss.backward()
    assert loss.item() == pytest.approx(case.expected["loss"], rel=1e-7)
    assert gradient_norm(ours.network) == pytest.approx(case.expected["grad_norm"], rel=1e-7)
    torch.testing.assert_close(
        first_layer_gradient(ours.network).tolist(), case.expected["grad_first_layer"], rtol=1e-7, atol=1e-9
    )


def test_levels_change_what_is_evaluated_and_not_what_is_trained():
    plain, quantised = (method(first_lesson=K, levels=levels, recipe=RECIPE) for levels in (None, 16))
    best = KeepBest()
    trainer(2).fit(plain, loader(), loader(seed=2))
    trainer(2, best).fit(quantised, loader(), loader(seed=2))
    assert_same(weights(plain.network), weights(quantised.network))
    assert plain.classifier() is plain.network
    x = images(12, seed=5)[0]
    assert torch.equal(quantised.classifier().eval()(x), quantised.network.eval()(quantise(x, 16)))
    restored = method(levels=16).classifier()
    restored.load_state_dict(best.weights)
    assert {"lesson_accuracy", "lesson_accuracy_unquantised"} <= quantised.history[-1].keys()
    assert quantised.remarks().keys() == {
        "last_lesson",
        "held_out_accuracy_with_attack_not_adapted",
        "held_out_accuracy_without_quantisation",
    }
    with counting(quantised.classifier()) as passes:
        quantised.right_in_lesson(Batch.of(images(12)))
    assert (passes.forward, passes.backward) == (12 * (K + 2), 12 * K)


# Resuming


class SaveEachEpoch(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def test_a_run_resumed_anywhere_in_its_lessons_ends_as_an_undisturbed_one(tmp_path):
    recipe = Recipe(learning_rate=0.3, schedule="cyclic", average="ema", average_decay=0.9)

    def fit(resume=None):
        ours = method(steps=2, longest=2, patience=9, recipe=recipe)
        run = trainer(5, SaveEachEpoch(tmp_path), num_sanity_val_steps=2)
        run.fit(ours, loader(), loader(batch_size=24, seed=2), ckpt_path=resume, weights_only=True)
        return ours

    undisturbed = fit()
    assert undisturbed.noted("lesson") == [0, 0, 1, 1, 2]
    for epoch in range(4):
        torch.manual_seed(99)
        resumed = fit(tmp_path / f"{epoch}.ckpt")
        assert_same(weights(undisturbed), weights(resumed))
        assert undisturbed.history == resumed.history
        assert undisturbed.lesson == resumed.lesson


def test_a_checkpoint_holds_the_lesson_and_all_of_its_best(tmp_path):
    ours = method(longest=99, patience=99)
    run = trainer(2)
    run.fit(ours, loader(), loader(seed=2))
    run.save_checkpoint(tmp_path / "two.ckpt")
    again = method()
    again.on_load_checkpoint(torch.load(tmp_path / "two.ckpt", weights_only=True))
    assert (again.lesson, again.began) == (0, 0)
    assert isinstance(again.best, Best)
    assert (again.best.epoch, again.best.accuracy) == (ours.best.epoch, ours.best.accuracy)
    assert_same(again.best.snapshot.weights, ours.best.snapshot.weights)
    for which, memory in ours.best.snapshot.optimizer.items():
        assert_same(again.best.snapshot.optimizer[which], memory)


# Settings


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"policy": "loss"}, "policy is validation or train_accuracy, but found 'loss'"),
        ({"patience": 0}, "patience is a number of epochs, 1 or more, or null for the rule, but found 0"),
        ({"longest": 0}, "longest is a number of epochs, 1 or more, or null for the rule, but found 0"),
        ({"min_train_accuracy": 90}, "min_train_accuracy lies between 0 and 1, but found 90"),
        ({"levels": 1}, "levels is 2 or more, or null for no quantisation, but found 1"),
        ({"first_lesson": 8}, r"first_lesson lies between 0 and inner.steps \(7\), but found 8"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        CATCurriculum(network(), THREAT, **changed)
