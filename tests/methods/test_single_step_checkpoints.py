"""What a faithful implementation of single-step training with checkpoints must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.modes import in_mode
from attacks.pgd import pgd
from benchmark import suite
from benchmark.experiment import plan
from methods import SingleStepCheckpoints
from methods.base import Batch
from tests.golden import assert_images, cases
from tests.methods.from_golden.single_step_checkpoints import build as from_golden
from tests.methods.tools import EPSILON, batches_seen, gradients, images, network, trace

THREAT = ThreatModel("linf", EPSILON)
LARGE = ThreatModel("linf", 0.4)  # so large that the way crosses the boundary


def method(body=None, threat=THREAT, **own):
    return SingleStepCheckpoints(body or trained(), threat, **own).train()


def trained(steps=30):
    """A network that is right about most of its images."""
    body, (x, y) = network().train(), images(60)
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(body(x), y).backward()
        optimizer.step()
    return body


def by_hand(ours, x, y):
    """The whole perturbation's image, and whether the random start is right."""
    ours.draws.begin(epoch=0, step=0)
    threat = ours.threat
    start = (x + threat.epsilon * ours.draws.uniform(x)).clamp(0, 1)
    with in_mode(ours.network, "eval"), torch.no_grad():
        right = ours.network(start).argmax(1) == y
    with in_mode(ours.network, "eval"):
        step = 1.25 * threat.epsilon
        whole = pgd(ours.network, x, cross_entropy_with(y), threat, start=start, steps=1, step_size=step)
    return whole, right


def wrong(body, x, y):
    with in_mode(body, "eval"), torch.no_grad():
        return body(x).argmax(1) != y


class Says(nn.Module):
    """Says class 1 where an image's mean is above a bound of its own label, else class 0."""

    def __init__(self, bound):
        super().__init__()
        self.bound, self.weight = bound, nn.Parameter(torch.ones(()))

    def forward(self, x):
        margin = (x.flatten(1).mean(1) - self.bound) * self.weight
        return torch.stack([-margin, margin], 1)


@pytest.mark.parametrize("case", cases("single_step_checkpoints", "training_step"), ids=lambda case: case.name)
def test_predictions_choices_and_forwards_are_the_authors(case):
    ours, batch, expected = from_golden(case).double(), Batch.of(case.batch), case.expected
    ours.draws = case.draws
    seen = []
    case.network.register_forward_hook(
        lambda body, inputs, logits: seen.append((len(inputs[0]), body.training, logits.argmax(1).tolist()))
    )
    whole = super(SingleStepCheckpoints, ours).perturb(batch, cross_entropy_with(batch.y))
    right = torch.tensor(expected["predictions_at_noisy_point"]) == batch.y
    assert seen.pop()[2] == expected["predictions_at_noisy_point"]
    assert_images(whole, expected["x_full"])
    assert ours.first_wrong(batch, whole, right).tolist() == expected["chosen_k"]
    seen.clear()
    step = ours.trace_step(case.batch)
    modes = ["train" if training else "eval" for _, training, _ in seen]
    assert (modes, [size for size, *_ in seen]) == (expected["model_mode_per_forward"], expected["forward_batch_sizes"])
    moved = (step.adversarial - batch.x).abs().flatten(1).amax(1).mean().item()
    assert moved == pytest.approx(expected["mean_max_perturbation"], rel=1e-9)
    (noted,) = ours._notes["effective_epsilon"]
    assert noted.item() == pytest.approx(expected["mean_max_perturbation"], rel=1e-9)


def test_where_the_way_is_safe_it_is_training_on_the_image_of_one_random_step():
    body, (x, y) = trained(), images()
    y = body.eval()(x).argmax(1)  # nothing is wrong at a start this close
    ours = method(body, ThreatModel("linf", 1e-4))
    whole, right = by_hand(ours, x, y)
    adversarial = trace(ours, (x, y)).adversarial
    assert right.all()
    assert torch.equal(adversarial, whole)


