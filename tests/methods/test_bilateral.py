"""What a faithful implementation of bilateral adversarial training must show."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from methods import Bilateral
from methods.base import Batch
from methods.variants.bilateral import adversarial_labels, most_confusing, nearest_boundary
from tests.methods.tools import EPSILON, batches_seen, gradients, images, loader, network, trace, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)
RULES = ("MC", "RAND", "MOSA", "MIX")


def method(body=None, threat=THREAT, **settings_):
    return Bilateral(network() if body is None else body, threat, **settings_).train()


def some_logits(seed, count=12, classes=10, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=draw, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=draw)


# The label


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0.5, 20), st.floats(0, 30))
def test_labels_are_distributions_whose_true_class_has_beta_times_the_largest_wrong_mass(seed, classes, beta, scale):
    logits, y = some_logits(seed, classes=classes, scale=scale)
    labels = adversarial_labels(logits, y, beta, 0.01)
    torch.testing.assert_close(labels.sum(1), torch.ones(len(y)).double())
    assert labels.min() >= 0
    true = labels.gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(true, beta * labels.scatter(1, y[:, None], 0).amax(1))
    assert true.min() >= beta / (beta + classes - 1) - 1e-12
    assert true.max() <= beta / (beta + 1) + 1e-12


def test_uniform_wrong_probabilities_leave_half_to_the_true_class_of_ten():
    for of_true in (0.0, 5.0):
        logits, y = torch.zeros(3, 10).double(), torch.tensor([0, 4, 9])
        logits[torch.arange(3), y] = of_true
        labels = adversarial_labels(logits, y, 9.0, 0.01)
        expected = torch.where(F.one_hot(y, 10).bool(), 0.5, 1 / 18).double()
        torch.testing.assert_close(labels, expected)


def test_mass_goes_to_the_classes_that_the_network_finds_unlikely():
    logits, y = torch.tensor([[9.0, 3.0, 0.0, -4.0]]), torch.tensor([0])
    labels = adversarial_labels(logits, y, 9.0, 0.01)[0]
    assert labels[3] > labels[2] > labels[1] > 0
    loss = -logits.log_softmax(1)[0]
    assert (labels[1] / labels[3]).item() == pytest.approx(0.01 / (loss[3] - loss[1] + 0.01).item(), rel=1e-3)


def test_of_two_classes_the_label_is_a_constant_and_the_row_says_label_smoothing():
    logits, y = some_logits(0, classes=2)
    labels = adversarial_labels(logits, y, 9.0, 0.01)
    torch.testing.assert_close(labels, torch.where(F.one_hot(y, 2).bool(), 0.9, 0.1).double())
    body = nn.Sequential(*list(network())[:-1], nn.Linear(96, 2))
    ours = method(body)
    x, y = images()
    trainer(1).fit(ours, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y % 2), batch_size=8))
    assert ours.remarks()["mark"] == "label smoothing: two classes leave the label no choice"
    assert ours.remarks()["true_class_mass"] == pytest.approx(0.9)


def test_probabilities_of_zero_cost_no_more_than_the_authors_floor_allows():
    logits, y = torch.tensor([[0.0, -500.0, -3.0]]), torch.tensor([0])
    labels = adversarial_labels(logits, y, 9.0, 0.01)[0]
    assert labels.isfinite().all()
    likely = -math.log(math.exp(-3) / (1 + math.exp(-3)) + 1e-8)
    assert (labels[2] / labels[1]).item() == pytest.approx(0.01 / (-math.log(1e-8) - likely + 0.01), rel=1e-4)


@pytest.mark.parametrize("settings_", [{"label_adversary": False}, {"beta": 1e12}])
def test_without_the_label_adversary_or_with_all_mass_on_the_truth_labels_are_hard(settings_):
    x, y = images()
    ours, by_hand = method(network().double(), **settings_), network().double().train()
    step = trace(ours, (x.double(), y))
    torch.testing.assert_close(step.loss, F.cross_entropy(by_hand(step.adversarial), y))


# The image


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 10))
def test_the_target_is_never_the_true_class(rule, seed, classes):
    logits, y = some_logits(seed, classes=classes, scale=1e-3 if seed % 3 == 0 else 3.0)  # ties within the floor, too
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).double()
    x = torch.zeros(len(y), 1, 8, 8).double()
    targets = method(body, target_rule=rule).targets(Batch(x, y, torch.arange(len(y))), logits)
    assert (targets != y).all()
    assert targets.min() >= 0
    assert targets.max() < classes


def test_random_targets_are_uniform_among_the_wrong_classes_and_another_step_draws_others():
    y = torch.arange(3).repeat(2000)
    batch = Batch(torch.zeros(len(y), 1, 1, 1), y, torch.arange(len(y)))
    ours = method(target_rule="RAND")
    ours.draws.begin(epoch=0, step=0)
    first = ours.targets(batch, torch.zeros(len(y), 3))
    for true in range(3):
        counts = first[y == true].bincount(minlength=3)
        assert counts[true] == 0
        assert counts.max() < 1100
    ours.draws.begin(epoch=0, step=0)
    assert torch.equal(ours.targets(batch, torch.zeros(len(y), 3)), first)
    ours.draws.begin(epoch=0, step=1)
    assert not torch.equal(ours.targets(batch, torch.zeros(len(y), 3)), first)


def test_the_most_confusing_class_of_a_wrong_image_is_its_prediction():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert most_confusing(logits, torch.tensor([0, 0])).tolist() == [1, 2]


def test_the_nearest_boundary_counts_the_length_of_the_weights_difference():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0]])
    logits = torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.0, 3.5]])
    y = torch.tensor([0, 0])
    assert nearest_boundary(logits, y, weight).tolist() == [2, 1]  # 3 / 10 before 1 / 1; what leads is left out
    assert nearest_boundary(torch.zeros(1, 3), torch.tensor([0]), weight).item() == 1  # the authors would take 0
    mixed = method(nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), target_rule="MIX")
    with torch.no_grad():
        mixed.network[1].weight.copy_(weight)
    batch = Batch(torch.zeros(2, 1, 1, 2), y, torch.arange(2))
    assert mixed.targets(batch, logits).tolist() == [2, 2]  # the second image is wrong, so its prediction


def test_for_a_linear_model_the_image_moves_so_that_the_target_rises():
    x, y = images(6)
    x = 0.5 + 0.1 * (x.double() - 0.5)  # far from the bounds
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    ours = method(body)
    ours.draws.begin(epoch=0, step=0)
    start = x + EPSILON * ours.draws.uniform(x)
    target = most_confusing(body(x), y)
    weight = body[1].weight.detach()
    mean = body(start).softmax(1).detach() @ weight
    direction = (weight[target] - mean).sign().reshape(x.shape)
    expected = (start + EPSILON * direction - x).clamp(-EPSILON, EPSILON) + x
    adversarial = trace(ours, (x, y)).adversarial
    torch.testing.assert_close(adversarial, expected)
    after, before = body(adversarial).log_softmax(1), body(start).log_softmax(1)
    assert (after.gather(1, target[:, None]) > before.gather(1, target[:, None])).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.sampled_from([1 / 255, 0.15, 0.6]), st.sampled_from(["epsilon", "epsilon/2"]))
def test_images_stay_in_the_ball_that_is_trained_with(seed, epsilon, radius):
    x, y = images(6, seed)
    adversarial = trace(method(threat=THREAT.at(epsilon), train_epsilon=radius), (x, y)).adversarial
    largest = epsilon / (2 if radius == "epsilon/2" else 1)
    assert (adversarial - x).abs().max() <= largest + 1e-6
    assert (adversarial - x).abs().max() > 0.9 * min(largest, 0.5)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_the_start_is_uniform_in_the_ball_and_unclipped_before_the_gradient():
    x, y = images()
    seen = []
    ours = method()
    ours.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    trace(ours, (x, y))
    ours.draws.begin(epoch=0, step=0)
    assert torch.equal(seen[1], x + EPSILON * ours.draws.uniform(x))
    assert seen[1].min() < 0


# The step


def test_a_step_costs_three_forwards_and_two_backwards_and_moves_the_statistics_once():
    x, y = images()
    ours = method()
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (3 * len(x), 2 * len(x))
    assert set(batches_seen(ours.network)) == {1}


def test_neither_label_nor_target_carries_a_gradient():
    x, y = images()
    ours, by_hand = method(network().double()), network().double().train()
    step = trace(ours, (x.double(), y))
    labels = adversarial_labels(network().double().eval()(x.double()).detach(), y, 9.0, 0.01)
    expected = F.cross_entropy(by_hand(step.adversarial), labels)
    torch.testing.assert_close(step.loss, expected)
    plain = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(by_hand.parameters()))])
    torch.testing.assert_close(gradients(ours, step.loss), plain)


def test_target_and_label_come_from_the_clean_image_in_eval_mode():
    x, y = images()
    modes = []
    ours = method()
    ours.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trace(ours, (x, y))
    assert modes == [False, False, True]


def test_the_true_classes_mean_mass_stands_in_the_history():
    ours = method()
    trainer(2).fit(ours, loader())
    masses = ours.noted("true_class_mass")
    assert len(masses) == 2
    assert all(9 / 11 - 1e-6 <= mass < 0.9 for mass in masses)  # of three classes
    assert ours.remarks() == {"true_class_mass": masses[-1]}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target_rule": "mc"}, "target_rule is one of MC, RAND, MOSA, MIX, but found 'mc'"),
        ({"beta": 0}, "beta is above 0, but found 0"),
        ({"gamma": -1}, "gamma is above 0, but found -1"),
        ({"train_epsilon": "half"}, "train_epsilon is a number in pixel units"),
        ({"attack_mode": "test"}, "attack_mode is one of eval, train, batch"),
    ],
)
def test_mistakes_in_settings_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        method(**wrong)
