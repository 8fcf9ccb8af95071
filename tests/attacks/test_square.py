"""Square Attack: where it may go, what it may depend on, and that it is the authors' search."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.square import SquareAttack
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.engine import Job, Jobs, Outcome, run
from attacks.objectives import margin
from attacks.oracle import Oracle
from attacks.square import Square
from attacks.square_mass import _pattern
from attacks.square_script import draws, places, share, window_sizes
from attacks.threat import ThreatModel
from tests.models import Constant, linear

NORMS = ("linf", "l2", "l1")
RADII = {"linf": 0.1, "l2": 0.8, "l1": 4.0}


def perceptron(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network that nothing has trained, so that its decisions lie close to most images."""
    torch.manual_seed(seed)
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype).eval()


def images(number: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand((number, *shape), generator=torch.Generator().manual_seed(1), dtype=dtype)


@torch.no_grad()
def begun(attack: Square, network: nn.Module, x: Tensor, indices: list[int] | None = None):
    """The first state, of images under the labels that the network gives them."""
    logits = network(x)
    rows = list(range(len(x))) if indices is None else indices
    return attack.begin(Jobs(x, logits.argmax(1), rows, [0] * len(x), logits.argsort(1))), logits.argmax(1)


@torch.no_grad()
def searched(
    attack: Square, network: nn.Module, x: Tensor, y: Tensor, *, slots: int = 16, index: list[int] | None = None
) -> tuple[list[Outcome], int]:
    """Outcomes in the order of the images, and the questions asked."""
    oracle, outcomes = Oracle(network), []
    rows = list(range(len(x))) if index is None else index
    jobs = [Job(row, 0) for row in range(len(x))]
    run(attack, oracle, x, y, rows, network(x).argsort(1), jobs, slots=slots, done=outcomes.append)
    return sorted(outcomes), oracle.forward


class Scripted(SquareAttack):
    """The authors' attack on one image, drawing what ``drawn`` lists in the order in which it asks."""

    def __init__(self, norm: str, epsilon: float, queries: int, drawn: list) -> None:
        names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        super().__init__(None, norm=names[norm], eps=epsilon, n_queries=queries, resc_schedule=False)
        self.drawn = iter(drawn)

    def random_choice(self, shape):
        return next(self.drawn).view(shape)

    def random_int(self, low=0, high=1, shape=(1,)):
        return torch.tensor([next(self.drawn)])

    def eta(self, s):
        turned, pattern = next(self.drawn), super().eta(s)
        upright = torch.allclose(pattern, _pattern(s, 2 if self.norm == "L2" else 1).float(), atol=1e-6)
        return pattern.T if turned == upright else pattern


def signs_of(bits: int, channels: int) -> Tensor:
    return torch.tensor([1.0 if bits >> channel & 1 else -1.0 for channel in range(channels)])


def script_of(attack: Square, x: Tensor, state) -> list:
    """What the authors' code would have had to draw for our script of the one image ``x``."""
    channels, height, width = x.shape[1:]
    jobs = Jobs(x, torch.zeros(1), [0], [0], torch.zeros(1))
    numbers = state.script[0].long()
    if attack.threat.norm == "linf":
        stripes = draws(jobs, (channels, 1, width), attack.seed, "start") >= 0.5
        drawn: list = [2.0 * stripes.float() - 1]
        for number in numbers[1 : attack.queries + 1].tolist():
            pixel = number >> channels
            drawn += [pixel // width, pixel % width, signs_of(number, channels)]
        return drawn
    side = height // 5
    tiles = draws(jobs, (1 + channels, height // side, width // side), attack.seed, "start")[0]
    drawn = []
    for row in range(height // side):
        for column in range(width // side):
            drawn += [bool(tiles[0, row, column] > 0.5), 2.0 * (tiles[1:, row, column] >= 0.5).float() - 1]
    for first, second, bits in numbers[1:].tolist():
        drawn += [first // width, first % width, second // width, second % width]
        drawn += [bool(bits & 1), signs_of(bits >> 1, channels)]
    return drawn


@pytest.mark.parametrize("shape", [(1, 10, 10), (3, 10, 10), (3, 10, 15)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_from_the_same_draws_it_goes_where_the_authors_code_goes(norm, shape):
    network, x = perceptron(shape), images(3, shape)
    attack = Square(ThreatModel(norm, RADII[norm] / 8), seed=3, queries=120, skip_known=False)
    accepted = 0
    for image in x.split(1):
        state, y = begun(attack, network, image, [0])
        official = Scripted(norm, attack.threat.epsilon, attack.queries, script_of(attack, image, state))
        official.predict = network
        official.init_hyperparam(image)
        _, theirs = official.attack_single_run(image, y)
        oracle, best, fooled = Oracle(network), -torch.inf, False
        for _ in range(attack.queries + 1):
            state, found = attack.step(state, oracle)
            accepted += state.value.item() > best
            best = state.value.item()
            if found.fooled.item():
                fooled = True
                break
        with torch.no_grad():
            assert fooled == bool(network(theirs).argmax(1) != y)
        # Rounding grows from query to query; another path would differ by whole windows, a hundred times as much.
        torch.testing.assert_close(state.best, theirs, rtol=0, atol=1e-4)
    assert accepted > 15


def test_windows_are_as_large_as_the_authors():
    official = SquareAttack(None, norm="L2", eps=1.0, resc_schedule=False)
    assert all(share(proposal) == official.p_selection(proposal) for proposal in range(10_000))
    assert [window_sizes(5000, 28, 28)[query] for query in (0, 11, 51, 201, 501, 1001, 2001, 4001)] == [
        *(25, 18, 13, 9, 6, 4, 3, 2)
    ]
    assert [window_sizes(5000, 32, 32, odd=True)[query] for query in (0, 11, 51, 201, 501, 1001, 2001)] == [
        *(29, 21, 15, 11, 7, 5, 5)
    ]
    assert max(window_sizes(10, 6, 40)) == 6


def test_a_window_has_one_place_fewer_than_would_fit_but_at_least_one():
    assert places(torch.tensor([1, 4, 5]), 5).tolist() == [4, 1, 1]


@pytest.mark.parametrize(("norm", "power"), [("L2", 2), ("L1", 1)])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 9, 25])
def test_patterns_are_the_authors(norm, power, side):
    official = SquareAttack(None, norm=norm, eps=1.0, device="cpu").eta(side)
    ours = _pattern(side, power).float()
    assert min((official - ours).abs().max(), (official - ours.T).abs().max()) < 1e-6


@settings(max_examples=20, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    relative=st.floats(0.0, 4.0),
    number=st.integers(1, 5),
    skip=st.booleans(),
)
def test_every_point_lies_in_ball_and_range(norm, shape, relative, number, skip):
    network, x = perceptron(shape), images(number, shape).round(decimals=1)
    threat = ThreatModel(norm, RADII[norm] * relative)
    attack = Square(threat, seed=0, queries=60, skip_known=skip)
    asked = []

    class Listening(Oracle):
        def logits(self, points):
            asked.append(points.clone())
            return super().logits(points)

    state, _ = begun(attack, network, x)
    for _ in range(61):
        state, found = attack.step(state, Listening(network))
        asked.append(found.points)
    points = torch.stack(asked)
    assert points.min() >= 0
    assert points.max() <= 1
    for part in points:
        assert threat.distance(part, x).max() <= threat.epsilon * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_the_margin_never_rises_and_the_best_point_has_it(norm):
    shape = (3, 8, 8)
    network, x = perceptron(shape), images(8, shape)
    attack = Square(ThreatModel(norm, RADII[norm] / 10), seed=0, queries=200)
    state, y = begun(attack, network, x)
    before = torch.full((8,), -torch.inf)
    for _ in range(200):
        state, _ = attack.step(state, Oracle(network))
        assert (state.value >= before).all()
        before = state.value
    with torch.no_grad():
        torch.testing.assert_close(margin(network(state.best), y), state.value)


@pytest.mark.parametrize("norm", NORMS)
def test_a_picture_depends_neither_on_the_slots_nor_on_the_other_images(norm):
    shape = (3, 8, 8)
    network, x = perceptron(shape, dtype=torch.float64), images(12, shape, torch.float64)
    with torch.no_grad():
        y = network(x).argmax(1)
    attack = Square(ThreatModel(norm, RADII[norm] / 6), seed=0, queries=120)
    together, _ = searched(attack, network, x, y, slots=12)
    few, _ = searched(attack, network, x, y, slots=3)
    alone = [searched(attack, network, x[i : i + 1], y[i : i + 1], slots=2, index=[i])[0][0] for i in range(12)]
    assert 0 < sum(outcome.picture is not None for outcome in together) < 12
    for one, two, three in zip(together, few, alone, strict=True):
        assert (one.picture is None) == (two.picture is None) == (three.picture is None)
        if one.picture is not None:
            torch.testing.assert_close(one.picture, two.picture, rtol=0, atol=1e-12)
            torch.testing.assert_close(one.picture, three.picture, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "epsilon", "queries"),
    [((1, 8, 8), 0.03, 2000), ((3, 8, 8), 0.02, 600), ((1, 6, 9), 0.05, 1200), ((2, 2, 2), 0.01, 300)],
    ids=str,
)
def test_passing_over_what_is_known_changes_no_accepted_point(shape, epsilon, queries):
    network, x = perceptron(shape, dtype=torch.float64), images(8, shape, torch.float64)
    paths, questions = {}, {}
    for skip in (True, False):
        attack = Square(ThreatModel("linf", epsilon), seed=0, queries=queries, skip_known=skip)
        state, _ = begun(attack, network, x)
        path, finished, asked = [[] for _ in x], torch.zeros(len(x), dtype=torch.bool), 0
        while not finished.all():
            asked += int((~finished).sum())
            state, found = attack.step(state, Oracle(network))
            for slot, (value, point) in enumerate(zip(state.value.tolist(), state.best.clone(), strict=True)):
                if not path[slot] or path[slot][-1][0] != value:
                    path[slot].append((value, point))
            finished |= found.finished
        paths[skip], questions[skip] = path, asked
    for skipping, asking in zip(paths[True], paths[False], strict=True):
        assert [value for value, _ in skipping] == [value for value, _ in asking]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(skipping, asking, strict=True))
    assert sum(map(len, paths[True])) > 8
    assert questions[True] < questions[False]


def test_on_a_constant_network_each_proposal_is_asked_about_once():
    network, x = Constant([1.0, 0.0, 0.0]).eval(), images(4, (1, 8, 8))
    y = torch.zeros(4, dtype=torch.int64)
    outcomes, asked = searched(Square(ThreatModel("linf", 0.1), seed=0), network, x, y, slots=4)
    assert all(outcome.picture is None for outcome in outcomes)
    sizes = set(window_sizes(5000, 8, 8))
    assert asked < 1.2 * sum(2 * (8 - size) ** 2 for size in sizes)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_constant_network_is_asked_to_the_end(norm):
    network, x = Constant([1.0, 0.0, 0.0]).eval(), images(3, (1, 8, 8))
    y = torch.zeros(3, dtype=torch.int64)
    outcomes, asked = searched(Square(ThreatModel(norm, 1.0), seed=0, queries=40), network, x, y, slots=3)
    assert [outcome.picture for outcome in outcomes] == [None] * 3
    assert asked == 41


def test_linf_starts_with_stripes():
    inner = torch.full((5, 3, 7, 9), 0.5)
    state, _ = begun(Square(ThreatModel("linf", 0.1), seed=0), perceptron((3, 7, 9)), inner)
    signs = (state.best - inner).sign()
    assert torch.equal(signs, signs[:, :, :1].expand_as(signs))
    assert (signs != 0).all()
    assert len({tuple(image.flatten().tolist()) for image in signs}) == 5
    assert 0.3 < (signs > 0).float().mean() < 0.7


def test_l2_starts_with_tiles_that_spend_the_whole_radius():
    inner = torch.full((4, 1, 10, 10), 0.5)
    state, _ = begun(Square(ThreatModel("l2", 0.5), seed=0), perceptron((1, 10, 10)), inner)
    tiles = (state.best - inner).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    torch.testing.assert_close(tiles.square().sum(-1), torch.full((4, 1, 5, 5), 0.25 / 25))
    assert tiles.sum(-1).abs().max() < 1e-6


def test_windows_never_reach_the_last_row_and_column():
    x = images(4, (1, 8, 8))
    attack = Square(ThreatModel("linf", 0.1), seed=0, queries=400)
    state, _ = begun(attack, linear(), x)
    start = state.best.clone()
    for _ in range(200):
        state, _ = attack.step(state, Oracle(linear()))
    assert torch.equal(state.best[:, :, -1], start[:, :, -1])
    assert torch.equal(state.best[:, :, :, -1], start[:, :, :, -1])
    assert not torch.equal(state.best, start)


@pytest.fixture(scope="module")
def digits():
    """A small network trained on scikit-learn's digits for a second, and images that it gets right."""
    data = load_digits()
    x, y = torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x[:1000]), y[:1000]).backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    right = (network(x).argmax(1) == y).nonzero().flatten()[-150:]
    return network, x[right], y[right]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.14), ("l2", 0.8), ("l1", 3.0)])
def test_it_succeeds_as_often_as_the_authors_code(digits, norm, epsilon):
    network, x, y = digits
    names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    theirs, ours = [], []
    for seed in range(2):
        official = SquareAttack(network, norm=names[norm], eps=epsilon, n_queries=200, seed=seed, resc_schedule=False)
        theirs.append((network(official.perturb(x, y)).argmax(1) != y).float().mean().item())
        outcomes, _ = searched(Square(ThreatModel(norm, epsilon), seed, queries=200), network, x, y, slots=64)
        ours.append(sum(outcome.picture is not None for outcome in outcomes) / len(x))
    assert 0.2 < sum(theirs) / 2 < 0.8
    # Seeds differ by up to five points in either; 150 images and two seeds leave a mean uncertain by about two.
    assert sum(ours) / 2 == pytest.approx(sum(theirs) / 2, abs=0.05)