def test_a_network_that_is_wrong_everywhere_is_trained_naturally():
    x, y = images()
    ours, alone = method(network()), network().train()
    y = (ours.network.eval()(x).argmax(1) + 1) % 3
    ours = method(network(), ThreatModel("linf", 1e-4))
    step = trace(ours, (x, y))
    loss = F.cross_entropy(alone(x), y)
    assert torch.equal(step.adversarial, x)
    assert torch.equal(step.loss, loss)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(alone.parameters()))])
    assert torch.equal(gradients(ours, step.loss), expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.sampled_from([2, 3, 5]), st.sampled_from([0.1, 0.3, 0.5]))
def test_each_image_lies_k_of_c_along_its_perturbation_and_k_is_the_first_that_is_wrong(seed, c, epsilon):
    x, y = images(12, seed)
    ours = method(trained(10), ThreatModel("linf", epsilon), checkpoints=c)
    whole, right = by_hand(ours, x, y)
    chosen = ours.first_wrong(Batch.of((x, y)), whole, right)
    adversarial = trace(ours, (x, y)).adversarial
    ways = [x + k / c * (whole - x) for k in range(c + 1)]
    for i, k in enumerate(chosen.tolist()):
        torch.testing.assert_close(adversarial[i], ways[k][i])
        assert (adversarial[i] - x[i]).abs().max() <= k / c * epsilon + 1e-6
        assert (k == 0) == (not right[i])
    looked_at = torch.stack([wrong(ours_before(ours), way, y) for way in ways[1:-1]])
    for i, k in enumerate(chosen.tolist()):
        if 0 < k < c:
            assert looked_at[k - 1, i]
        assert not looked_at[: max(0, k - 1), i].any() or k == 0


def ours_before(ours):
    """The network with the statistics that the choice saw: the trace's own forward has moved them since."""
    fresh = trained(10)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), ours.network.parameters(), strict=True))
    return fresh


def test_all_three_kinds_of_choice_occur():
    x, y = images(60)
    y = y.clone()
    y[:3] = (y[:3] + 1) % 3  # wrong wherever they start
    ours = method(threat=ThreatModel("linf", 0.25), checkpoints=5)
    whole, right = by_hand(ours, x, y)
    chosen = ours.first_wrong(Batch.of((x, y)), whole, right)
    assert {0, 2, 3, 4, 5} <= set(chosen.tolist())


def test_of_several_wrong_checkpoints_the_first_counts():
    x = torch.full((3, 1, 1, 1), 0.5)
    y, whole = torch.zeros(3, dtype=torch.int64), torch.tensor([0.7, 0.9, 1.0]).view(-1, 1, 1, 1)
    ours = SingleStepCheckpoints(Says(0.74), LARGE, checkpoints=5)
    chosen = ours.first_wrong(Batch.of((x, y)), whole, torch.tensor([True, True, True]))
    assert chosen.tolist() == [5, 4, 3]  # the first one's way ends before the boundary
    whole[0] = 0.75
    assert ours.first_wrong(Batch.of((x, y)), whole, torch.tensor([True, False, True])).tolist() == [5, 0, 3]


def test_permuting_the_batch_permutes_the_choice():
    x, y = images(60)
    ours = method(threat=LARGE, checkpoints=4)
    whole, right = by_hand(ours, x, y)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    chosen = ours.first_wrong(Batch.of((x, y)), whole, right)
    permuted = ours.first_wrong(Batch.of((x[order], y[order])), whole[order], right[order])
    assert torch.equal(permuted, chosen[order])


@pytest.mark.parametrize("inf_batch", [1, 60, 130, 1024])
def test_the_choice_does_not_depend_on_how_many_are_classified_at_once(inf_batch):
    x, y = images(60)
    at_once, ours = (method(threat=LARGE, checkpoints=5, inf_batch=size) for size in (None, inf_batch))
    whole, right = by_hand(ours, x, y)
    batch, sizes = Batch.of((x, y)), []
    expected = at_once.first_wrong(batch, whole, right)
    ours.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert torch.equal(ours.first_wrong(batch, whole, right), expected)
    assert all(size <= max(inf_batch, int(right.sum())) for size in sizes)
    if inf_batch == 1:
        assert len(sizes) == 4  # a checkpoint at a time
        assert sizes == sorted(sizes, reverse=True)  # whoever was found is left out


