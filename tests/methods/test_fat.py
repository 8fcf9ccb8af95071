"""What a faithful implementation of friendly adversarial training must show."""

from copy import deepcopy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting
from attacks.pixels import Pixels
from methods import FAT, MART, PGDAT, TRADES, Natural
from methods.curriculum.fat import scheduled_tau
from methods.inner import Inner
from tests.golden import cases
from tests.methods.from_golden.fat import build as golden_fat
from tests.methods.tools import (
    assert_same,
    gradients,
    images,
    loader,
    network,
    statistics,
    toy,
    trace,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT, K = ThreatModel("linf", 0.2), 6
GAUSSIAN = Inner(steps=K, step_size="0.007/0.031 epsilon", start="gaussian", scale=1e-3, mode="eval")


@pytest.fixture(scope="module")
def trained():
    """Makes a network that is right about most images and can be fooled about them, so that images stop at all times.

    A new one each time, because a training forward moves running statistics, with which the next attack would differ.
    """
    body = network()
    trainer(4).fit(Natural(body, THREAT), loader(48))
    return lambda: deepcopy(body)


def method(body=None, threat=THREAT, steps=K, omega=0.0, **settings_):
    made = FAT(network() if body is None else body, threat, omega=omega, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def steps_of(made):
    """Let ``made`` tell how many steps each image took, call by call."""
    told = []
    made.note = lambda name, value: told.append(value) if name == "bp_average" else None
    return told


def wrong(body, x, y):
    with torch.no_grad():
        return body.eval()(x).argmax(1) != y


@pytest.mark.parametrize("case", cases("fat", "training_step"), ids=lambda case: case.name)
def test_as_many_images_take_a_step_as_in_the_authors_code(case):
    ours = golden_fat(case).double()
    ours.draws, told = case.draws, steps_of(ours)
    ours.trace_step(case.batch)
    assert told[0].sum() == case.expected["gradient_sample_count"]


@pytest.mark.parametrize("tau", [K, K + 3])
def test_with_a_tau_of_all_steps_and_no_noise_it_is_pgd_from_the_same_start(trained, tau):
    ours = method(trained(), tau=tau)
    pgd_at = PGDAT(trained(), THREAT, inner=ours.inner).train()
    step, expected = trace(ours, images()), trace(pgd_at, images())
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)


def test_with_tau_zero_whoever_stopped_early_is_misclassified_and_the_others_took_every_step(trained):
    x, y = images(48)
    ours = method(trained(), tau=0)
    told = steps_of(ours)
    adversarial = trace(ours, (x, y)).adversarial
    early = told[0] < K
    assert 10 < early.sum() < 48
    assert len(told[0].unique()) > 2
    assert wrong(trained(), adversarial, y)[early].all()


def test_with_tau_zero_and_no_start_misclassified_images_are_trained_on_as_they_are(trained):
    x, y = images(48)
    y[:8] = (y[:8] + 1) % 3
    ours = method(trained(), tau=0)
    ours.inner = replace(ours.inner, start="none")
    adversarial, at_once = trace(ours, (x, y)).adversarial, wrong(trained(), x, y)
    assert torch.equal(adversarial[at_once], x[at_once])
    assert ((adversarial != x).flatten(1).any(1) == ~at_once).all()


def test_tau_counts_steps_from_misclassified_points_and_the_counter_never_refills():
    class Scripted(torch.nn.Module):
        """Is right (1) or wrong (0) about its only image by the script, call by call."""

        def __init__(self, script):
            super().__init__()
            self.script, self.weight = iter(script), torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            right = next(self.script, 0)
            return torch.tensor([[float(right), 0.5]]) + self.weight * x.mean()

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    for tau, script, steps in (
        (0, [1, 1, 0], 2),
        (1, [1, 0, 1, 1, 0], 4),  # stops at its second misclassification, though it was right in between
        (2, [0, 0, 0], 2),
        (2, [0, 1, 0, 1, 1, 1], 6),  # never used up
        (0, [1, 1, 1, 1, 1, 1], 6),
    ):
        ours = method(Scripted(script), tau=tau)
        told = steps_of(ours)
        trace(ours, (x, y))
        assert told[0].tolist() == [steps], (tau, script)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4))
