"""The slots: who gets which job when, what counts as a success, and what each job is charged."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks import ThreatModel
from attacks.apgd import APGD
from attacks.engine import Found, Job, run
from attacks.oracle import Oracle
from tests.attacks.walk import LOSSES, rank
from tests.models import Averaged, Returning, curved, images

BUDGET = 5


class Row(NamedTuple):
    point: Tensor
    index: Tensor
    phase: Tensor
    age: Tensor


class Scripted:
    """Claims success when told to, in ``claims[index, phase]``: ages, and pictures by their brightness.

    The network of these tests calls a picture class 1 where it is brighter than one half; every label is 0.
    """

    def __init__(self, claims=None):
        self.claims = claims or {}
        self.begun = []
        self.together = []

    def begin(self, jobs):
        self.begun += list(zip(jobs.indices, jobs.phase, strict=True))
        whole = torch.tensor(list(zip(jobs.indices, jobs.phase, strict=True)))
        return Row(jobs.x, whole[:, 0], whole[:, 1], torch.zeros_like(whole[:, 0]))

    def step(self, state, oracle):
        oracle.logits(state.point)
        self.together.append(list(zip(state.index.tolist(), state.age.tolist(), strict=True)))
        names = zip(state.index.tolist(), state.phase.tolist(), state.age.tolist(), strict=True)
        shades = [self.claims.get((index, phase), {}).get(age) for index, phase, age in names]
        fooled = torch.tensor([shade is not None for shade in shades])
        shade = torch.tensor([shade or 0.0 for shade in shades])
        points = torch.where(
            fooled[:, None, None, None], shade[:, None, None, None].expand_as(state.point), state.point
        )
        return state._replace(age=state.age + 1), Found(points, fooled, state.age + 1 >= BUDGET)


def bright(x):
    return torch.stack([torch.full((len(x),), 0.5), x.flatten(1).mean(1)], 1)


def work(attack, jobs, n=6, slots=3, network=None, **how):
    """Work off ``(row, phase)`` jobs on dark images; give outcomes in the order they came, and the oracle."""
    outcomes, oracle = [], Oracle(Returning(bright).eval() if network is None else network)
    x, y = torch.full((n, 1, 2, 2), 0.25), torch.zeros(n, dtype=torch.long)
    run(
        attack,
        oracle,
        x,
        y,
        range(10, 10 + n),
        torch.tensor([[1, 0]] * n),
        [Job(*job) for job in jobs],
        slots=slots,
        done=outcomes.append,
        **how,
    )
    return outcomes, oracle


def phases(n, p):
    return [(row, phase) for phase in range(p) for row in range(n)]


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 40])
def test_every_job_of_images_that_hold_out_ends_once_with_its_whole_budget(slots):
    outcomes, _ = work(Scripted(), phases(6, 3), slots=slots)
    assert sorted(outcome.job for outcome in outcomes) == sorted(Job(*job) for job in phases(6, 3))
    assert {(o.picture, o.forward, o.backward) for o in outcomes} == {(None, BUDGET, 0)}


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 40])
def test_an_image_that_is_fooled_takes_no_pass_in_the_phases_to_come(slots):
    attack = Scripted({(12, 0): {1: 0.9}, (13, 1): {0: 0.8}})
    outcomes, _ = work(attack, phases(6, 3), slots=slots)
    jobs = {outcome.job: outcome for outcome in outcomes}
    assert Job(2, 1) not in jobs
    assert Job(2, 2) not in jobs
    assert Job(3, 1) in jobs
    assert Job(3, 2) not in jobs
    assert len(jobs) == 6 * 3 - 3
    assert (12, 1) not in attack.begun
    # Two steps, and one question to the plain network.
    assert (jobs[2, 0].forward, jobs[3, 1].forward) == (3, 2)
    assert torch.equal(jobs[2, 0].picture, torch.full((1, 2, 2), 0.9))


def test_a_claim_that_the_plain_network_does_not_confirm_is_ignored_and_the_job_goes_on():
    claims = {(10, 0): {1: 0.4}, (11, 0): {0: 0.4, 2: 0.3, 3: 0.7}}
    outcomes, _ = work(Scripted(claims), phases(2, 2), n=2)
    jobs = {outcome.job: outcome for outcome in outcomes}
    assert jobs[0, 0].picture is None
    assert jobs[0, 0].forward == BUDGET + 1  # the question was asked
    assert jobs[1, 0].picture.unique().tolist() == [pytest.approx(0.7)]
    assert jobs[1, 0].forward == 4 + 3
    assert sorted(jobs) == [(0, 0), (0, 1), (1, 0)]


def test_a_claim_with_the_last_step_still_counts():
    (outcome,), _ = work(Scripted({(10, 0): {BUDGET - 1: 0.9}}), [(0, 0)], n=1)
    assert outcome.picture is not None


def test_no_image_is_in_two_slots_at_once_and_jobs_begin_in_order():
    attack = Scripted()
    work(attack, [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (1, 1)], slots=2)
    assert attack.begun == [(10, 0), (11, 0), (10, 1), (12, 0), (10, 2), (11, 1)]
    assert all(
        len({index for index, age in row if age < BUDGET}) == sum(age < BUDGET for _, age in row)
        for row in attack.together
    )


def test_the_batch_keeps_its_shape_to_the_end():
    seen = []

    def noting(x):
        seen.append(len(x))
        return bright(x)

    _, oracle = work(Scripted(), phases(5, 1), n=5, slots=4, network=Returning(noting).eval())
    assert seen == [4] * oracle.forward
    assert oracle.forward == 2 * BUDGET  # four jobs, then the fifth in the company of copies


def test_without_jobs_nothing_is_asked():
    outcomes, oracle = work(Scripted(), [])
    assert outcomes == []
    assert oracle.forward == 0


def test_of_an_ensemble_every_member_is_charged():
    network = Averaged([Returning(bright), Returning(bright), Returning(bright)]).eval()
    (outcome,), _ = work(Scripted({(10, 0): {1: 0.9}}), [(0, 0)], n=1, network=network)
    assert outcome.forward == 3 * (2 + 1)


@pytest.mark.parametrize("look_every", [1, 2, 3, 4, 7])
def test_who_looks_seldom_finds_the_same_and_nothing_beyond_the_budget(look_every):
    claims = {(10, 0): {0: 0.9, 1: 0.4, 3: 0.8}, (11, 0): {BUDGET: 0.9}, (12, 0): {BUDGET - 1: 0.7}, (13, 1): {2: 0.6}}
    outcomes, _ = work(Scripted(claims), phases(4, 2), n=4, look_every=look_every)
    pictures = {o.job: o.picture.mean().item() for o in outcomes if o.picture is not None}
    assert pictures == {(0, 0): pytest.approx(0.9), (2, 0): pytest.approx(0.7), (3, 1): pytest.approx(0.6)}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_verdicts_depend_on_the_claims_alone(data):
    n, p = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    shades = st.dictionaries(st.integers(0, BUDGET - 1), st.sampled_from([0.3, 0.7]), max_size=2)
    claims = {(10 + row, phase): data.draw(shades) for row, phase in phases(n, p)}
    outcomes, _ = work(Scripted(claims), phases(n, p), n=n, slots=data.draw(st.integers(1, 7)))
    for row in range(n):
        holds = [phase for phase in range(p) if 0.7 in claims[10 + row, phase].values()]
        jobs = {o.job.phase: o for o in outcomes if o.job.row == row}
        assert sorted(jobs) == list(range(holds[0] + 1 if holds else p))
        assert [phase for phase, o in jobs.items() if o.picture is not None] == holds[:1]


@pytest.fixture(scope="module")
def scene():
    """Images of which some are fooled in each of three phases, and some hold out; in float64."""
    network, x = curved(classes=6, seed=2).double(), images(12, dtype=torch.float64)
    return network, x, rank(network, x)


def attacked(scene, jobs, slots, rows=range(12), threat=ThreatModel("l2", 0.22)):
    network, x, ranking = scene
    rows = list(rows)

    def noise(jobs):
        draws = [torch.Generator().manual_seed(100 * i + p) for i, p in zip(jobs.indices, jobs.phase, strict=True)]
        return torch.stack([torch.randn(1, 8, 8, generator=draw, dtype=torch.float64) for draw in draws])

    found = {}
    run(
        APGD(threat, LOSSES["targeted dlr"], noise, targeted=True, iterations=15),
        Oracle(network),
        x[rows],
        ranking[rows, -1],
        rows,
        ranking[rows],
        [job for job in jobs if job.row < len(rows)],
        slots=slots,
        done=lambda outcome: found.__setitem__((rows[outcome.job.row], outcome.job.phase), outcome),
    )
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for job, outcome in one.items():
        assert (outcome.picture is None) == (other[job].picture is None)
        assert (outcome.forward, outcome.backward) == (other[job].forward, other[job].backward)
        if outcome.picture is not None:
            torch.testing.assert_close(outcome.picture, other[job].picture, rtol=0, atol=1e-9)


JOBS = [Job(row, phase) for phase in (2, 1, 0) for row in range(12)]  # the likeliest class last, else it takes all


@pytest.fixture(scope="module")
def alone(scene):
    found = attacked(scene, JOBS, slots=1)
    fooled = [job for job, outcome in found.items() if outcome.picture is not None]
    assert {phase for _, phase in fooled} == {0, 1, 2}
    assert len(fooled) < 12
    return found


@pytest.mark.parametrize("slots", [2, 5, 12, 30])
def test_neither_verdicts_nor_pictures_nor_passes_depend_on_the_number_of_slots(slots, scene, alone):
    same(attacked(scene, JOBS, slots), alone)


def test_nor_on_the_order_of_the_images(scene, alone):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    same(attacked(scene, JOBS, 5, rows=order), alone)


def test_nor_on_whether_phases_or_images_come_first(scene, alone):
    same(attacked(scene, sorted(JOBS, key=lambda job: (job.row, -job.phase)), 5), alone)


def test_nor_on_the_other_images(scene, alone):
    some = [1, 4, 8]
    same(attacked(scene, JOBS, 5, rows=some), {job: outcome for job, outcome in alone.items() if job[0] in some})
