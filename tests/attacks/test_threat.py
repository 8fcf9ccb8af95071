import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel

NORMS = ("linf", "l2", "l1")
each_norm = pytest.mark.parametrize("norm", NORMS)
# Moves far outside, barely outside and inside; radii from nothing to more than the whole range.
scenes = st.tuples(
    st.sampled_from(NORMS),
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    st.lists(st.floats(0, 3), min_size=4, max_size=4),
)


def scene(seed, scale):
    draw = torch.Generator().manual_seed(seed)
    origin = torch.rand(4, 2, 3, 3, generator=draw, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    return origin, origin + scale * torch.randn(4, 2, 3, 3, generator=draw, dtype=torch.float64)


@settings(deadline=None)
@given(scenes)
def test_projection_lands_in_each_images_ball_and_in_the_range(drawn):
    norm, seed, scale, radii = drawn
    origin, moved = scene(seed, scale)
    radius = torch.tensor(radii, dtype=torch.float64)
    threat = ThreatModel(norm, 8 / 255)
    inside = threat.project(moved, origin, radius)
    assert (threat.distance(inside, origin) <= radius + 1e-12).all()
    assert (inside >= 0).all()
    assert (inside <= 1).all()


@settings(deadline=None)
@given(scenes)
def test_projecting_twice_is_projecting_once(drawn):
    norm, seed, scale, radii = drawn
    origin, moved = scene(seed, scale)
    threat, radius = ThreatModel(norm), torch.tensor(radii, dtype=torch.float64)
    once = threat.project(moved, origin, radius)
    torch.testing.assert_close(threat.project(once, origin, radius), once, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(scenes)
def test_projection_leaves_insiders_alone(drawn):
    norm, seed, scale, _ = drawn
    origin, moved = scene(seed, scale)
    moved = moved.clamp(0, 1)
    threat = ThreatModel(norm)
    radius = threat.distance(moved, origin) * 1.01
    torch.testing.assert_close(threat.project(moved, origin, radius), moved, rtol=0, atol=1e-14)


@each_norm
def test_a_radius_per_image_does_what_a_threat_per_image_would(norm):
    origin, moved = scene(3, 1.0)
    radii = [0.0, 0.05, 0.5, 2.0]
    together = ThreatModel(norm).project(moved, origin, torch.tensor(radii))
    for i, epsilon in enumerate(radii):
        alone = ThreatModel(norm, epsilon).project(moved[i : i + 1], origin[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-7)  # the radii came as float32


@each_norm
def test_epsilon_zero_returns_the_clean_image(norm):
    origin, moved = scene(4, 1.0)
    assert torch.equal(ThreatModel(norm, 0.0).project(moved, origin), origin)


@pytest.mark.parametrize(("norm", "reach"), [("linf", 0.3), ("l2", 0.7), ("l1", 1.3)])
def test_far_moves_land_on_the_sphere(norm, reach):
    origin = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)  # far from the range's ends
    moved = origin + torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threat = ThreatModel(norm, reach, low=-9.0, high=9.0)
    distance = threat.distance(threat.project(moved, origin), origin)
    torch.testing.assert_close(distance, torch.full((2,), reach, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_l1_projection_is_the_nearest_point_of_the_ball(seed):
    # Independent reference: the shrinkage t at which the soft-thresholded length is epsilon, found by bisection.
    move = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    epsilon = 0.2 + seed

    def length(shrinkage):
        return (move.abs() - shrinkage).clamp(min=0).sum().item() - epsilon

    shrinkage = scipy.optimize.brentq(length, 0.0, 10.0, xtol=1e-14) if length(0.0) > 0 else 0.0
    nearest = move.sign() * (move.abs() - shrinkage).clamp(min=0)
    found = ThreatModel("l1", epsilon, low=-99.0, high=99.0).project(move, torch.zeros_like(move))
    torch.testing.assert_close(found, nearest, rtol=0, atol=1e-12)


def test_l1_projection_is_no_farther_than_what_a_general_optimiser_finds():
    move = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    flat = move.flatten().numpy()
    found = ThreatModel("l1", 1.0, low=-99.0, high=99.0).project(move, torch.zeros_like(move))
    # p - n with p, n >= 0 and sum(p + n) <= 1 makes the ball smooth.
    size = len(flat)
    best = scipy.optimize.minimize(
        lambda v: ((v[:size] - v[size:] - flat) ** 2).sum(),
        x0=[0.01] * (2 * size),
        bounds=[(0, None)] * (2 * size),
        constraints={"type": "ineq", "fun": lambda v: 1.0 - v.sum()},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert (found - move).square().sum().item() == pytest.approx(best.fun, rel=1e-5)


@each_norm
def test_directions_have_length_one_in_their_norm(norm):
    gradient = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    length = ThreatModel(norm).distance(ThreatModel(norm).direction(gradient), torch.zeros_like(gradient))
    torch.testing.assert_close(length, torch.ones(5))


def test_an_l1_direction_has_length_one_even_where_entries_tie():
    gradient = torch.ones(2, 1, 8, 8)
    direction = ThreatModel("l1").direction(gradient)
    assert direction.abs().flatten(1).sum(1).tolist() == [1.0, 1.0]


def test_an_l1_direction_touches_only_the_steepest_hundredth():
    gradient = torch.arange(300.0).reshape(1, 3, 10, 10) - 150.25
    touched = ThreatModel("l1").direction(gradient).flatten().nonzero().flatten().tolist()
    assert touched == [0, 1, 299]  # -150.25, -149.25 and 148.75


@each_norm
def test_no_gradient_means_no_direction(norm):
    flat = torch.zeros(2, 1, 4, 4)
    assert torch.equal(ThreatModel(norm).direction(flat), flat)


@pytest.mark.parametrize(("norm", "expected"), [("linf", 0.4), ("l2", 0.5), ("l1", 0.7)])
def test_distance_is_the_norm_of_the_move(norm, expected):
    origin = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    moved = torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64).reshape(1, 1, 1, 3)
    assert ThreatModel(norm).distance(moved, origin).tolist() == pytest.approx([expected])


def test_threats_are_values():
    assert ThreatModel("l2", "8/255") == ThreatModel("l2", 8 / 255)
    assert hash(ThreatModel()) == hash(ThreatModel("linf", "8/255"))
    assert ThreatModel("l1", 0.5).at("1/4") == ThreatModel("l1", 0.25)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"norm": "l3"}, "threat.norm is linf, l2 or l1, but found 'l3'"),
        ({"epsilon": "lots"}, "threat.epsilon is a number in pixel units such as 8/255 or 0.031, but found 'lots'"),
        ({"epsilon": -0.1}, "threat.epsilon is a number in pixel units such as 8/255 or 0.031, but found -0.1"),
        ({"epsilon": float("nan")}, "threat.epsilon is a number in pixel units such as 8/255 or 0.031, but found nan"),
        ({"low": 1.0, "high": 1.0}, r"threat.low lies below threat.high, but found [1.0, 1.0]"),
    ],
)
def test_a_bad_threat_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(BadInput) as refusal:
        ThreatModel(**arguments)
    assert str(refusal.value) == sentence