def test_more_images_take_a_step_with_a_larger_tau_and_all_of_them_with_tau_k(seed, body_seed):
    x, y = images(16, seed)
    counts = []
    for tau in range(K + 2):
        ours = method(network(seed=body_seed), tau=tau)
        told = steps_of(ours)
        trace(ours, (x, y))
        counts.append(int(told[0].sum()))
    assert counts == sorted(counts)
    assert counts[-2:] == [16 * K, 16 * K]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, K), st.sampled_from(["ce", "trades", "mart"]), st.floats(0, 0.2))
def test_images_lie_in_ball_and_box_and_stay_beside_their_labels(seed, tau, loss, omega):
    x, y = images(16, seed)
    threat = ThreatModel("linf", 0.03)
    step = trace(method(threat=threat, tau=tau, loss=loss, omega=omega), (x, y))
    assert threat.distance(step.adversarial, x).max() <= 0.03 + 1e-6
    assert step.adversarial.min() >= 0
    assert step.adversarial.max() <= 1


def test_a_batch_in_another_order_has_the_same_images_in_that_order(trained):
    x, y = images(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    x, traces = x.double(), []
    for rows in (slice(None), order):
        ours = method(trained().double(), tau=1)
        ours.inner = replace(ours.inner, start="none")
        traces.append(trace(ours, (x[rows], y[rows])))
    straight, shuffled = traces
    torch.testing.assert_close(shuffled.adversarial, straight.adversarial[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(shuffled.loss, straight.loss)


def test_with_the_loss_and_start_of_trades_and_a_tau_of_all_steps_it_is_trades(trained):
    ours = method(trained(), loss="trades", tau=K)
    trades = TRADES(trained(), THREAT, inner=ours.inner).train()
    step, expected = trace(ours, images()), trace(trades, images())
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    assert_same(statistics(ours.network), statistics(trades.network))  # clean forward first, then the adversarial one
    torch.testing.assert_close(gradients(ours, step.loss), gradients(trades, expected.loss))


def test_with_the_loss_and_start_of_mart_and_a_tau_of_all_steps_it_is_mart(trained):
    ours = method(trained(), loss="mart", tau=K)
    mart = MART(trained(), THREAT, beta=6.0, inner=ours.inner).train()
    step, expected = trace(ours, images()), trace(mart, images())
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(mart, expected.loss))


def test_without_beta_the_loss_of_trades_is_natural_training(trained):
    ours, natural = method(trained(), loss="trades", tau=1, beta=0.0), Natural(trained(), THREAT).train()
    step, expected = trace(ours, images()), natural.trace_step(images()).loss
    assert torch.equal(step.loss, expected)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected))


def test_the_outer_loss_is_the_mean_cross_entropy_of_the_friendly_images_in_train_mode(trained):
    x, y = images()
    step = trace(method(trained(), tau=0), (x, y))
    assert step.loss.item() == pytest.approx(F.cross_entropy(trained().train()(step.adversarial), y).item(), rel=1e-6)


@pytest.mark.parametrize(("loss", "inputs"), [("ce", "a"), ("trades", "ca"), ("mart", "ac")])
def test_running_statistics_move_with_the_training_forwards_alone_in_the_authors_order(trained, loss, inputs):
    x, y = images()
    ours, by_hand = method(trained(), loss=loss, tau=1), trained().train()
    step = trace(ours, (x, y))
    for image in inputs:
        by_hand(step.adversarial if image == "a" else x)
    assert_same(statistics(ours.network), statistics(by_hand))


def test_friendly_images_are_less_harmful_than_those_of_pgd_on_average(trained):
    x, y = images(48)
    losses = []
    for tau in (0, 1, 2, K):
        adversarial = trace(method(trained(), tau=tau), (x, y)).adversarial
        with torch.no_grad():
            losses.append(F.cross_entropy(trained().eval()(adversarial), y).item())
    assert losses[0] < losses[-1]
    assert losses == sorted(losses)


# Cost


