"""Sparse steps, projections that end on the ball, turns and shifts."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, cross_entropy_with
from attacks.moves import above_percentile, confined, largest, percentile_of, steepest, usual_pixels, without_blocked
from attacks.spatial import turned_and_shifted
from attacks.union import PerNorm, check_linf, pgd_in_any_norm
from tests.models import curved

L1 = ThreatModel("l1", 2.0)


def scene(seed=0, count=6, size=8):
    draw = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, 1, size, size, generator=draw, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    return x, torch.randn(x.shape, generator=draw, dtype=torch.float64)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from(["linf", "l2", "l1"]), st.booleans(), st.sampled_from([0.0, 0.3, 2.0]))
def test_either_order_of_ball_and_range_ends_inside_both(seed, norm, box_first, epsilon):
    x, gradient = scene(seed)
    threat = ThreatModel(norm, epsilon)
    found = confined(x + gradient, x, threat, box_first=box_first)
    assert (threat.distance(found, x) <= epsilon + 1e-12).all()
    assert (found.min() >= 0, found.max() <= 1) == (True, True)
    if box_first and norm != "linf" and epsilon == 0.3:  # what was outside ends on the sphere
        torch.testing.assert_close(
            threat.distance(found, x), torch.full((6,), 0.3, dtype=torch.float64), rtol=1e-6, atol=0
        )


def test_the_l1_projection_leaves_insiders_and_takes_outsiders_to_the_nearest_point_of_the_sphere():
    _, delta = scene(count=4, size=3)
    inside = 1.9 * delta / delta.abs().flatten(1).sum(1).view(-1, 1, 1, 1)
    assert torch.equal(L1.into_ball(inside), inside)
    mixed = torch.cat([inside[:2], delta[2:]])  # the authors' code moves all of a batch once one is outside
    assert torch.equal(L1.into_ball(mixed)[:2], inside[:2])
    for image, found in zip(delta, L1.into_ball(delta), strict=True):
        assert found.abs().sum().item() == pytest.approx(2.0, rel=1e-6)
        flat = image.flatten().numpy()

        def excess(threshold, flat=flat):
            return np.maximum(np.abs(flat) - threshold, 0).sum() - 2.0

        threshold = scipy.optimize.bisect(excess, 0, np.abs(flat).max(), xtol=1e-14)
        expected = np.sign(flat) * np.maximum(np.abs(flat) - threshold, 0)
        np.testing.assert_allclose(found.flatten().numpy(), expected, atol=1e-9)


def test_a_step_on_the_largest_entries_has_its_length_and_leaves_out_what_has_no_room():
    x, gradient = scene()
    x[0, 0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.05, 0.95, 0.05, 0.95])
    gradient[0, 0, 0] = torch.tensor([9.0, -9, 9, -9, -9, 9, 9, -9])  # the last two have room; pixels at a bound never
    step = largest(x, L1, 0.5, lambda: 5)(x, gradient) - x
    assert (step.flatten(1).ne(0).sum(1) == 5).all()
    torch.testing.assert_close(step.abs().flatten(1).sum(1), torch.full((6,), 0.5, dtype=torch.float64))
    assert step[0, 0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 0.1, -0.1])
    assert (step * gradient >= 0).all()
    inwards = largest(x, L1, 0.6, lambda: 6, hold_bounds=False)(x, gradient) - x
    assert inwards[0, 0, 0].tolist() == pytest.approx([0.1, 0, 0, -0.1, 0, 0, 0.1, -0.1])


def test_entries_that_tie_with_the_last_all_take_part_and_missing_ones_shorten_the_step():
    x = torch.full((1, 1, 2, 3), 0.5)
    tied = torch.tensor([[[[3.0, 2.0, -2.0], [2.0, 1.0, 0.0]]]])
    assert (largest(x, L1, 0.2, lambda: 2)(x, tied) - x).flatten().tolist() == pytest.approx(
        [0.1, 0.1, -0.1, 0.1, 0, 0]
    )
    few = torch.tensor([[[[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
    assert (largest(x, L1, 0.2, lambda: 4)(x, few) - x).abs().sum().item() == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("length", "between"),
    [(1.0, (5, 20)), (5 / 7, (4, 14)), (6.0, (30, 120)), (0.1, (1, 2)), (0.5, (3, 10)), (0.6, (3, 12))],
)
def test_the_number_of_pixels_lets_each_move_by_a_twentieth_to_a_fifth(length, between):
    assert usual_pixels(length) == between


@pytest.mark.parametrize(("inputs", "percentile", "entries"), [(3072, 99, 31), (3072, 98.05, 60), (784, 96.81, 25)])
def test_a_percentile_step_has_length_one_on_about_as_many_entries(inputs, percentile, entries):
    gradient = torch.randn(5, 1, 1, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.full_like(gradient, 0.5)
    step = above_percentile(x, L1, 1.0, percentile)(x, gradient) - x
    assert step.flatten(1).ne(0).sum(1).tolist() == [entries] * 5
    torch.testing.assert_close(step.abs().flatten(1).sum(1), torch.ones(5, dtype=torch.float64))
    tied = above_percentile(x, L1, 1.0, percentile)(x, gradient.sign()) - x
    assert tied.flatten(1).ne(0).all()


@given(st.integers(0, 2**31), st.floats(0, 100))
@settings(deadline=None, max_examples=25)
def test_a_percentile_is_numpys(seed, percentile):
    rows = torch.rand(4, 17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    np.testing.assert_allclose(percentile_of(rows, percentile), np.percentile(rows.numpy(), percentile, axis=1))


def test_a_gradient_that_points_out_of_a_bound_is_left_out_before_the_direction_is_taken():
    x, threat = torch.tensor([[[[0.0, 0.0, 1.0, 0.5]]]]), ThreatModel("l2", 1.0)
    seen = []
    without_blocked(lambda point, gradient: seen.append(gradient) or point, threat)(
        x, torch.tensor([[[[-1.0, 1, 1, 1]]]])
    )
    assert seen[0].flatten().tolist() == [0, 1, 0, 1]
    step = without_blocked(steepest(x, threat, 0.1), threat)(x, torch.tensor([[[[-1.0, 1, 1, 1]]]])) - x
    assert step.norm().item() == pytest.approx(0.1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_in_any_norm_fools_stays_in_its_ball_and_does_not_depend_on_the_batch(norm):
    network = curved().eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = network(x).argmax(1)
    threat = ThreatModel(norm, {"linf": 0.3, "l2": 1.5, "l1": 8.0}[norm])

    def attack(rows):
        return pgd_in_any_norm(
            network, x[rows], cross_entropy_with(y[rows]), threat,
            index=torch.arange(8)[rows].tolist(), names=(0, "a"), steps=10, step_size=threat.epsilon / 4,
        )  # fmt: skip

    whole = attack(slice(None))
    assert (threat.distance(whole, x) <= threat.epsilon * (1 + 1e-5)).all()
    torch.testing.assert_close(attack(slice(2, 3)), whole[2:3], rtol=0, atol=1e-6)
    with torch.no_grad():
        assert (network(whole).argmax(1) != y).any()


def test_radii_are_read_relative_to_the_threat_and_scaled_together():
    threat = ThreatModel("linf", 0.2)
    balls = PerNorm("epsilon/2", 0.5, None).balls(threat, 0.5)
    assert {norm: ball.epsilon for norm, ball in balls.items()} == {"linf": 0.05, "l2": 0.25}
    with pytest.raises(BadInput, match=r"radii\.l1"):
        PerNorm(l1="much").check("radii")
    with pytest.raises(BadInput, match=r"msd has balls of all norms .* but found l2"):
        check_linf("msd", ThreatModel("l2", 0.2))


def test_a_quarter_turn_is_counterclockwise_and_a_shift_goes_right_and_down():
    x, _ = scene(count=3, size=4)
    nothing = torch.zeros(3)
    torch.testing.assert_close(turned_and_shifted(x, nothing, torch.zeros(3, 2)), x)
    turned = turned_and_shifted(x, nothing + 90, torch.zeros(3, 2))
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)))
    moved = turned_and_shifted(x, nothing, torch.tensor([[1.0, 2.0]] * 3))
    torch.testing.assert_close(moved[:, :, 2:, 1:], x[:, :, :-2, :-1])
    assert (moved[:, :, :2] == 0).all()
    both = turned_and_shifted(x, nothing + 90, torch.tensor([[1.0, 0.0]] * 3))  # turned first
    torch.testing.assert_close(both[..., 1:], torch.rot90(x, 1, (2, 3))[..., :-1])
