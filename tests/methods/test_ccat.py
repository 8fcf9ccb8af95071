"""What a faithful implementation of CCAT must show."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import wrong_confidence_with
from methods import CCAT
from methods.base import Batch
from methods.generalization.ccat import TAU, TAU_LIFT, faded
from methods.rejection import Answers, judge, threshold
from methods.selection import Score
from tests.methods.tools import batches_seen, gradients, images, loader, network, trace, trainer

THREAT = ThreatModel("linf", 0.15)


def method(body=None, threat=THREAT, steps=7, **settings_):
    made = CCAT(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def test_without_a_radius_it_is_natural_training_on_two_halves():
    x, y = images()
    made = method(threat=THREAT.at(0.0))
    step = trace(made, (x, y))
    logits = made.network(x)
    halves = (F.cross_entropy(logits[:12], y[:12]) + F.cross_entropy(logits[12:], y[12:])) / 2
    torch.testing.assert_close(step.loss, halves)
    assert torch.equal(step.adversarial, x[12:])
    assert made._notes["label_share"][0] == 1


def test_at_the_full_radius_the_label_is_uniform_and_so_is_the_best_answer():
    made, x = method(), torch.full((4, 1, 8, 8), 0.5)
    share = made.label_share(x + 0.15, x)
    torch.testing.assert_close(share, torch.zeros(4))
    logits = torch.zeros(4, 10, requires_grad=True)
    loss = F.cross_entropy(logits, faded(torch.arange(4), share, logits))
    assert loss.item() == pytest.approx(math.log(10))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros(4, 10), rtol=0, atol=1e-7)
    other = F.cross_entropy(torch.eye(4, 10), faded(torch.arange(4), share, logits))
    assert other > loss


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"rho": 1}, [1, 0.8, 0.5, 0, 0]),
        ({"rho": 1e-9}, [1, 1, 1, 0, 0]),
        ({"rho": 12}, [1, 0.8**12, 0.5**12, 0, 0]),
        ({"rho": 2, "transition": "exponential"}, [1, math.exp(-0.4), math.exp(-1), math.exp(-2), math.exp(-4)]),
    ],
)
def test_the_true_labels_share_falls_with_the_largest_pixels_change(own, expected):
    made, x = method(threat=ThreatModel("linf", 0.25), **own), torch.zeros(5, 1, 8, 8)
    moved = x.clone()
    moved[:, 0, 3, 3] = 0.25 * torch.tensor([0, 0.2, 0.5, 1, 2])
    moved[:, 0, 0, 0] = 0.01 * torch.tensor([0.0, 1, 1, 1, 1])
    torch.testing.assert_close(made.label_share(moved, x), torch.tensor(expected, dtype=torch.float32))


def test_labels_are_distributions_with_their_share_on_the_true_class():
    target = faded(torch.tensor([0, 3]), torch.tensor([0.25, 1.0]), torch.zeros(2, 5))
    torch.testing.assert_close(target.sum(1), torch.ones(2))
    torch.testing.assert_close(target[0], torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]))
    assert target[1].tolist() == [0, 0, 0, 1, 0]


def test_the_losss_gradient_does_not_flow_through_perturbation_or_label():
    x, y = images()
    made = method()
    step = trace(made, (x, y))
    share = made.label_share(step.adversarial, x[12:])
    logits = made.network(torch.cat([x[:12], step.adversarial]))
    constant = faded(y[12:], share, logits)
    loss = (F.cross_entropy(logits[:12], y[:12]) + F.cross_entropy(logits[12:], constant)) / 2
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(gradients(made, step.loss), gradients(made, loss))
    carrying = made.label_share(step.adversarial.requires_grad_(), x[12:])
    assert not carrying.requires_grad


def test_different_images_are_clean_and_attacked_in_one_batch_of_normalisation():
    x, y = images()
    made, seen = method(), []
    made.network.register_forward_pre_hook(lambda body, inputs: seen.append((body.training, inputs[0].detach())))
    step = trace(made, (x, y))
    assert [training for training, _ in seen].count(True) == 1  # the attack is in eval mode
    assert torch.equal(seen[-1][1], torch.cat([x[:12], step.adversarial]))
    assert batches_seen(made.network) == [1, 1]
    assert THREAT.distance(step.adversarial, x[12:]).max() > 0.1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_odd_batch_has_the_smaller_part_clean_and_its_share_weighs_the_attacked(count):
    x, y = images(count)
    made = method()
    step = trace(made.eval(), (x, y))
    m = count // 2
    logits = made.network(torch.cat([x[:m], step.adversarial]))
    target = faded(y[m:], made.label_share(step.adversarial, x[m:]), logits)
    clean = F.cross_entropy(logits[:m], y[:m]) if m else torch.tensor(0.0)
    expected = (1 - m / count) * clean + m / count * F.cross_entropy(logits[m:], target)
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize(
    ("steps", "momentum", "step"),
    [(7, 0.4286, 0.0536), (40, 0.9, 0.025), (10, 0.6, 0.0375), (5, 0.2, 0.075), (3, 0.0, 0.125)],
)
def test_momentum_and_step_follow_the_number_of_steps(steps, momentum, step, monkeypatch):
    found = {}
    monkeypatch.setattr("methods.generalization.ccat.momentum_ascent", lambda *_, **settings_: found.update(settings_))
    made, (x, y) = method(), images(4)
    made.ascend(made.network, x, wrong_confidence_with(y), THREAT, x, steps)
    assert (found["momentum"], found["step_size"]) == pytest.approx((momentum, step), abs=5e-5)
    assert (found["backtracking"], found["steps"]) == (1.5, steps)


def test_a_batch_starts_in_one_of_three_ways_the_same_on_all_devices():
    made, (x, _) = method(), images(12)
    starts = {}
    for step in range(30):
        made.draws.begin(epoch=0, step=step)
        delta = made.begin(x, THREAT) - x
        largest = delta.abs().flatten(1).amax(1)
        kind = "zero" if not delta.any() else "gaussian" if delta.std() < 0.03 and largest.std() < 0.01 else "direction"
        starts.setdefault(kind, []).append((delta, largest))
        made.draws.begin(epoch=0, step=step, rank=1)
        other = made.begin(x, THREAT) - x
        assert other.any() == delta.any()
        assert kind == "zero" or not torch.equal(other, delta)
    assert all(len(of) >= 4 for of in starts.values())
    assert set(starts) == {"zero", "gaussian", "direction"}
    spread = torch.cat([delta for delta, _ in starts["gaussian"]]).std().item()
    assert spread == pytest.approx(0.15 / (2 * math.log(64)), rel=0.05)  # .018 on digits
    radii = torch.cat([largest for _, largest in starts["direction"]])
    assert radii.max() <= 0.15
    assert radii.mean().item() == pytest.approx(0.075, rel=0.2)


def test_seven_steps_cost_what_the_common_track_says():
    x, y = images()
    made = method()
    with counting(made.network) as passes:
        trace(made, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (8.5 * len(x), 4.5 * len(x))


# The choice of the best epoch, and what is told


def test_an_epoch_is_scored_by_its_error_at_the_threshold_of_its_own_clean_images():
    made, ended = method(steps=2), []
    score = made.score_held_out
    made.score_held_out = lambda plain: ended.append((plain, score(plain))) or ended[-1][1]
    held_out = loader(20, batch_size=7, indexed=True, seed=2)
    trainer(2, num_sanity_val_steps=0).fit(made, loader(16), held_out)
    for (plain, (found, more)), line in zip(ended, made.history, strict=True):
        assert isinstance(plain, Score)
        assert line["held_out_robust"] == found.robust
        assert line["held_out_clean"] == found.clean == plain.clean
        assert (line[TAU], line[TAU_LIFT]) == (more[TAU], more[TAU] * 3)
    answers = torch.cat(made._answers).numpy()
    assert len(answers) == 20
    clean = Answers(answers[:, 0] > 0, answers[:, 2])
    tau = threshold(clean)
    assert tau == more[TAU]
    assert found.robust == 1 - judge(clean, Answers(answers[:, 1] > 0, answers[:, 3]), tau).error
    with torch.no_grad():
        probabilities = made.network.eval()(torch.cat([x for x, *_ in held_out])).softmax(1)
    torch.testing.assert_close(torch.from_numpy(clean.confidence), probabilities.amax(1).double())


def test_the_held_out_attack_beats_both_of_its_starts_and_repeats():
    made = method()
    x, y = images(9)
    for _ in range(2):
        made.held_out_counts(Batch(x, y, torch.arange(9)))
    first, second = made._answers
    assert torch.equal(first, second)
    with torch.no_grad():
        clean = wrong_confidence_with(y)(made.network.eval()(x)).exp()
    wrong = np.asarray(first[:, 1]) > 0
    assert (first[:, 3].numpy()[wrong] >= clean.double().numpy()[wrong] - 1e-6).all()


def test_a_row_says_where_rejection_means_nothing():
    made = method()
    assert made.remarks() == {"plain": "plain figures under attack are without rejection (no reject)"}
    line = {"label_share": 0.7, "at_epsilon": 0.1, TAU: 0.15, TAU_LIFT: 1.5}
    made.history = [line]
    told = made.remarks()
    assert told["threshold"] == "red: threshold near chance"
    assert told["labels"].startswith("amber: ")
    assert (told["label_share"], told["at_epsilon"], told[TAU]) == (0.7, 0.1, 0.15)
    made.history = [{**line, "label_share": 0.2, TAU: 0.4, TAU_LIFT: 4.0}]
    assert not {"threshold", "labels"} & made.remarks().keys()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rho": -1}, "rho is 0 or more, but found -1"),
        ({"fraction": 1.0}, "fraction lies between 0 and 1, both excluded, but found 1"),
        ({"transition": "tanh"}, "transition is one of power, exponential, but found 'tanh'"),
        ({"momentum": 1.0}, "momentum lies between 0 and 1, or is null for the rule, but found 1"),
        ({"backtracking": 0.5}, "backtracking is 1 or more, but found 0.5"),
        ({"reach": -1}, "reach is 0 or more, but found -1"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong, says):
    with pytest.raises(BadInput, match=says):
        method(**wrong)
