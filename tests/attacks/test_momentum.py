"""Ascent with momentum and backtracking, on networks small enough to follow by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import ThreatModel, counting
from attacks.modes import in_mode
from attacks.momentum import momentum_ascent, within_ball
from attacks.objectives import wrong_confidence_with
from tests.golden import assert_images, cases
from tests.methods.from_golden.ccat import GivenStart, build
from tests.methods.tools import images, network


@pytest.mark.parametrize("case", cases("ccat", "attack"), ids=lambda case: case.name)
def test_the_authors_attack_is_repeated(case):
    method, (x, y, _) = build(case).double(), case.batch
    method.draws = GivenStart(case)
    with in_mode(case.network, "eval"):
        start = method.begin(x, method.threat)
        objective = wrong_confidence_with(y)
        found = method.ascend(case.network, x, objective, method.threat, start, method.inner.steps)
    expected = case.expected
    assert_images(found.images, expected["x_adv"])
    assert (-found.value.exp()).tolist() == pytest.approx(expected["objective_per_image"]["values"], rel=1e-7)
    distance = method.threat.distance(found.images, x)
    assert distance.tolist() == pytest.approx(expected["norm_linf_per_image"])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 100),
    st.sampled_from(["linf", "l2", "l1"]),
    st.integers(0, 6),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([1.0, 1.5]),
)
def test_what_is_returned_lies_in_ball_and_range_and_is_no_worse_than_any_point_visited(
    seed, norm, steps, momentum, backtracking
):
    body, (x, y) = network(seed=seed).eval(), images(6, seed)
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.7, "l1": 3.0}[norm])
    start = within_ball(x, threat, torch.randn_like(x), torch.rand(6))
    seen, objective = [], wrong_confidence_with(y)

    def watched(logits):
        seen.append(objective(logits).detach())
        return objective(logits)

    settings_ = {"steps": steps, "step_size": threat.epsilon / 3, "momentum": momentum, "backtracking": backtracking}
    found = momentum_ascent(body, x, watched, threat, start=start, **settings_)
    assert threat.distance(found.images, x).max() <= threat.epsilon + 1e-5
    assert (found.images.min(), found.images.max()) >= (0, 0)
    assert found.images.max() <= 1
    torch.testing.assert_close(found.value, objective(body(found.images)).detach())
    first = seen[0]
    assert (found.value >= first).all()
    iterates = seen if backtracking == 1 else [*seen[0::2]]
    assert torch.equal(found.value, torch.stack(iterates).amax(0))
    assert not found.images.requires_grad


def test_one_step_without_momentum_from_the_image_is_the_better_of_image_and_sign_step():
    body, (x, y) = network().eval(), images(12)
    threat, objective = ThreatModel("linf", 0.1), wrong_confidence_with(y)
    found = momentum_ascent(body, x, objective, threat, start=x, steps=1, step_size=0.1, momentum=0.0, backtracking=1.0)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(body(point)).sum(), point)
    stepped = threat.project(x + 0.1 * gradient.sign(), x)
    with torch.no_grad():
        better = objective(body(stepped)) > objective(body(x))
    assert torch.equal(found.images, torch.where(better[:, None, None, None], stepped, x))


@pytest.mark.parametrize(("backtracking", "forward"), [(1.5, 2 * 7 + 1), (1.0, 7 + 1)])
def test_backtracking_costs_a_forward_pass_a_step(backtracking, forward):
    body, (x, y) = network().eval(), images(5)
    with counting(body) as passes:
        momentum_ascent(
            body,
            x,
            wrong_confidence_with(y),
            ThreatModel("linf", 0.1),
            start=x,
            steps=7,
            step_size=0.05,
            backtracking=backtracking,
        )
    assert (passes.forward, passes.backward) == (forward * 5, 7 * 5)


class Hill(nn.Module):
    """The height of a hill of one pixel, whose top is at 0.5; beyond it lies nothing but a fall."""

    def forward(self, x):
        return -(x.flatten(1) - 0.5).abs()


def test_a_step_that_would_fall_is_refused_and_shortened_while_momentum_goes_on():
    x, threat = torch.full((1, 1, 1, 1), 0.4), ThreatModel("linf", 0.5)
    points = []

    def height(logits):
        points.append(logits.detach().item())
        return logits[:, 0]

    found = momentum_ascent(Hill(), x, height, threat, start=x, steps=2, step_size=0.3, momentum=0.0, backtracking=1.5)
    # From .4 a step of .3 falls to .7; one of .2 to .6, no lower than .4, is taken.
    assert points == pytest.approx([-0.1, -0.2, -0.1, -0.1, -0.1], abs=1e-6)
    assert found.images.item() == pytest.approx(0.4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_start_lies_at_its_share_of_the_radius(norm):
    threat = ThreatModel(norm, 0.3)
    x, share = torch.full((4, 2, 3, 3), 0.5), torch.tensor([0.0, 0.25, 0.5, 1.0])
    start = within_ball(x, threat, torch.randn_like(x), share)
    torch.testing.assert_close(threat.distance(start, x), 0.3 * share)


def test_the_largest_wrong_probability_keeps_its_order_where_the_right_one_is_all_but_certain():
    logits = torch.tensor([[200.0, 0.0, 1.0], [200.0, 0.0, 2.0], [0.0, 3.0, 3.0]])
    values = wrong_confidence_with(torch.tensor([0, 0, 0]))(logits)
    assert values.tolist() == pytest.approx([-199.0, -198.0, logits[2].log_softmax(0)[1].item()])
