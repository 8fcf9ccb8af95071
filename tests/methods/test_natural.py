"""What a faithful implementation of natural training must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ThreatModel, counting
from methods import Natural
from methods.inner import Inner
from methods.recipe import Recipe
from tests.methods.tools import assert_same, batches_seen, images, loader, network, trainer, weights

THREAT = ThreatModel("linf", 0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_the_loss_is_torchs_cross_entropy_bit_for_bit(count, seed, dtype):
    x, y = images(count, seed)
    body = network().to(dtype).train()
    expected = F.cross_entropy(body(x.to(dtype)), y)
    assert torch.equal(Natural(body, THREAT).trace_step((x.to(dtype), y)).loss, expected)


def test_a_step_is_one_forward_one_backward_and_one_update_of_statistics_from_clean_data():
    x, y = images()
    method, by_hand = Natural(network(), THREAT).train(), network().train()
    with counting(method.network) as passes:
        step = method.trace_step((x, y))
        step.loss.backward()
    assert (passes.forward, passes.backward) == (len(x), len(x))
    assert batches_seen(method.network) == [1, 1]
    assert torch.equal(step.adversarial, x)
    by_hand(x)
    assert_same(weights(method.network), weights(by_hand))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changed",
    [
        {"threat": ThreatModel("linf", 0.3)},
        {"threat": ThreatModel("l2", 1.0)},
        {"inner": Inner(steps=1, step_size=0.5, mode="train")},
        {"recipe": Recipe(schedule="constant", epsilon_ramp=0.5)},
    ],
)
def test_threat_and_attack_are_accepted_and_change_nothing(changed):
    ends = []
    for settings_ in ({}, changed):
        arguments = {"threat": THREAT, "recipe": Recipe(schedule="constant")} | settings_
        method = Natural(network(dropout=0.2), **arguments)
        trainer(2).fit(method, loader(), loader())
        ends.append(weights(method.network))
    assert_same(*ends)
