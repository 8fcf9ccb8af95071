"""What a faithful implementation of RLFAT must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting, kl_divergence
from methods import RLFAT
from methods.chance import for_epochs
from methods.draws import Draws
from methods.generalization.rlfat import shuffle_strips
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import assert_images, cases, one
from tests.methods.from_golden import rlfat as from_golden
from tests.methods.tools import batches_seen, gradients, images, loader, network, toy, trace, trainer

THREAT = ThreatModel("linf", 0.1)


def method(body=None, threat=THREAT, steps=3, **settings_):
    made = RLFAT(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


class Blocks(Draws):
    """Cuts and orders that are given; other draws as ever."""

    def __init__(self, cuts, orders):
        super().__init__(0)
        self._given = list(cuts), list(orders)

    def integers(self, high, like, shape=None, **_):
        return torch.tensor(self._given[0].pop(0))

    def permutation(self, size, like, **_):
        return torch.tensor(self._given[1].pop(0))


def swapping(*arguments, **settings_):
    """A method whose next draw exchanges halves of both axes."""
    made = method(*arguments, **settings_)
    made.draws = Blocks([[4], [4]], [[1, 0], [1, 0]])
    return made


@pytest.mark.parametrize("case", cases("rlfat", "other"), ids=lambda case: case.name)
def test_the_block_shuffle_repeats_the_authors_cuts_and_orders(case):
    made = method(case.body)
    made.draws = from_golden.draws(case)
    made.k = len(case.record["inputs"]["rows_order"])
    x, *_ = case.batch
    shuffled = made.shuffle_blocks(x)
    assert_images(x, case.expected["input"])
    assert_images(shuffled, case.expected["output"])
    expected = torch.tensor(case.expected["output_image0_channel0"], dtype=torch.float64)
    torch.testing.assert_close(shuffled[0, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", cases("rlfat", "training_step"), ids=lambda case: case.name)
def test_the_shuffled_adversarial_images_are_the_authors(case):
    made = from_golden.build(case).double()
    made.draws = from_golden.draws(case)
    adversarial = made.trace_step(case.batch).adversarial
    made.draws = from_golden.draws(case)
    assert_images(made.shuffle_blocks(adversarial), case.expected["x_adv_rbs"])


def test_one_strip_per_axis_leaves_pgd_training_and_trades():
    batch = images()
    pgd, trades = (method(network().double(), variant=variant, k=1) for variant in "PT")
    x, y = batch[0].double(), batch[1]
    step = trace(pgd, (x, y))
    torch.testing.assert_close(step.loss, F.cross_entropy(pgd.network(step.adversarial), y))
    step = trace(trades, (x, y))
    clean, adversarial = trades.network(x), trades.network(step.adversarial)
    expected = F.cross_entropy(clean, y) + 6 * kl_divergence(clean, adversarial).mean()
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(gradients(trades, step.loss), gradients(trades, expected))


def test_without_eta_only_shuffled_adversarial_images_are_classified():
    x, y = images()
    made = swapping(eta=0.0)
    step = trace(made, (x, y))
    expected = F.cross_entropy(made.network(step.adversarial.roll((4, 4), (2, 3))), y)
    torch.testing.assert_close(step.loss, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_pixels_are_only_moved_and_can_be_moved_back(k, seed):
    draws, x = Draws(seed), torch.rand(3, 2, 8, 6)
    cuts, order = draws.integers(8, x, shape=(k - 1,)), draws.permutation(k, x)
    shuffled = shuffle_strips(x, cuts, order, 2)
    assert torch.equal(shuffled.flatten(2).sort().values, x.flatten(2).sort().values)
    lengths = torch.diff(torch.tensor([0, *sorted(cuts.tolist()), 8]))[order]
    back = shuffle_strips(shuffled, lengths.cumsum(0)[:-1], order.argsort(), 2)
    assert torch.equal(back, x)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("variant", ["P", "T"])
def test_a_draw_that_moves_nothing_has_no_transfer_term(mode, variant):
    made = method(variant=variant).train(mode == "train")
    made.draws = Blocks([[0], [5]], [[1, 0], [0, 1]])  # an empty strip swapped; strips left as they are
    trace(made, images())
    assert made._notes["transfer"][0] == 0
    assert made._notes["identity_draws"][0] == 1


def test_all_images_of_a_batch_are_shuffled_alike_and_steps_differ_but_devices_do_not():
    made, x = method(), torch.arange(64.0).reshape(1, 1, 8, 8).repeat(5, 3, 1, 1)

    def shuffled(**moment):
        made.draws.begin(**moment)
        return made.shuffle_blocks(x)

    found = [shuffled(epoch=0, step=step) for step in range(12)]
    for step, one_draw in enumerate(found):
        assert torch.equal(one_draw, one_draw[:1, :1].expand_as(one_draw))
        assert torch.equal(one_draw, shuffled(epoch=0, step=step, rank=3))
    assert len({tuple(one_draw[0, 0].flatten().tolist()) for one_draw in found}) > 6


@pytest.mark.parametrize(("size", "share"), [(8, 0.316), (28, 0.268), (32, 0.266)])
def test_as_many_draws_move_nothing_as_the_specification_counts(size, share):
    x = torch.arange(float(size**2)).reshape(1, 1, size, size)
    exact = ((size + 1) / (2 * size)) ** 2
    assert exact == pytest.approx(share, abs=5e-4)
    made, still = method(), 0
    for step in range(3000):
        made.draws.begin(epoch=0, step=step)
        still += torch.equal(made.shuffle_blocks(x), x)
    assert still / 3000 == pytest.approx(exact, abs=0.03)


def test_the_transfer_terms_gradient_flows_through_both_forwards():
    case = one("rlfat", "RLFAT_P")
    made = from_golden.build(case).double()
    made.draws = from_golden.draws(case)
    step = made.trace_step(case.batch)
    made.draws = from_golden.draws(case)
    shuffled = made.shuffle_blocks(step.adversarial)
    whole = gradients(made, step.loss)
    assert whole.norm().item() == pytest.approx(case.expected["grad_norm"], rel=1e-7)
    for stopped in ("shuffled", "intact"):
        one_side, other = made.network(shuffled), made.network(step.adversarial)
        loss = F.cross_entropy(one_side, case.batch[1])
        left, right = (one_side.detach(), other) if stopped == "shuffled" else (one_side, other.detach())
        loss = loss + made.eta * (left - right).square().sum(1).mean()
        torch.testing.assert_close(loss, step.loss)  # the same loss,
        assert gradients(made, loss).norm().item() != pytest.approx(whole.norm().item(), rel=1e-3)  # not gradient


@pytest.mark.parametrize(("variant", "forward", "backward"), [("P", 9, 9), ("T", 11, 10)])
def test_seven_steps_cost_what_the_common_track_says(variant, forward, backward):
    x, y = images()
    made = method(variant=variant, steps=7)
    with counting(made.network) as passes:
        trace(made, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (forward * len(x), backward * len(x))
    assert batches_seen(made.network) == [forward, forward]  # train mode throughout


def test_p_starts_anywhere_in_the_ball_and_t_from_noise_of_a_thirtieth_of_epsilon():
    x, _ = images()
    p, t = (method(threat=THREAT.at(0.15), variant=variant) for variant in "PT")
    start = p.inner.begin(x, p.threat, p.draws)
    assert start.min() < 0
    assert (start - x).abs().max().item() == pytest.approx(0.15, rel=0.01)
    assert (t.inner.begin(x, t.threat, t.draws) - x).std().item() == pytest.approx(0.005, rel=0.05)
    assert t.inner.full_precision
    assert (p.eta, t.eta, t.beta, p.k) == (0.5, 1.0, 6.0, 2)
    own = Inner(start="none", mode="eval")
    assert method(variant="T", inner=own, steps=own.steps).inner == own


@pytest.mark.parametrize("variant", ["P", "T"])
def test_the_common_track_steps_at_a_quarter_of_epsilon(variant):
    x, y = images()
    made = method(threat=THREAT.at(0.15), variant=variant, steps=1)
    start = made.inner.begin(x, made.threat, made.draws)
    made.draws.begin(epoch=0, step=0)
    adversarial = trace(made, (x, y)).adversarial
    inside = (adversarial > 0) & (adversarial < 1) & ((start - x).abs() < 0.1)
    assert (adversarial - start).abs()[inside].median().item() == pytest.approx(0.0375, rel=1e-3)


@pytest.mark.parametrize(("epochs", "own", "expected"), [(10, None, 0.5), (59, None, 0.5), (60, None, 0), (10, 0, 0)])
def test_eta_rises_over_the_first_half_of_short_trainings_only(epochs, own, expected):
    assert method(recipe=Recipe(epochs=epochs), ramp=own).ramp == expected


def test_eta_follows_the_share_of_training_that_is_done():
    weights, made = [], method(eta=2.0, recipe=Recipe(epochs=4), steps=0)
    present = made.present_eta
    made.present_eta = lambda: weights.append(present()) or weights[-1]
    trainer(4).fit(made, loader(16, batch_size=8))
    assert weights == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2, 2])
    assert made.remarks()["block_draws"] == 8


def test_a_row_says_that_it_collapsed_and_that_digits_are_broken_by_the_shuffle():
    made = method()
    assert made.remarks() == {"blocks": "block shuffle breaks the class on digits"}
    made.history = [{"loss_in_log_classes": value, "identity_draws": 0.25} for value in (1.5, 1.009, 0.995, 1.0, 0.4)]
    assert made.remarks() == {
        "identity_draws": 0.25,
        "mark": "collapsed",
        "blocks": "block shuffle breaks the class on digits",
    }
    assert method(toy()[0]).remarks() == {}  # three channels
    assert method(k=1).remarks() == {}


def test_logits_that_are_all_equal_have_the_loss_of_one_in_units_of_log_classes():
    body = network()
    torch.nn.init.zeros_(body[-1].weight)
    torch.nn.init.zeros_(body[-1].bias)
    for variant in "PT":
        made = method(body, variant=variant)
        trace(made, images())
        assert made._notes["loss_in_log_classes"][0].item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("held", "expected"), [("111", True), ("1101101", False), ("0111", True), ("", False), ("11", False)]
)
def test_something_that_holds_for_three_epochs_is_told(held, expected):
    assert for_epochs(letter == "1" for letter in held) is expected


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"variant": "Q"}, "variant is P or T, but found 'Q'"),
        ({"k": 0}, "k is a number of strips, 1 or more, but found 0"),
        ({"k": 2.5}, "k is a number of strips, 1 or more, but found 2.5"),
        ({"ramp": 2}, "ramp is a share of the training, between 0 and 1, or null for the rule, but found 2"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong, says):
    with pytest.raises(BadInput, match=says):
        method(**wrong)
