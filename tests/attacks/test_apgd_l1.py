"""Auto-PGD for L1, against the official code, closed forms, and the threat model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, margin
from attacks.apgd_l1 import APGDL1, ONE_STAGE, STAGES
from tests.attacks.test_apgd import fooled, lead_loss, margin_loss, outcomes
from tests.attacks.test_third_party import mnist, trades  # noqa: F401 - fixtures
from tests.attacks.walk import LOSSES, drawn, official, walk
from tests.attacks.walk import given as from_noise
from tests.models import Constant, curved, images, linear

BOTH = pytest.mark.parametrize("stages", [ONE_STAGE, STAGES], ids=["plain", "staged"])


def noise(n, seed=0, dtype=torch.float32):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def compared(network, x, y, threat, loss, stages):
    attack = APGDL1(
        threat, LOSSES[loss], from_noise(drawn(threat, x, seed=3)), targeted=loss == "targeted dlr", stages=stages
    )
    ours = walk(attack, network, x, y)
    ours.assert_equals(official(loss, threat, network, x, y, seed=3, staged=stages == STAGES))
    assert ours.evaluations == (103 if stages == STAGES else 101)  # a hundred steps, and the start of each stage


@BOTH
@pytest.mark.parametrize("loss", LOSSES)
def test_from_the_same_start_it_is_the_official_attack_bit_by_bit(loss, stages, digits_network):
    network, digits = digits_network
    compared(network, digits.pixels()[:64], digits.labels[:64], ThreatModel("l1", 2.0), loss, stages)


@pytest.mark.parametrize("loss", ["ce", "targeted dlr"])
def test_on_a_network_that_others_trained_it_is_the_official_attack_bit_by_bit(loss, trades, mnist):  # noqa: F811
    x, y = mnist
    compared(trades, x[:64], y[:64], ThreatModel("l1", 10.0), loss, STAGES)


def test_in_fewer_slots_than_images_the_verdicts_are_still_the_official_ones(digits_network):
    network, digits = digits_network
    x, y, threat = digits.pixels()[:32], digits.labels[:32], ThreatModel("l1", 2.0)
    found = outcomes(APGDL1(threat, LOSSES["ce"], from_noise(drawn(threat, x, seed=0))), network, x, y, slots=9)
    assert torch.equal(fooled(found, 32), ~official("ce", threat, network, x, y, seed=0, staged=True).robust)


@BOTH
def test_neither_verdicts_nor_pictures_nor_passes_depend_on_the_number_of_slots(stages):
    network, x = curved(classes=6, seed=2).double(), images(12, dtype=torch.float64)
    attack = APGDL1(ThreatModel("l1", 0.8), LOSSES["ce"], from_noise(noise(12)), iterations=20, stages=stages)
    alone, *others = (outcomes(attack, network, x, network(x).argmax(1), slots=slots) for slots in (1, 5, 30))
    assert 0 < fooled(alone, 12).sum() < 12
    for other in others:
        for job, outcome in alone.items():
            assert (outcome.forward, outcome.backward) == (other[job].forward, other[job].backward)
            if outcome.picture is not None:
                torch.testing.assert_close(outcome.picture, other[job].picture, rtol=0, atol=1e-9)


# Steps of a tenth of the radius, shared by a few pixels, leave some of it to those that are nearly as steep.
@pytest.mark.parametrize(("stages", "share"), [(ONE_STAGE, 0.75), (STAGES, 0.95)], ids=["plain", "staged"])
def test_on_a_linear_network_it_comes_near_the_largest_margin_there_is_and_never_above(stages, share):
    network, x, epsilon = linear(classes=2, dtype=torch.float64), 0.4 + 0.2 * images(16, dtype=torch.float64), 0.1
    y = network(x).argmax(1)
    attack = APGDL1(ThreatModel("l1", epsilon), margin_loss, from_noise(noise(16, dtype=x.dtype)), stages=stages)
    steepest = (network.weight[1] - network.weight[0]).abs().max()
    gained = walk(attack, network, x, y).best_value - margin(network(x), y)
    most = epsilon * steepest  # one pixel takes all, and has room for it
    assert (gained <= most + 1e-12).all()
    assert (gained >= share * most).all()


def test_on_a_linear_network_whose_pixels_reach_the_range_it_spends_on_the_next_steepest():
    network, x, epsilon = linear(classes=2, dtype=torch.float64), images(16, dtype=torch.float64), 3.0
    y = network(x).argmax(1)
    slope = (network.weight[1] - network.weight[0]).detach() * (1 - 2 * y[:, None])
    room = torch.where(slope > 0, 1 - x.flatten(1), x.flatten(1))
    order = slope.abs().argsort(1, descending=True)
    spent = room.gather(1, order).cumsum(1)
    each = (epsilon - (spent - room.gather(1, order))).clamp(min=0).minimum(room.gather(1, order))
    expected = margin(network(x), y) + (each * slope.abs().gather(1, order)).sum(1)
    attack = APGDL1(ThreatModel("l1", epsilon), margin_loss, from_noise(noise(16, dtype=x.dtype)))
    found = walk(attack, network, x, y).best_value
    assert (found <= expected + 1e-9).all()
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=2e-2)


@pytest.mark.parametrize(("times", "falls"), [(1 - 1e-6, False), (1.05, True)])
def test_on_a_linear_network_it_never_finds_what_is_not_there_and_five_percent_further_out_it_finds_it(times, falls):
    network, x = linear(dtype=torch.float64), 0.4 + 0.2 * images(2, dtype=torch.float64)
    y = network(x).argmax(1)
    radii = network._radius(x, y, float("inf"))
    for row, radius in enumerate(radii.tolist()):
        threat = ThreatModel("l1", times * radius, low=-9.0, high=9.0)
        attack = APGDL1(threat, lead_loss, from_noise(noise(1, row)), targeted=True)
        found = outcomes(attack, network, x[row : row + 1], y[row : row + 1], phases=9, slots=1)
        assert fooled(found, 1).tolist() == [falls]


def test_a_point_of_a_larger_stage_is_never_taken_for_a_success():
    network, x = linear(dtype=torch.float64), 0.4 + 0.2 * images(16, dtype=torch.float64)
    y, seen = network(x).argmax(1), []
    radius = network._radius(x, y, float("inf")).min().item()

    def loss(logits, y, target):
        seen.append((logits.argmax(1) != y).any().item())
        return margin(logits, y)

    threat = ThreatModel("l1", 0.9 * radius)
    assert walk(APGDL1(threat, loss, from_noise(noise(16))), network, x, y).robust.all()
    assert any(seen)  # the larger balls did hold such points
    assert not any(seen[-41:])


def test_a_constant_network_is_never_fooled_and_costs_every_pass():
    network, x = Constant([0.0, 1.0, 5.0, 2.0, 3.0]).eval(), images(5)
    attack = APGDL1(ThreatModel("l1", 2.0), LOSSES["dlr"], from_noise(noise(5)))
    found = outcomes(attack, network, x, torch.full((5,), 2), slots=3)
    assert [(o.picture, o.forward, o.backward) for o in found.values()] == [(None, 103, 103)] * 5


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**20),
    epsilon=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 4.0, 100.0]),
    loss=st.sampled_from(list(LOSSES)),
    stages=st.sampled_from([ONE_STAGE, STAGES, ((2.0, 0.5), (1.0, 0.5))]),
    iterations=st.integers(0, 12),
    slots=st.integers(1, 9),
    bounds=st.booleans(),
)
def test_no_picture_lies_outside_ball_or_range_and_all_of_them_fool(
    seed, epsilon, loss, stages, iterations, slots, bounds
):
    network, x, threat = curved(seed=seed % 5), images(6, seed=seed), ThreatModel("l1", epsilon)
    x = x.round() if bounds else x
    y = network(x).argmax(1)
    attack = APGDL1(threat, LOSSES[loss], from_noise(noise(6, seed)), loss == "targeted dlr", iterations, stages)
    for job, outcome in outcomes(attack, network, x, y, phases=2, slots=slots).items():
        if outcome.picture is not None:
            picture = outcome.picture[None]
            assert threat.distance(picture, x[job.row : job.row + 1]) <= epsilon * (1 + 1e-6) + 1e-6
            assert picture.min() >= 0
            assert picture.max() <= 1
            assert network(picture).argmax(1) != y[job.row]


def test_another_norm_is_refused():
    with pytest.raises(BadInput, match=r"^APGDL1 attacks within l1, but found 'linf'; for linf and l2 use APGD$"):
        APGDL1(ThreatModel("linf"), LOSSES["ce"], from_noise(noise(1)))


@pytest.mark.parametrize("stages", [(), ((1.0, 0.5), (2.0, 0.5))])
def test_stages_that_do_not_end_with_the_radius_itself_are_refused(stages):
    with pytest.raises(BadInput, match=r"^the last stage has the factor 1, the radius itself, but found \("):
        APGDL1(ThreatModel("l1"), LOSSES["ce"], from_noise(noise(1)), stages=stages)


def test_the_last_stage_gets_the_steps_that_the_others_left():
    def steps(iterations):
        return APGDL1(ThreatModel("l1"), LOSSES["ce"], from_noise(noise(1)), iterations=iterations).steps

    assert [steps(n) for n in (100, 10, 5, 1, 0)] == [(30, 30, 40), (3, 3, 4), (2, 2, 1), (1, 1, 0), (0, 0, 0)]