@pytest.mark.parametrize(("loss", "forward", "backward"), [("ce", 1, 1), ("trades", 3, 2), ("mart", 2, 2)])
def test_the_attack_costs_at_most_k_passes_each_way_and_fewer_where_images_stop(trained, loss, forward, backward):
    x, y = images(48)
    for tau in (0, K):
        ours = method(trained(), loss=loss, tau=tau)
        with counting(ours.network) as passes:
            trace(ours, (x, y)).loss.backward()
        found = (passes.forward / 48 - forward, passes.backward / 48 - backward)
        assert found == (K, K) if tau == K else max(found) < K


def test_only_images_that_still_move_go_through_the_network(trained):
    x, y = images(48)
    ours, sizes = method(trained(), tau=0), []
    told = steps_of(ours)
    ours.network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    trace(ours, (x, y))
    active = [48] + [int((told[0] >= step).sum()) for step in range(1, K)]
    assert sizes == [*active, 48]
    assert active[-1] < 48


def test_history_tells_steps_per_image_and_who_took_none(trained):
    ours, twin = (method(trained(), tau=0) for _ in range(2))
    told = steps_of(twin)
    for each in (ours, twin):
        trace(each, images())
    notes = {name: values[0].item() for name, values in ours._notes.items()}
    assert notes["bp_average"] == pytest.approx(told[0].mean().item())
    assert notes["took_no_step"] == pytest.approx((told[0] == 0).float().mean().item())
    fitted = FAT(network(), THREAT)
    trainer(5).fit(fitted, loader())
    assert [line["took_no_step"] for line in fitted.history[2:]] == [0, 0, 0]  # with tau 1 or more everyone moves
    assert 0 < fitted.history[0]["took_no_step"] <= 1
    assert 0 < fitted.history[0]["bp_average"] < fitted.history[4]["bp_average"] <= 10


# tau


@pytest.mark.parametrize(
    ("loss", "epochs", "rises"),
    [
        ("ce", 120, (50, 90)),
        ("ce", 30, (12, 22)),
        ("ce", 10, (4, 7)),
        ("trades", 85, (30, 50, 70)),
        ("trades", 30, (10, 17, 24)),
        ("trades", 10, (3, 5, 8)),
        ("mart", 85, (20, 40, 60, 80)),
    ],
)
def test_tau_rises_after_fixed_fractions_of_the_training(loss, epochs, rises):
    expected = [sum(epoch > rise for rise in rises) for epoch in range(1, epochs + 1)]
    assert [scheduled_tau(loss, epoch, epochs) for epoch in range(1, epochs + 1)] == expected


