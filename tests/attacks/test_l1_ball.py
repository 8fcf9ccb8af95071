"""The projection onto L1 ball and range at once: optimal, inside, and the official one's numbers."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import L1_projection

from attacks import ThreatModel
from attacks.l1_ball import correction, project, tidied

seeds = st.integers(0, 2**31)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
scales = st.sampled_from([1e-3, 0.05, 0.3, 1.0, 10.0])
radii = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 5.0, 1e4])


def scene(seed, shape, scale, dtype=torch.float32, low=0.0, high=1.0):
    """Images with many pixels on the range's ends, and moves of which many are zero and some equal."""
    draw = torch.Generator().manual_seed(seed)

    def uniform():
        return torch.rand(shape, generator=draw, dtype=torch.float64)

    x, y = uniform(), scale * torch.randn(shape, generator=draw, dtype=torch.float64)
    x = torch.where(uniform() < 0.4, x.round(), x)
    y = torch.where(uniform() < uniform().mean(), 0.0, y)
    y = torch.where(uniform() < 0.2, scale * y.sign(), y)
    x = (low + (high - low) * x).to(dtype)
    return x, x + y.to(dtype)


def by_bisection(moved, x, radius, low=0.0, high=1.0):
    """Proposition 2.1 in float64, its threshold found by halving an interval two hundred times."""
    x, moved, radius = x.double().flatten(1), moved.double().flatten(1), torch.as_tensor(radius, dtype=torch.float64)
    y = moved - x
    room = torch.where(y > 0, high - x, x - low)

    def cut(threshold):
        return torch.minimum((y.abs() - threshold[:, None]).clamp(min=0), room)

    below, above = torch.zeros(len(x), dtype=torch.float64), y.abs().amax(1)
    for _ in range(200):
        middle = (below + above) / 2
        far = cut(middle).sum(1) > radius
        below, above = torch.where(far, middle, below), torch.where(far, above, middle)
    inside = cut(torch.zeros_like(below)).sum(1) <= radius
    return x + y.sign() * cut(torch.where(inside, 0.0, above))


@settings(deadline=None, max_examples=200)
@given(seeds, shapes, scales, radii)
def test_the_correction_is_the_official_one_bit_by_bit(seed, shape, scale, radius):
    x, moved = scene(seed, shape, scale)
    delta = moved - x
    official = L1_projection(x, delta, radius)
    ours = correction(x, delta, torch.full((len(x),), radius), ThreatModel("l1", radius))
    # Where the range cuts off nearly all pixels the official code may miss the segment, and find no nearest point.
    rows = ((moved >= 0) & (moved <= 1)).flatten(1).sum(1) > 1
    rows &= official.isfinite().flatten(1).all(1)  # of radius 0 it may divide by zero
    assert torch.equal(ours[rows], official[rows])


@settings(deadline=None, max_examples=200)
@given(seeds, shapes, scales, radii, st.sampled_from([(0.0, 1.0), (-2.0, 0.5)]))
def test_it_is_the_nearest_point_as_bisection_finds_it(seed, shape, scale, radius, bounds):
    low, high = bounds
    threat = ThreatModel("l1", radius, low, high)
    x, moved = scene(seed, shape, scale, torch.float64, low, high)
    expected = by_bisection(moved, x, radius, low, high).view_as(x)
    torch.testing.assert_close(project(moved, x, threat), expected, rtol=0, atol=1e-12 * (1 + scale))
    single = project(moved.float(), x.float(), threat).double()
    # The sum of the moves is rounded, and one pixel may have to bear it.
    torch.testing.assert_close(
        single, expected, rtol=0, atol=1e-6 + 2e-7 * (moved - x).abs().flatten(1).sum(1).max().item()
    )


@settings(deadline=None, max_examples=100)
@given(seeds, scales)
def test_no_point_of_ball_and_range_lies_on_its_far_side(seed, scale):
    # What makes a point the nearest of a convex set: (moved - nearest) . (other - nearest) <= 0 for all others.
    threat = ThreatModel("l1", 1.5)
    x, moved = scene(seed, (1, 1, 5, 5), scale, torch.float64)
    nearest = project(moved, x, threat)
    others = x + 3 * torch.randn(400, 1, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    others = others.clamp(0, 1) - x
    others = x + 1.5 * others / others.abs().flatten(1).sum(1).clamp(min=1.5)[:, None, None, None]
    assert (threat.distance(others, x.expand_as(others)) <= 1.5 + 1e-9).all()
    assert (((moved - nearest) * (others - nearest)).flatten(1).sum(1) <= 1e-9 * (1 + scale)).all()


@settings(deadline=None, max_examples=200)
@given(seeds, st.sampled_from([(3, 1, 8, 8), (4, 1, 28, 28), (2, 3, 32, 32)]), scales, radii)
def test_it_lies_in_ball_and_range_in_float32_too(seed, shape, scale, radius):
    x, moved = scene(seed, shape, scale)
    threat = ThreatModel("l1", radius)
    found = project(moved, x, threat)
    assert (threat.distance(found, x) <= radius * (1 + 5e-7)).all()
    assert found.min() >= 0
    assert found.max() <= 1


@settings(deadline=None, max_examples=100)
@given(seeds, st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
@example(836, 0.0)
def test_rounding_beyond_ball_and_range_is_taken_back_and_nothing_else(seed, radius):
    x, moved = scene(seed, (3, 3, 16, 16), 1.0)
    threat = ThreatModel("l1", radius)
    inside = project(moved, x, threat)
    nudged = inside + 2e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    found = tidied(nudged, x, threat)
    assert (threat.distance(found, x) <= radius * (1 + 2e-6)).all()
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found, inside, rtol=0, atol=2e-4)
    assert torch.equal(tidied(inside, x, threat), inside)


@settings(deadline=None, max_examples=50)
@given(seeds, scales)
def test_what_is_inside_stays_where_it_is(seed, scale):
    x, moved = scene(seed, (4, 1, 6, 6), scale)
    inside = moved.clamp(0, 1)
    torch.testing.assert_close(project(inside, x, ThreatModel("l1", 1e4)), inside, rtol=0, atol=1e-7)
    torch.testing.assert_close(project(moved, x, ThreatModel("l1", 1e4)), inside, rtol=0, atol=2e-7 * (1 + scale))


def test_each_image_has_its_own_radius_and_the_others_do_not_matter():
    threat, radius = ThreatModel("l1", 99.0), torch.tensor([0.0, 0.3, 2.0, 50.0])
    x, moved = scene(7, (4, 1, 8, 8), 1.0)
    together = project(moved, x, threat, radius)
    for row in range(4):
        alone = project(moved[row : row + 1], x[row : row + 1], threat.at(radius[row].item()))
        assert torch.equal(together[row : row + 1], alone)
    whole = threat.distance(moved.clamp(0, 1), x)
    assert whole.min() > 2
    torch.testing.assert_close(threat.distance(together, x), torch.minimum(radius, whole))


def test_it_spends_on_other_pixels_what_the_range_cuts_off():
    # Ball, then range: (0.5, 0.5) in the ball becomes (0.1, 0.5). Both at once: the first has 0.1, so 0.9 are left.
    x, moved, threat = torch.tensor([[[[0.9, 0.0]]]]), torch.tensor([[[[1.9, 1.0]]]]), ThreatModel("l1", 1.0)
    torch.testing.assert_close(threat.project(moved, x), torch.tensor([[[[1.0, 0.5]]]]))
    torch.testing.assert_close(project(moved, x, threat), torch.tensor([[[[1.0, 0.9]]]]))
