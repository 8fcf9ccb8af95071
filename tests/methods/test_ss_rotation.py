"""What a faithful implementation of training with rotations as a second task must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from benchmark import suite
from benchmark.experiment import plan
from methods import PGDAT, SSRotation
from methods.base import Batch
from methods.inner import Inner
from methods.semi_supervised.ss_rotation import both_tasks
from methods.turned import quarter_turns
from tests.methods.tools import batches_seen, gradients, images, loader, network, toy, trace, trainer

THREAT = ThreatModel("linf", 0.1)
IN_EVAL = Inner(steps=3, step_size="epsilon/4", start="uniform", boxed=False, mode="eval")


def method(body=None, **own):
    inner = own.pop("inner", replace(IN_EVAL, mode="train"))
    return SSRotation(network() if body is None else body, THREAT, inner=inner, **own).train()


def test_without_the_second_task_it_is_pgd_training_at_its_price():
    batch, body = images(), network()
    ours = method(rotation_weight=0.0)
    theirs = PGDAT(body, THREAT, inner=ours.inner).train()
    with counting(ours.network) as passes:
        step = trace(ours, batch)
    expected = trace(theirs, batch)
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    assert torch.equal(gradients(ours, step.loss), gradients(theirs, expected.loss))
    assert passes.forward == 4 * 24
    assert not any(parameter.requires_grad for parameter in ours.head.parameters())


def test_in_eval_mode_the_classified_images_are_attacked_as_by_pgd_whatever_the_weight():
    model, x, y, draws = toy()
    attacked = []
    for weight in (0.0, 0.5, 7.0):
        ours = SSRotation(model, THREAT, rotation_weight=weight, inner=IN_EVAL).double().eval()
        ours.draws = draws
        attacked.append(trace(ours, (x, y)).adversarial)
    assert torch.equal(attacked[0], attacked[1][:8])
    assert torch.equal(attacked[1], attacked[2])


def test_turns_are_counter_clockwise_in_blocks_and_four_of_them_are_none():
    x = torch.arange(2 * 9.0).reshape(2, 1, 3, 3)
    blocks = quarter_turns(x).split(2)
    assert torch.equal(blocks[0], x)
    assert blocks[1][0, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    again = x
    for block in (*blocks[1:], x):
        again = quarter_turns(again)[2:4]
        assert torch.equal(again, block)
    assert method().turns_of(x).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_each_head_learns_from_its_own_images_alone():
    (x, y), ours = images(), method().double().eval()
    seen = trace(ours, (x.double(), y))
    found = torch.autograd.grad(seen.loss, [*ours.head.parameters(), *ours.network[-1].parameters()])
    features = nn.Sequential(*ours.network[:-1])
    turned, upright = features(seen.adversarial[24:]).detach(), features(seen.adversarial[:24]).detach()
    rotation = 0.5 * F.cross_entropy(ours.head(turned), ours.turns_of(x))
    classes = F.cross_entropy(ours.network[-1](upright), y)
    expected = [
        *torch.autograd.grad(rotation, list(ours.head.parameters())),
        *torch.autograd.grad(classes, list(ours.network[-1].parameters())),
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=10, deadline=None)
@given(weight=st.floats(0.01, 100))
def test_in_eval_mode_the_weight_in_the_attack_changes_no_image(weight):
    x, y = images(6)
    ours = method(inner=IN_EVAL)
    turns = ours.turns_of(x)
    ours.draws.begin(epoch=0, step=0)
    first = ours.perturb(Batch.of((x, y)), lambda both: both_tasks(both, y, turns, 1 / 8))
    ours.draws.begin(epoch=0, step=0)
    other = ours.perturb(Batch.of((x, y)), lambda both: both_tasks(both, y, turns, weight))
    assert torch.equal(first, other)


def test_the_attack_climbs_as_many_times_the_loss_as_there_are_images():
    (x, y), ours = images(), method().double()
    both = torch.randn(5 * 24, 3 + 4, dtype=torch.float64)
    turns = ours.turns_of(x)
    loss = F.cross_entropy(both[:24, :3], y) + 0.5 * F.cross_entropy(both[24:, 3:], turns)
    torch.testing.assert_close(both_tasks(both, y, turns, 1 / 8).sum(), 24 * loss)


@pytest.mark.parametrize(("centre", "least", "most"), [("image", 0.09, 0.1), ("start", 0.12, 0.2)])
def test_images_stay_within_epsilon_but_for_the_authors_slip(centre, least, most):
    x, y = torch.full((24, 1, 8, 8), 0.5), images()[1]
    moved = trace(method(centre=centre), (x, y)).adversarial - 0.5
    assert least <= moved.abs().max() <= most + 1e-6


def test_turned_images_that_are_not_attacked_keep_their_start_in_eval_mode():
    (x, y), ours = images(), method(inner=IN_EVAL, attack_rotations=False)
    still = method(inner=replace(IN_EVAL, steps=0))
    step, start = trace(ours, (x, y)).adversarial, trace(still, (x, y)).adversarial
    within = THREAT.project(start, torch.cat([x, quarter_turns(x)]))
    torch.testing.assert_close(step[24:], within[24:], rtol=0, atol=1e-6)
    assert not torch.equal(step[:24], within[:24])


def test_what_is_saved_knows_no_second_head():
    ours, x = method(), images()[0]
    before = ours.classifier()(x)
    nn.init.ones_(ours.head.weight)
    assert torch.equal(ours.classifier()(x), before)
    assert ours.classifier().state_dict().keys() == network().state_dict().keys()
    assert ours.remarks()["parameters_in_training_only"] == 96 * 4 + 4


def test_a_step_with_ten_steps_of_attack_forwards_five_times_the_images_eleven_times():
    ours, sizes = method(inner=SSRotation(network(), THREAT).inner), []
    ours.network.register_forward_hook(lambda _body, inputs, _made: sizes.append(len(inputs[0])))
    trace(ours, images())
    assert sizes == [5 * 24] * 11
    assert set(batches_seen(ours.network)) == {11}


def test_training_tells_turns_by_turn_and_by_class_and_trains_the_second_head():
    ours = method()
    before = ours.head.weight.clone()
    trainer(2).fit(ours, loader(), loader())
    assert not torch.equal(ours.head.weight, before)
    last = ours.history[-1]
    told = [last[f"rotation_k{turn}"] for turn in range(4)]
    by_class = [last[f"rotation_class{label}"] for label in range(3)]
    assert sum(told) / 4 == pytest.approx(sum(by_class) / 3, abs=1e-5)  # the classes are as frequent
    assert "held_out_clean_train_mode" in last
    assert set(ours.remarks()) >= {"rotation_k0", "rotation_class2"}


def test_marks_say_what_is_ambiguous_what_batchnorm_costs_and_what_is_not_to_be_ranked():
    ours = method(ambiguous=True, centre="start")
    ours.history = [{"held_out_clean": 0.9, "held_out_clean_train_mode": 0.93}]
    assert {"mark", "batchnorm", "centre"} <= ours.remarks().keys()
    ours.history = [{"held_out_clean": 0.9, "held_out_clean_train_mode": 0.92}]
    assert "batchnorm" not in ours.remarks()
    assert method().remarks() == {"times_the_passes_of_pgd_at": 5, "parameters_in_training_only": 388}
    assert method(rotation_weight=0.0).remarks()["times_the_passes_of_pgd_at"] == 1


def test_the_common_track_attacks_by_a_quarter_of_epsilon_on_digits():
    (of,) = plan(suite.load("digits-common", {"methods": {"ss_rotation": {"ambiguous": True}}}))
    inner = of.settings["inner"]
    assert (inner["steps"], inner["step_size"], inner["mode"], inner["boxed"]) == (7, "epsilon/4", "train", False)
    assert of.build_method(of.build_network()).head.in_features == 512


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: trace(method(), (torch.rand(3, 1, 8, 6), torch.zeros(3).long())), "they are square, but found 8x6"),
        (lambda: method(body=nn.Sequential(nn.Flatten())), "found none in Sequential"),
        (lambda: method(rotation_weight=-1), "rotation_weight is 0 or more, but found -1"),
        (lambda: method(centre="noise"), "centre is one of image, start, but found 'noise'"),
        (lambda: method(inner=replace(IN_EVAL, patience=1)), "leave inner.patience at null, but found 1"),
    ],
)
def test_mistakes_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        wrong()
