"""What a faithful implementation of the regularisers for single-step training must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.modes import in_mode
from attacks.pgd import fgsm
from benchmark import suite
from benchmark.experiment import plan
from methods import SATR
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import cases
from tests.methods.from_golden.sat_r import build as from_golden
from tests.methods.ranks import smooth
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    gradients,
    images,
    loader,
    network,
    statistics,
    trace,
    trainer,
)

THREAT = ThreatModel("linf", EPSILON)
VARIANTS = ("R1", "R2", "R3")
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def method(variant, body=None, threat=THREAT, steps=3, **own):
    inner = Inner(steps=steps, step_size="epsilon", start="none", mode="eval")
    return SATR(network() if body is None else body, threat, variant=variant, inner=inner, **own).train()


def plain():
    """Without BatchNorm, in float32."""
    return smooth().float()


def fgsm_step(body, x, y, epsilon=EPSILON):
    """The loss and gradient of FGSM training with an attack in eval mode."""
    with in_mode(body, "eval"):
        attacked = fgsm(body, x, y, THREAT.at(epsilon))
    loss = F.cross_entropy(body(attacked), y)
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(body.parameters()))])


@pytest.mark.parametrize("case", cases("sat_r", "training_step"), ids=lambda case: case.name)
def test_forwards_have_the_authors_sizes_and_modes(case):
    ours, seen = from_golden(case).double(), []
    ours.draws = case.draws
    case.network.register_forward_hook(lambda body, inputs, _: seen.append((body.training, len(inputs[0]))))
    ours.trace_step(case.batch)
    modes = ["train" if training else "eval" for training, _ in seen]
    # Ours iterates on the last image first; the attacks do not know of one another.
    assert sorted(modes) == sorted(case.expected["model_mode_per_forward"])
    assert sorted(size for _, size in seen) == sorted(case.expected["forward_batch_sizes"])
    assert seen[-1] == (True, case.expected["forward_batch_sizes"][-1])


@pytest.mark.parametrize("variant", ["R1", "R2"])
def test_without_a_regulariser_it_is_fgsm_training_with_an_attack_in_eval_mode(variant):
    x, y = images()
    ours = method(variant, plain(), lam=0.0)
    step = trace(ours, (x, y))
    loss, gradient = fgsm_step(plain(), x, y)
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(gradients(ours, step.loss), gradient)


def test_with_statistics_at_rest_the_rows_beside_do_not_matter():
    x, y = images()
    for variant in ("R1", "R2"):
        ours = method(variant, lam=0.0).eval()
        loss, gradient = fgsm_step(network().eval(), x, y)
        step = trace(ours, (x, y))
        torch.testing.assert_close(step.loss, loss)
        torch.testing.assert_close(gradients(ours, step.loss), gradient)


def test_r3_without_regulariser_and_start_is_fgsm_training_at_the_far_radius():
    x, y = images()
    ours = method("R3", plain(), lam=0.0, alpha=0.0)
    step = trace(ours, (x, y))
    loss, gradient = fgsm_step(plain(), x, y)
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(gradients(ours, step.loss), gradient)


def test_r2_without_a_move_compares_equal_rows():
    ours = method("R2", alpha=0.0)
    step = trace(ours, images())
    first, second = step.adversarial.chunk(2)
    assert torch.equal(first, second)
    assert ours._notes["logit_distance"][0] == 0


def test_r1_with_one_step_compares_equal_rows():
    ours = method("R1", plain(), steps=1)
    step = trace(ours, images())
    assert torch.equal(step.adversarial[-1], step.adversarial[-2])
    assert ours._notes["logit_distance"][0] == pytest.approx(0, abs=1e-10)


def test_r1_iterates_in_equal_shares_of_epsilon_from_the_last_image_alone():
    x, y = images()
    ours = method("R1", steps=4)
    adversarial = trace(ours, (x, y)).adversarial
    body = network().eval()
    expected = x[-1:]
    for _ in range(4):
        point = expected.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(body(point), y[-1:]), point)
        expected = (expected + EPSILON / 4 * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(adversarial[-1:], expected)
    assert len(adversarial) == len(x) + 1


def test_a_large_tau_leaves_the_far_cross_entropy_and_its_gradient_alone():
    x, y = images()
    body = plain()
    ours = method("R3", body, tau=100.0)
    step = trace(ours, (x, y))
    _, far = step.adversarial.chunk(2)
    loss = F.cross_entropy(body(far), y)
    torch.testing.assert_close(step.loss, loss)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(body.parameters()))])
    torch.testing.assert_close(gradients(ours, step.loss), expected)
    assert ours._notes["hinge_active"][0] == 0


def test_the_hinge_compares_the_means_of_the_batch():
    x, y = images()
    body = plain()
    ours = method("R3", body, tau=0.2, lam=0.7)
    step = trace(ours, (x, y))
    low, high = (F.cross_entropy(body(half), y) for half in step.adversarial.chunk(2))
    assert ours._notes["hinge_active"][0] == 1
    torch.testing.assert_close(step.loss, high + 0.7 * (low - 0.2 * high))


def test_r3_goes_near_and_far_along_one_gradient_at_the_moved_image():
    x, y = images()
    x = x * 0.4 + 0.3  # nothing is cut off at the range
    ours = method("R3", alpha=0.02, eps_low=0.03)
    near, far = trace(ours, (x, y)).adversarial.chunk(2)
    direction = (far - near).sign()
    assert torch.allclose(far - near, (EPSILON - 0.03) * direction, atol=1e-6)
    corner = near - 0.03 * direction - x
    assert torch.allclose(corner.abs(), torch.full_like(corner, 0.02), atol=1e-6)


def test_r1_sees_its_regulariser_through_the_last_image_alone():
    x, y = images()
    other = x.clone()
    other[:-1] = other[:-1].flip(0)
    ours = [method("R1", plain()) for _ in range(2)]
    for one, of in zip(ours, (x, other), strict=True):
        trace(one, (of, y))
    first, second = (one._notes["logit_distance"][0] for one in ours)
    assert first > 0
    torch.testing.assert_close(first, second)


def test_the_gradient_flows_through_both_sides_of_the_distance():
    x, y = images(3)
    body = plain()
    step = trace(ours := method("R2", body, lam=2.0), (x, y))
    one, other = (body(half) for half in step.adversarial.chunk(2))
    loss = F.cross_entropy(one, y) + 2 * (one - other).pow(2).sum(1).mean()
    torch.testing.assert_close(step.loss, loss)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(body.parameters()))])
    torch.testing.assert_close(gradients(ours, step.loss), expected)


@every_variant
def test_statistics_move_once_a_step_and_on_the_joint_batch(variant):
    x, y = images()
    ours, by_hand = method(variant), network().train()
    adversarial = trace(ours, (x, y)).adversarial
    assert batches_seen(ours.network) == [1, 1]
    by_hand(adversarial)
    assert_same(statistics(ours.network), statistics(by_hand))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VARIANTS), st.integers(0, 50), st.sampled_from([1 / 255, 0.1, 0.4]), st.booleans())
def test_images_stay_in_the_range_and_in_the_ball_that_the_variant_has(variant, seed, epsilon, project):
    x, y = images(6, seed)
    ours = method(variant, threat=THREAT.at(epsilon), alpha="epsilon/4", project=project)
    adversarial = trace(ours, (x, y)).adversarial
    distance = (adversarial - torch.cat([x, x])[: len(adversarial)]).abs().flatten(1).amax(1)
    if variant == "R1":
        distance[-1] = (adversarial[-1] - x[-1]).abs().max()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    beyond = 0 if project or variant == "R1" else epsilon / 4
    assert distance.max() <= epsilon + beyond + 1e-6
    if variant == "R2":
        assert distance[:6].max() <= epsilon + 1e-6  # the half without a move
    assert ours._notes["largest_radius"][0] == pytest.approx(epsilon + beyond)


def test_the_moved_half_does_leave_the_ball():
    x, y = images()
    far = (trace(method("R2", alpha="epsilon/2"), (x, y)).adversarial[len(x) :] - x).abs().max()
    assert far.item() == pytest.approx(1.5 * EPSILON, rel=1e-4)


@every_variant
def test_passes_are_those_of_the_specification(variant):
    x, y = images()
    ours, count = method(variant, steps=3), 24
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    expected = {"R1": count + 3 + count + 1, "R2": 4 * count, "R3": 3 * count}[variant]
    assert (passes.forward, passes.backward) == (expected, expected)


# The two families of constants


@pytest.mark.parametrize(
    ("channels", "variant", "lam", "tau", "alpha", "eps_low"),
    [
        (1, "R1", 0.2, 0.4, 0.005, 0.05),
        (1, "R2", 5.0, 0.4, 0.005, 0.05),
        (1, "R3", 1.0, 0.4, 0.005, 0.05),
        (3, "R1", 0.2, 0.6, 0.0375, 0.0375),
        (3, "R2", 25.0, 0.6, 0.0375, 0.0375),
        (3, "R3", 1.0, 0.6, 0.0375, 0.0375),
    ],
)
def test_none_stands_for_the_constants_of_the_images_family(channels, variant, lam, tau, alpha, eps_low):
    x = torch.zeros(2, channels, 8, 8)
    ours = method(variant, threat=THREAT.at(0.15))
    assert (ours.constants(x).lam, ours.constants(x).tau) == (lam, tau)
    assert (ours._length("alpha", x), ours._length("eps_low", x)) == pytest.approx((alpha, eps_low))
    other = method(variant, family="colour" if channels == 1 else "grey")
    assert other.constants(x) == method(variant).constants(torch.zeros(2, 4 - channels, 8, 8))
    chosen = method(variant, lam=0.0, tau=0.0, alpha=0.0, eps_low="epsilon/9").constants(x)
    assert chosen == (0.0, 0.0, "epsilon/9", 0.0)


def test_in_the_common_suite_r2_trains_a_thirtieth_beyond_epsilon():
    (of,) = plan(suite.load("digits-common", {"methods": {"sat_r": None}}))
    ours = of.build_method(of.build_network()).train()
    assert (ours.variant, ours.inner.mode) == ("R2", "eval")
    trace(ours, (torch.rand(4, 1, 8, 8), torch.arange(4)))
    assert ours._notes["largest_radius"][0].item() == pytest.approx(0.155)
    assert (ours.inner.steps, of.threat.epsilon / 7) == (7, pytest.approx(0.0214, abs=1e-4))  # of R1's last image


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("R1", {"largest_radius", "cross_entropy", "logit_distance", "regularised_images"}),
        ("R2", {"largest_radius", "cross_entropy", "logit_distance"}),
        ("R3", {"largest_radius", "cross_entropy", "cross_entropy_low"}),
    ],
)
def test_the_row_shows_the_largest_radius_and_what_the_regulariser_saw_at_the_end(variant, names):
    ours = method(variant)
    assert ours.remarks() == {}
    trainer(2).fit(ours, loader())
    told = ours.remarks()
    assert told.keys() == names
    assert told["largest_radius"] == pytest.approx(EPSILON * (1 if variant == "R1" else 31 / 30))
    assert told["cross_entropy"] == ours.history[-1]["cross_entropy"]
    assert told.get("regularised_images", 1) == 1


def test_of_a_ramp_the_row_shows_the_last_and_largest_radius():
    ours = method("R2", recipe=Recipe(epochs=1, epsilon_ramp=1.0))
    trainer(1).fit(ours, loader())
    assert ours.remarks()["largest_radius"] == pytest.approx(EPSILON * 31 / 30)
    assert ours.history[0]["largest_radius"] < EPSILON


def test_on_two_devices_r1_looks_at_the_last_image_of_each():
    ours = method("R1")
    ours._ranks = lambda: 2
    trace(ours, images())
    assert [float(value) for value in ours._notes["regularised_images"]] == [2.0]


def test_an_attack_in_l2_moves_along_directions_of_length_one():
    threat = ThreatModel("l2", 0.5)
    x, y = images()
    adversarial = trace(method("R2", threat=threat, alpha="epsilon/5"), (x, y)).adversarial
    distance = threat.distance(adversarial, torch.cat([x, x]))
    assert distance[: len(x)].max() <= 0.5 + 1e-6
    assert 0.45 < distance[len(x) :].max() <= 0.6 + 1e-6


@pytest.mark.parametrize(
    "wrong", [{"variant": "R4"}, {"family": "blue"}, {"lam": -1.0}, {"tau": -0.1}, {"alpha": "eps"}, {"eps_low": -1.0}]
)
def test_a_silly_setting_is_refused_by_name(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(BadInput, match=f"^{name} is "):
        SATR(network(), THREAT, **wrong)


@pytest.mark.parametrize("inner", [Inner(start="none"), Inner(step_size="epsilon", start="uniform")])
def test_a_start_or_step_that_it_would_ignore_is_refused(inner):
    with pytest.raises(BadInput, match=r"leave inner.step_size epsilon and inner.start none"):
        SATR(nn.Identity(), THREAT, inner=inner)