def test_statistics_move_once_a_step_and_the_network_is_in_train_mode_afterwards():
    ours = method(network())
    trace(ours, images())
    assert batches_seen(ours.network) == [1, 1]
    assert all(module.training for module in ours.modules())


def test_a_step_costs_two_passes_and_the_inner_checkpoints_of_what_is_right_at_the_start():
    x, y = images(60)
    ours = method(threat=LARGE)
    _, right = by_hand(ours, x, y)
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (2 * 60 + 2 * int(right.sum()), 2 * 60)


def test_one_checkpoint_checks_nothing():
    x, y = images(60)
    ours = method(threat=LARGE, checkpoints=1)
    whole, right = by_hand(ours, x, y)
    adversarial = trace(ours, (x, y)).adversarial
    assert torch.equal(adversarial, torch.where(right.view(-1, 1, 1, 1), whole, x))


def test_an_attack_in_train_mode_moves_statistics_and_the_checkpoints_do_not():
    x, y = images(60)
    ours = method(threat=LARGE, attack_mode="train")
    modes = []
    ours.network.register_forward_hook(lambda body, *_: modes.append(body.training))
    before = batches_seen(ours.network)
    trace(ours, (x, y))
    assert modes == [True, False, True]
    assert [now - then for now, then in zip(batches_seen(ours.network), before, strict=True)] == [2, 2]


def test_in_the_common_suite_start_and_step_follow_epsilon():
    (of,) = plan(suite.load("digits-common", {"methods": {"single_step_checkpoints": None}}))
    ours = of.build_method(of.build_network())
    assert (ours.checkpoints, ours.inner.steps, ours.inner.start) == (3, 1, "uniform")
    assert (ours.inner.mode, ours.inf_batch) == ("eval", None)
    x, y = images(60)
    moved = (trace(method(body=network(), threat=of.threat, checkpoints=1), (x * 0.5 + 0.25, y)).adversarial) - (
        x * 0.5 + 0.25
    )
    assert of.threat.epsilon == 0.15
    assert moved.abs().max().item() == pytest.approx(0.15, abs=1e-6)


def history(ours, **shares):
    """As if an epoch had noted these shares."""
    ours.history.append({"right_at_start": 0.9, "share_k0": 0.0, "share_k1": 0.0, "share_k2": 0.0, "share_k3": 0.0})
    ours.history[-1] |= shares
    return ours.remarks()


def test_the_row_shows_the_histogram_over_the_training_and_whether_the_mechanism_idled():
    ours = method()
    assert ours.remarks() == {}
    assert history(ours, share_k3=1.0)["mark"] == "mechanism idle"
    told = history(ours, share_k1=0.4, share_k3=0.6)
    assert told == pytest.approx(
        {"right_at_start": 0.9, "share_k0": 0, "share_k1": 0.2, "share_k2": 0, "share_k3": 0.8}
    )
    assert "mark" not in history(method(), share_k0=0.5, share_k3=0.5)
    assert history(method(), share_k0=0.51)["mark"] == "mechanism idle"


def test_a_step_notes_the_histogram_and_how_far_images_were_moved():
    x, y = images(60)
    ours = method(threat=LARGE)
    adversarial = trace(ours, (x, y)).adversarial
    noted = {name: values[0].item() for name, values in ours._notes.items()}
    assert sum(noted[f"share_k{k}"] for k in range(4)) == pytest.approx(1)
    assert noted["share_k0"] == pytest.approx(1 - noted["right_at_start"], abs=1e-6)
    assert noted["effective_epsilon"] == pytest.approx((adversarial - x).abs().flatten(1).amax(1).mean().item())
    assert noted["effective_share"] == pytest.approx(noted["effective_epsilon"] / 0.4)


@pytest.mark.parametrize("wrong", [{"checkpoints": 0}, {"inf_batch": 0}, {"step_size": "2 eps"}, {"attack_mode": "x"}])
def test_a_silly_setting_is_refused_by_name(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(BadInput, match="mode" if name == "attack_mode" else name):
        method(network(), **wrong)
