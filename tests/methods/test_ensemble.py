"""What an ensemble of networks is to those who attack, save and count it."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.pgd import pgd
from methods.ensemble.members import Ensemble, log_mean_probability
from tests.golden import one
from tests.methods.tools import assert_same, images, network, weights


def ensemble(count=3):
    return Ensemble(network(seed=seed) for seed in range(count))


def test_it_repeats_the_ensemble_forward_of_dverge():
    case = one("adp", "ensemble_forward")
    x, y, _ = case.batch
    found, expected = case.network(x), case.expected
    assert found.flatten()[:16].tolist() == pytest.approx(expected["log_prob"]["first16"], rel=1e-12)
    assert found.shape == tuple(expected["log_prob"]["shape"])
    assert found.sum().item() == pytest.approx(expected["log_prob"]["sum"], rel=1e-12)
    assert found.norm().item() == pytest.approx(expected["log_prob"]["l2_norm"], rel=1e-12)
    assert F.cross_entropy(found, y).item() == pytest.approx(expected["cross_entropy_mean"], rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 100))
def test_probabilities_sum_to_one_and_the_likeliest_class_is_that_of_their_mean(seed, members, scale):
    logits = scale * torch.randn(members, 8, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found, mean = log_mean_probability(logits), logits.softmax(-1).mean(0)
    torch.testing.assert_close(found.exp(), mean)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(found.softmax(1), mean)
    assert torch.equal(found.argmax(1), mean.argmax(1))


def test_the_likeliest_class_may_differ_from_that_of_the_mean_logits():
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 2.0, 0.0]]])
    assert logits.mean(0).argmax(1).item() == 0
    assert log_mean_probability(logits).argmax(1).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_the_clamped_form_above_the_clamp_and_still_has_a_gradient_below(dtype):
    logits = torch.tensor([[[0.0, -30.0, -80.0, -150.0]], [[0.0, -40.0, -85.0, -150.0]]], dtype=dtype)
    logits.requires_grad_()
    found = log_mean_probability(logits)
    clamped = logits.double().softmax(-1).mean(0).clamp(min=1e-40).log()
    torch.testing.assert_close(found[:, :3].double(), clamped[:, :3], rtol=1e-6, atol=1e-12)
    assert clamped[0, 3].item() == pytest.approx(math.log(1e-40))
    assert found[0, 3].item() == pytest.approx(-150)
    (above,) = torch.autograd.grad(clamped[0, 3], logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(found[0, 3], logits)
    assert above.abs().max() == 0  # an attack would see nothing
    assert torch.isfinite(gradient).all()
    assert gradient[:, 0, 3].sum().item() == pytest.approx(1.0, rel=1e-5)


def test_members_that_are_as_sure_as_can_be_give_finite_logits_and_gradients():
    logits = torch.tensor([[[1e30, 0.0, -1e30]], [[-1e30, 0.0, 1e30]]], requires_grad=True)
    found = log_mean_probability(logits)
    (gradient,) = torch.autograd.grad(found[0, 1], logits)
    assert torch.isfinite(found).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_low_precision_are_widened_before_the_softmax(dtype):
    class Low(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3].to(dtype)

    x, _ = images(4)
    found = Ensemble([Low(), Low()])(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.flatten(1)[:, :3].to(dtype).float().log_softmax(1))


def test_its_weights_are_those_of_the_members_and_survive_safetensors(tmp_path):
    first, second = ensemble(), Ensemble(network(seed=seed) for seed in (7, 8, 9))
    assert sum(p.numel() for p in first.parameters()) == 3 * sum(p.numel() for p in network().parameters())
    save_file(first.state_dict(), tmp_path / "e.safetensors")
    second.load_state_dict(load_file(tmp_path / "e.safetensors"))
    assert_same(weights(first), weights(second))
    x, _ = images()
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_a_forward_of_the_ensemble_counts_every_member_as_does_a_forward_of_each():
    whole, (x, y) = ensemble(), images(6)
    with counting(whole) as passes:
        F.cross_entropy(whole(x), y).backward()
    assert (passes.forward, passes.backward) == (18, 18)
    with counting(whole) as passes:
        whole.members_logits(x).sum().backward()
    assert (passes.forward, passes.backward) == (18, 18)
    with counting(whole) as passes:
        whole.members[1](x).sum().backward()
    assert (passes.forward, passes.backward) == (6, 6)
    assert not any(module._forward_hooks for module in whole.modules())


def test_an_attack_on_it_climbs_the_mean_prediction_and_costs_a_pass_of_each_member_a_step():
    whole, (x, y) = ensemble().eval(), images(6)
    threat = ThreatModel("linf", 0.1)
    with counting(whole) as passes:
        attacked = pgd(whole, x, cross_entropy_with(y), threat, start=x, steps=4, step_size=0.025)
    assert (passes.forward, passes.backward) == (4 * 3 * 6, 4 * 3 * 6)
    before, after = (-whole(images_).gather(1, y[:, None]).mean() for images_ in (x, attacked))
    assert after > before


def test_no_member_at_all_and_the_same_one_twice_are_refused():
    with pytest.raises(BadInput, match="at least one member, but found none"):
        Ensemble([])
    same = network()
    with pytest.raises(BadInput, match="of 3 only 1 are different objects: build each of them anew"):
        Ensemble([same] * 3)
