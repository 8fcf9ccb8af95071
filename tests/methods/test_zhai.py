"""What a faithful implementation of PASS must show."""

from dataclasses import replace

import pytest
import torch

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import cross_entropy_with
from methods import PGDAT, Zhai
from methods.base import Batch
from methods.inner import Inner
from methods.semi_supervised.normalised_bounds import NormalisedBounds
from methods.unlabelled import HIDDEN
from tests.methods.tools import batches_seen, gradients, images, network, statistics, trace

THREAT = ThreatModel("linf", 0.1)
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def method(body=None, threat=THREAT, steps=7, **settings):
    made = Zhai(network() if body is None else body, threat, **settings).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def batch(hidden=12):
    """24 images, the last of them unlabelled."""
    x, y = images()
    given = y.clone()
    given[24 - hidden :] = HIDDEN
    return Batch(x, given, torch.arange(24) + 100), y


class FixedStart:
    """Draws no noise, so that two batches of the same images are attacked alike."""

    def begin(self, **_): ...

    def normal(self, like, shape=None):
        return torch.zeros_like(like)


# What a faithful implementation must show


def test_without_lam_it_is_pgd_training_of_the_labelled_images():
    given, _ = batch()
    ours = method(lam=0.0)
    labelled = given.rows(given.y != HIDDEN)
    alone = method(body=network())
    ours.draws = alone.draws = FixedStart()
    step = trace_of(ours, given)
    with torch.no_grad():
        alone.network(given.x[12:])  # the pseudo-labels' forward moves the statistics first
    expected = trace_of(alone, labelled)
    assert step.loss == expected.loss
    torch.testing.assert_close(gradients(ours, step.loss), gradients(alone, expected.loss), rtol=0, atol=0)
    assert batches_seen(ours.network) == [17, 17]


def test_on_labelled_images_alone_it_is_pgd_training_in_train_mode_from_its_own_start():
    x, y = images()
    ours, pgd = method(), PGDAT(network(), THREAT, inner=replace(method().inner, start="none")).train()
    ours.draws = FixedStart()
    step, expected = trace_of(ours, (x, y)), trace_of(pgd, (x, y))
    assert torch.equal(step.adversarial, expected.adversarial)
    assert step.loss == expected.loss


def trace_of(made, given):
    return made.trace_step(given)


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_where_both_pools_are_the_same_images_and_the_guess_is_right_the_loss_is_1_plus_lam_times_as_large(lam):
    x, _ = images(12)
    body = network().double().train()
    y = body(x.double()).argmax(1)
    twice = Batch(torch.cat([x, x]).double(), torch.cat([y, torch.full_like(y, HIDDEN)]), torch.arange(24))
    ours = method(body, lam=lam)
    ours.draws = FixedStart()
    both = trace_of(ours, twice).loss.item()
    single = method(network().double())
    single.draws = FixedStart()
    assert both == pytest.approx((1 + lam) * trace_of(single, (x.double(), y)).loss.item(), rel=1e-9)


def test_hidden_labels_never_matter():
    given, y = batch()
    before = given.y.clone()
    losses = [trace(method(), given).loss for _ in (y, y.flip(0))]  # there is nowhere to put them
    assert torch.equal(*losses)
    assert torch.equal(given.y, before)


def test_the_start_lies_within_half_of_epsilon_with_a_deviation_of_a_quarter_before_it_is_cut():
    x, y = torch.full((512, 1, 8, 8), 0.5), torch.zeros(512, dtype=torch.int64)
    noise = method(steps=0).perturb(Batch(x, y, torch.arange(512)), cross_entropy_with(y)) - x
    assert noise.abs().max().item() == pytest.approx(0.05, abs=1e-6)
    assert (noise.abs() > 0.0499).float().mean().item() == pytest.approx(0.0455, abs=0.005)  # two sigma of a Gaussian
    uncut = noise[noise.abs() < 0.0499]
    assert uncut.std().item() == pytest.approx(0.88 * 0.025, rel=0.02)  # of a Gaussian cut off at two sigma


def test_the_digits_start_has_a_deviation_of_0_0375_and_is_cut_at_0_075():
    ours = method(threat=THREAT.at(0.15))
    assert ours.cut.at(0.15) == pytest.approx(0.075)
    assert Inner(**vars(ours.inner)).begin(
        torch.full((99, 1, 8, 8), 0.5), THREAT.at(0.15), ours.draws
    ).std().item() == (pytest.approx(0.0375, rel=0.03))


def test_a_step_takes_17_forwards_in_train_mode_each_of_which_moves_the_statistics():
    (given, _), modes = batch(), []
    ours = method()
    ours.network.register_forward_hook(lambda body, inputs, _: modes.append((body.training, len(inputs[0]))))
    with counting(ours.network) as passes:
        trace(ours, given).loss.backward()
    assert modes == [(True, 12)] * 17
    assert batches_seen(ours.network) == [17, 17]
    assert (passes.forward / 24, passes.backward / 24) == (7 + 1 + 0.5, 7 + 1)


def test_statistics_are_those_of_the_forwards_in_the_authors_order():
    given, _ = batch()
    seen, by_hand = [], network().train()
    ours = method(steps=2)
    ours.network.register_forward_pre_hook(lambda body, inputs: seen.append(inputs[0].detach().clone()))
    trace(ours, given)
    pools = [given.x[12:], *[given.x[:12]] * 3, *[given.x[12:]] * 3]  # the guess, then each pool's attack and loss
    assert all((one - pool).abs().max() <= 0.1 + 1e-6 for one, pool in zip(seen, pools, strict=True))
    for inputs in seen:
        by_hand(inputs)
    assert all(torch.equal(value, statistics(by_hand)[name]) for name, value in statistics(ours.network).items())


