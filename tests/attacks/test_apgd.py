"""Auto-PGD for Linf and L2, against the official code, closed forms, and the threat model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ThreatModel, margin
from attacks.apgd import APGD
from attacks.engine import Job, run
from attacks.oracle import Oracle
from tests.attacks.walk import LOSSES, drawn, official, rank, walk
from tests.attacks.walk import given as from_noise
from tests.models import Constant, curved, images, linear

THREATS = [ThreatModel("linf", 0.1), ThreatModel("l2", 0.5)]


def margin_loss(logits, y, target):
    return margin(logits, y)


def lead_loss(logits, y, target):
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def outcomes(attack, network, x, y, phases=1, slots=7):
    """Work off all phases of all images; give outcomes by image and phase."""
    found = {}
    run(
        attack,
        Oracle(network),
        x,
        y,
        range(len(x)),
        rank(network, x),
        [Job(row, phase) for phase in range(phases) for row in range(len(x))],
        slots=slots,
        done=lambda outcome: found.__setitem__(outcome.job, outcome),
    )
    return found


def fooled(found, n):
    return torch.tensor([any(o.picture is not None for job, o in found.items() if job.row == row) for row in range(n)])


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("loss", LOSSES)
def test_from_the_same_start_it_is_the_official_attack_bit_by_bit(threat, loss, digits_network):
    network, digits = digits_network
    x, y = digits.pixels()[:64], digits.labels[:64]
    attack = APGD(threat, LOSSES[loss], from_noise(drawn(threat, x, seed=3)), targeted=loss == "targeted dlr")
    ours = walk(attack, network, x, y)
    ours.assert_equals(official(loss, threat, network, x, y, seed=3))
    assert ours.evaluations == 101  # the start and a hundred steps


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_in_fewer_slots_than_images_the_verdicts_are_still_the_official_ones(threat, digits_network):
    network, digits = digits_network
    x, y = digits.pixels()[:32], digits.labels[:32]
    attack = APGD(threat, LOSSES["ce"], from_noise(drawn(threat, x, seed=0)))
    found = outcomes(attack, network, x, y, slots=9)
    assert torch.equal(fooled(found, 32), ~official("ce", threat, network, x, y, seed=0).robust)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_network_it_reaches_the_largest_margin_there_is(norm):
    network, x, epsilon = linear(classes=2, dtype=torch.float64), 0.3 + 0.4 * images(16, dtype=torch.float64), 0.1
    y, threat = network(x).argmax(1), ThreatModel(norm, epsilon)
    attack = APGD(threat, margin_loss, from_noise(images(16, seed=5, dtype=torch.float64) - 0.5))
    slope = (network.weight[1] - network.weight[0]).detach()
    dual = slope.abs().sum() if norm == "linf" else slope.norm()
    expected = margin(network(x), y) + epsilon * dual  # the range is out of reach
    # In L2 a projection divides by the length plus 1e-12.
    torch.testing.assert_close(walk(attack, network, x, y).best_value, expected.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("times", "falls"), [(1 - 1e-6, False), (1 + 1e-6, True)])
def test_on_a_linear_network_the_verdict_is_exact_on_both_sides_of_the_radius(norm, times, falls):
    network, x = linear(dtype=torch.float64), 0.4 + 0.2 * images(6, dtype=torch.float64)
    y = network(x).argmax(1)
    radii = (network.linf_radius if norm == "linf" else network.l2_radius)(x, y)
    for row, radius in enumerate(radii.tolist()):
        one, label, threat = x[row : row + 1], y[row : row + 1], ThreatModel(norm, times * radius, low=-9.0, high=9.0)
        # Nine phases, one for every wrong class; towards one class at a time a linear network has no second maximum.
        attack = APGD(threat, lead_loss, from_noise(images(1, seed=row, dtype=torch.float64) - 0.5), True, 40)
        assert fooled(outcomes(attack, network, one, label, phases=9, slots=1), 1).tolist() == [falls]


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_constant_network_is_never_fooled_and_costs_every_pass(threat, loss):
    network, x = Constant([0.0, 1.0, 5.0, 2.0, 3.0]).eval(), images(5)
    attack = APGD(threat, LOSSES[loss], from_noise(images(5) - 0.5), targeted=loss == "targeted dlr", iterations=20)
    found = outcomes(attack, network, x, torch.full((5,), 2), slots=3)
    assert {(o.picture, o.forward, o.backward) for o in found.values()} == {(None, 21, 21)}
    assert len(found) == 5


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**20),
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.sampled_from([0.0, 1e-4, 0.03, 0.3, 1.0, 4.0]),
    loss=st.sampled_from(list(LOSSES)),
    slots=st.integers(1, 9),
    bounds=st.booleans(),
)
def test_no_picture_lies_outside_ball_or_range_and_all_of_them_fool(seed, norm, epsilon, loss, slots, bounds):
    network, x, threat = curved(seed=seed % 5), images(6, seed=seed), ThreatModel(norm, epsilon)
    x = x.round() if bounds else x
    y = network(x).argmax(1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    attack = APGD(threat, LOSSES[loss], from_noise(noise), targeted=loss == "targeted dlr", iterations=12)
    for job, outcome in outcomes(attack, network, x, y, phases=2, slots=slots).items():
        if outcome.picture is not None:
            picture = outcome.picture[None]
            assert threat.distance(picture, x[job.row : job.row + 1]) <= epsilon * (1 + 1e-6) + 1e-6
            assert picture.min() >= 0
            assert picture.max() <= 1
            assert network(picture).argmax(1) != y[job.row]