@pytest.mark.parametrize("end", [{"epochs": 10}, {"epochs": -1, "max_steps": 30}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_training_tau_is_that_of_the_epoch(end, accumulate):
    found = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            found.append(module.present_tau())

    end = {**end, "max_steps": 20} if "max_steps" in end and accumulate == 2 else dict(end)
    epochs = end.pop("epochs")
    trainer(epochs, Watch(), accumulate_grad_batches=accumulate, **end).fit(method(steps=1), loader())
    assert found == [0] * 12 + [1] * 9 + [2] * 9  # ten epochs of three batches


def test_a_fixed_tau_is_the_same_from_the_first_epoch_to_the_last():
    found = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            found.append(module.present_tau())

    trainer(3, Watch()).fit(method(tau=4, steps=1), loader())
    assert found == [4, 4, 4]


# Noise


def test_noise_of_a_seventh_of_the_step_is_added_inside_the_step_and_then_projected():
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    torch.nn.init.zeros_(flat[1].weight)  # no gradient, no sign: only the noise moves
    x, y = torch.full((40, 1, 8, 8), 0.5, dtype=torch.float64), torch.zeros(40, dtype=torch.long)
    ours = FAT(flat.double(), ThreatModel("linf", 0.15), tau=1, inner=Inner(steps=1, start="none"))
    moved = trace(ours, (x, y)).adversarial - x
    assert moved.std().item() == pytest.approx(0.15 / 31, rel=0.02)
    ours.omega = 1.0
    assert trace(ours, (x, y)).adversarial.sub(x).abs().max() == pytest.approx(0.15)


def test_noise_makes_another_image_even_with_a_tau_of_all_steps(trained):
    quiet, noisy = (trace(method(trained(), tau=K, omega=omega), images()).adversarial for omega in (0.0, 0.002))
    assert not torch.equal(quiet, noisy)
    assert (quiet - noisy).abs().median() < 0.01


@pytest.mark.parametrize(("epsilon", "step", "omega"), [(0.15, 0.0339, 0.00484), (8 / 255, 0.00708, 0.00101)])
def test_in_the_common_track_step_and_noise_are_fractions_of_epsilon(epsilon, step, omega):
    ours = FAT(network(), ThreatModel("linf", epsilon))
    assert Pixels.read(ours.inner.step_size).at(epsilon) == pytest.approx(step, rel=2e-3)
    assert Pixels.read(ours.omega).at(epsilon) == pytest.approx(omega, rel=2e-3)


# Settings


@pytest.mark.parametrize("loss", ["trades", "mart"])
def test_the_other_losses_bring_their_start_and_no_noise_unless_told_otherwise(loss):
    ours = FAT(network(), THREAT, loss=loss)
    assert (ours.inner.start, ours.inner.scale, ours.inner.boxed, ours.omega, ours.beta) == (
        *("gaussian", 1e-3, True, 0.0),
        6.0,
    )
    assert ours.inner.step_size == "0.007/0.031 epsilon"
    own = FAT(network(), THREAT, loss=loss, omega="epsilon/9", inner=Inner(start="uniform", scale="epsilon/2"))
    assert (own.inner.start, own.inner.scale, own.omega) == ("uniform", "epsilon/2", "epsilon/9")


def test_the_attack_of_the_trades_loss_climbs_the_divergence_and_sees_labels_in_the_stop_alone(trained):
    x, y = images()
    never = {"tau": K, "inner": GAUSSIAN}
    right, other = (trace(method(trained(), loss="trades", **never), (x, labels)) for labels in (y, y.flip(0)))
    assert torch.equal(right.adversarial, other.adversarial)
    stopped = trace(method(trained(), loss="trades", tau=0, inner=GAUSSIAN), (x, y.flip(0)))
    assert not torch.equal(stopped.adversarial, other.adversarial)


def test_mixed_precision_stays_out_of_the_attack_on_the_divergence(trained):
    plain = trace(method(trained(), loss="trades", tau=1), images())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trace(method(trained(), loss="trades", tau=1), images())
    assert torch.equal(plain.adversarial, mixed.adversarial)
    assert mixed.loss.dtype == torch.float32


def test_under_mixed_precision_images_stop_as_well():
    model, x, y, _ = toy()
    ours = method(model.float(), tau=0)
    told = steps_of(ours)
    with torch.autocast("cpu", torch.bfloat16):
        step = trace(ours, (x.float(), y))
    assert told[0].sum() < K * len(x)
    assert torch.isfinite(gradients(ours, step.loss)).all()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tau": -1}, "tau is a number of steps, 0 or more, or null for the schedule, but found -1"),
        ({"tau": False}, "tau is a number of steps, .* but found False"),
        ({"tau": "False"}, "tau is a number of steps, .* but found 'False'"),
        ({"tau": 1.5}, "tau is a number of steps, .* but found 1.5"),
        ({"loss": "kl"}, "loss is one of ce, trades, mart, but found 'kl'"),
        ({"omega": "big"}, "omega is a number in pixel units .* but found 'big'"),
        ({"inner": Inner(patience=1)}, "fat stops images by tau: leave inner.patience null, but found 1"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        FAT(network(), THREAT, **changed)


def test_the_row_tells_the_steps_per_image_of_the_whole_training():
    ours = method(tau=0)
    assert ours.remarks() == {}
    ours.history = [{"bp_average": 1.0, "took_no_step": 0.5}, {"bp_average": 4.0, "took_no_step": 0.1}]
    assert ours.remarks() == pytest.approx({"bp_average": 2.5, "took_no_step": 0.3})