def test_pseudo_labels_are_guessed_anew_in_every_step():
    given, _ = batch()
    ours, guesses = method(lam=1.0), []
    for _ in range(2):
        trace(ours, given)
        assert torch.equal(ours.guesses.index, given.index[12:])
        guesses.append(ours.guesses.labels)
        with torch.no_grad():
            ours.network[-1].weight.neg_()
            ours.network[-1].bias.neg_()
    assert (guesses[0] != guesses[1]).float().mean() > 0.5


def test_pseudo_labels_are_those_of_the_clean_images_in_train_mode():
    given, _ = batch()
    ours, other = method(), network().train()
    trace(ours, given)
    assert torch.equal(ours.guesses.labels, other(given.x[12:]).argmax(1))


# Batches of either kind


@pytest.mark.parametrize("hidden", [0, 24])
def test_a_batch_of_one_pool_is_no_error(hidden):
    given, _ = batch(hidden)
    ours = method(lam=0.5)
    loss = trace(ours, given).loss
    loss.backward()
    assert loss.isfinite()
    assert batches_seen(ours.network) == [8 + (hidden > 0)] * 2


def test_in_mixed_precision_every_parameter_has_a_gradient():
    given, _ = batch()
    ours = method(steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = trace(ours, given).loss
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in ours.parameters())


# The common track's rules


def test_the_pools_share_a_batch_by_their_sizes_and_16_at_least_are_labelled():
    ours = method()
    sizes = [(128, 200, 1197), (128, 2000, 10_000), (128, 1000, 59_000), (64, 200, 1197)]
    assert [ours.labelled_rows(*one) for one in sizes] == [21, 26, 16, 16]
    assert ours.labelled_rows(8, 200, 1197) == 8
    assert method(least_labelled=1).labelled_rows(64, 200, 1197) == 11


def test_the_defaults_are_those_of_the_common_track():
    ours = Zhai(network(), THREAT)
    assert (ours.lam, ours.bounds, ours.inner.mode, ours.inner.step_size) == (0.1, None, "train", "epsilon/4")
    assert not Zhai.needs_teacher({})
    first, second = Zhai.references.lower
    assert (first.method, second.method, second.settings["lam"], Zhai.references.oracle) == (
        *("pgd_at", "zhai"),
        0,
        "pgd_at",
    )


# What it tells


def told(*epochs):
    ours = method()
    ours.history = [
        {"epoch": number, "pseudo_label_accuracy": 0.4, "majority_class": float(which), "majority_share": share}
        for number, (which, share) in enumerate(epochs)
    ]
    return ours.remarks()


def test_a_class_with_more_than_half_of_the_guesses_for_three_epochs_is_a_collapse():
    assert told((1, 0.6), (1, 0.6), (1, 0.51), (2, 0.1))["mark"] == "collapsed pseudo-labels"
    for epochs in ([(1, 0.6), (1, 0.6)], [(1, 0.6), (2, 0.6), (1, 0.6)], [(1, 0.6), (1, 0.5), (1, 0.6), (1, 0.6)]):
        assert "mark" not in told(*epochs)
    assert told((1, 0.3))["pseudo_label_accuracy"] == 0.4
    assert method().remarks() == {}


# The bounds of the published code


def test_in_normalised_space_dark_and_bright_pixels_are_pulled_out_of_the_ball():
    bounds = NormalisedBounds.of(MEAN, STD)
    x = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)]).double()
    given, noise = Batch(x, torch.zeros(2).long(), torch.arange(2)), torch.zeros_like(x)
    moved = bounds.climb(Inner(steps=0), colours(), given, cross_entropy_with(given.y), ThreatModel(), noise) - x
    black, white = moved.amax((2, 3)).tolist()[0], moved.amin((2, 3)).tolist()[1]
    assert black == pytest.approx([0.0449, 0.0421, 0.0028], abs=1e-4)  # -2.429, -2.418 and -2.221 against -2.207
    assert white == pytest.approx([0.0, -0.0165, -0.0482], abs=1e-4)
    assert NormalisedBounds.of(None, None) is None


def colours():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 3)).double()


def test_on_images_of_one_channel_they_are_the_bounds_in_pixels():
    given, _ = batch()
    plain, normalised = method(network().double()), method(network().double(), mean=[0.3053], std=[0.3760])
    double = given._replace(x=given.x.double())
    steps = [trace(one, double) for one in (plain, normalised)]
    torch.testing.assert_close(steps[0].adversarial, steps[1].adversarial, rtol=0, atol=1e-9)
    assert steps[0].loss.item() == pytest.approx(steps[1].loss.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lam": -0.1}, "lam is 0 or more, but found -0.1"),
        ({"least_labelled": 0}, "least_labelled is 1 or more, but found 0"),
        ({"cut": "half"}, "cut is a number in pixel units"),
        ({"mean": MEAN}, "mean and std are given together"),
        ({"mean": MEAN, "std": [1.0]}, "mean and std are given together"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**settings)


def test_the_published_bounds_are_refused_for_other_images_and_norms():
    given, _ = batch()
    with pytest.raises(BadInput, match="images with 3 channels, but found linf and 1: leave out mean and std"):
        trace(method(mean=MEAN, std=STD), given)
