import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ThreatModel
from attacks.hyperplane import onto_hyperplane

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}


@st.composite
def problems(draw, ties=False):
    """Points, normals and gaps ``(6, d)``: entries on the bounds, normals with zeros (and ties), some out of reach."""
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (6, draw(st.integers(1, 40)))
    uniform = lambda *size: torch.rand(*size, generator=random, dtype=torch.float64)  # noqa: E731
    points = (uniform(shape) * (1 + 2 * draw(st.floats(0, 1))) - draw(st.floats(0, 1))).clamp(0, 1)
    normal = (uniform(shape) - 0.5) * uniform(shape) ** draw(st.integers(0, 3))
    normal = torch.where(normal.abs() < 1e-3, normal * 1e-6, normal) * (uniform(shape) < draw(st.floats(0, 1)))
    if ties:
        normal = (normal * 8).round() / 8
    # From a gap of nothing to one that is beyond the corner, on either side of the hyperplane.
    sign = (uniform(6) - 0.5).sign()
    room = torch.where(normal * sign[:, None] > 0, points, 1 - points)
    gap = sign * (room * normal.abs()).sum(1) * (uniform(6) * 1.3 * draw(st.floats(0, 1)))
    return points.to(dtype), normal.to(dtype), gap.to(dtype)


def flattened(normal, norm):
    return normal if norm == "linf" else torch.where(normal.abs() > 1e-8, normal, 0)


def reach(points, normal, gap):
    """How far the inner product can fall (or rise, for a negative gap) inside [0, 1]."""
    room = torch.where(normal * gap[:, None] > 0, points, 1 - points)
    return (room * normal.abs()).sum(1)


def tolerance(dtype):
    return {torch.float32: 2e-5, torch.float64: 1e-11}[dtype]


@pytest.mark.parametrize("norm", NORMS)
@given(problem=st.one_of(problems(), problems(ties=True)))
@settings(deadline=None, max_examples=60)
def test_the_end_is_in_the_range_and_on_the_hyperplane_or_in_the_corner_next_to_it(norm, problem):
    points, normal, gap = problem
    way = onto_hyperplane(points, normal, gap, ThreatModel(norm))
    assert (points + way).min() >= -1e-6
    assert (points + way).max() <= 1 + 1e-6
    normal = flattened(normal, norm)
    assert (way[normal == 0] == 0).all()
    left = (gap + (normal * way).sum(1)).abs()
    expected = (gap.abs() - reach(points, normal, gap)).clamp(min=0)
    torch.testing.assert_close(left, expected, rtol=0, atol=tolerance(points.dtype))


@pytest.mark.parametrize("norm", NORMS)
@given(problem=st.one_of(problems(), problems(ties=True)))
@settings(deadline=None, max_examples=60)
def test_the_way_is_as_short_as_the_authors(norm, problem):
    projections = pytest.importorskip("pyautoattack.fab_projections")
    points, normal, gap = problem
    way = onto_hyperplane(points, normal, gap, ThreatModel(norm))
    level = (normal * points).sum(1) - gap
    theirs = getattr(projections, f"projection_{norm}")(points, normal, level)
    most = reach(points, flattened(normal, norm), gap)
    clear = (gap.abs() - most).abs() > 1e-3 * most  # on the edge of what can be reached, rounding decides
    ours, others = (torch.linalg.vector_norm(each, ORDER[norm], dim=1) for each in (way, theirs))
    loose = tolerance(points.dtype) * 100
    clear &= ((normal * points).sum(1) - level - gap).abs() <= loose / 10 * gap.abs()  # they are told the level alone
    torch.testing.assert_close(ours[clear], others[clear], rtol=loose, atol=loose)
    if norm != "l1" or len(normal[normal != 0].abs().unique()) == (normal != 0).sum():  # else there are several ways
        torch.testing.assert_close(way[clear], theirs[clear].to(way), rtol=loose, atol=loose)


@pytest.mark.parametrize("norm", NORMS)
def test_no_random_way_to_the_hyperplane_is_shorter(norm):
    random = torch.Generator().manual_seed(0)
    points, normal = (torch.rand(4, 5, generator=random, dtype=torch.float64) for _ in range(2))
    gap = 0.6 * reach(points, normal, torch.ones(4, dtype=torch.float64))
    shortest = torch.linalg.vector_norm(onto_hyperplane(points, normal, gap, ThreatModel(norm)), ORDER[norm], dim=1)
    ends = torch.rand(20_000, 4, 5, generator=random, dtype=torch.float64)  # scaled until they lie on the hyperplane
    fall = (normal * (points - ends)).sum(2)
    ways = (points - ends) * (gap / fall)[..., None]
    valid = ((points - ways).clamp(0, 1) == points - ways).all(2)
    lengths = torch.where(valid, torch.linalg.vector_norm(ways, ORDER[norm], dim=2), torch.inf).amin(0)
    assert (lengths < torch.inf).all()
    assert (lengths >= shortest - 1e-12).all()


def test_known_ways():
    points, normal = torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([[1.0, -2.0, 4.0]])
    along = {  # the third may fall by 0.1 only
        ("linf", 0.7): (-0.1, 0.1, -0.1),
        ("linf", 1.0): (-0.2, 0.2, -0.1),
        ("l2", 0.525): (-0.025, 0.05, -0.1),
        ("l2", 0.9): (-0.1, 0.2, -0.1),
        ("l1", 0.2): (0.0, 0.0, -0.05),
        ("l1", 0.8): (0.0, 0.2, -0.1),
        ("l1", 9.0): (-0.5, 0.5, -0.1),
    }
    for (norm, gap), way in along.items():
        found = onto_hyperplane(points, normal, torch.tensor([gap]), ThreatModel(norm))
        torch.testing.assert_close(found, torch.tensor([way]), msg=f"{norm} {gap}: {found}")


@pytest.mark.parametrize("norm", NORMS)
def test_the_range_may_be_any_and_rows_may_be_stacked(norm):
    random = torch.Generator().manual_seed(1)
    points, normal = torch.rand(2, 3, 8, generator=random), torch.randn(3, 8, generator=random)
    gap = torch.tensor([[0.3, -0.2, 5.0], [0.0, 1.0, -0.4]])
    unit = onto_hyperplane(points, normal, gap, ThreatModel(norm))
    wide = onto_hyperplane(points * 4 - 1, normal, gap * 4, ThreatModel(norm, low=-1.0, high=3.0))
    torch.testing.assert_close(wide, unit * 4, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unit[1], onto_hyperplane(points[1], normal, gap[1], ThreatModel(norm)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("slope", [0.0, 1e-30, 1e30])
def test_extreme_slopes_give_finite_ways(norm, slope):
    points = torch.tensor([[0.0, 0.5, 1.0]]).repeat(3, 1)
    normal = slope * torch.tensor([[1.0, -1.0, 0.0]]).repeat(3, 1)
    way = onto_hyperplane(points, normal, torch.tensor([0.0, 1.0, -1.0]), ThreatModel(norm))
    assert way.isfinite().all()
    assert (points + way).clamp(0, 1).equal(points + way)
    assert (way[0] == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_the_rounds_that_a_gpu_runs_unseen_suffice(norm, problem):
    points, normal, gap = problem
    seen = onto_hyperplane(points, normal, gap, ThreatModel(norm))
    unseen = onto_hyperplane(points, normal, gap, ThreatModel(norm), rounds=16)
    torch.testing.assert_close(unseen, seen, rtol=1e-5, atol=1e-6)
