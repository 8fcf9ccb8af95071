import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import (
    BadInput,
    cross_entropy_with,
    dlr_with,
    kl_divergence,
    kl_from,
    margin,
    margin_with,
    targeted_dlr_with,
)
from attacks.objectives import away_from_prediction, towards, towards_least_likely

seeds = st.integers(0, 2**31)


def logits(seed, n=6, classes=5, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    return z, torch.randint(0, classes, (n,), generator=draw)


@settings(deadline=None)
@given(seeds)
def test_the_margin_is_positive_exactly_where_the_network_is_wrong(seed):
    z, y = logits(seed)
    assert torch.equal(margin(z, y) > 0, z.argmax(1) != y)


def test_the_margin_is_the_best_wrong_logit_minus_the_right_one():
    z = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert margin(z, torch.tensor([0, 2])).tolist() == [-1.0, 1.0]


def test_the_margin_pulls_on_two_logits_only():
    z, y = logits(0)
    z.requires_grad_()
    margin_with(y)(z).sum().backward()
    assert z.grad.abs().sum(1).tolist() == [2.0] * len(y)
    assert z.grad.gather(1, y[:, None]).tolist() == [[-1.0]] * len(y)


@settings(deadline=None)
@given(seeds, st.floats(-50, 50), st.floats(0.1, 50))
def test_dlr_knows_neither_shift_nor_scale(seed, shift, scale):
    z, y = logits(seed)
    torch.testing.assert_close(dlr_with(y)(scale * z + shift), dlr_with(y)(z), rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seeds)
def test_dlr_is_equation_6_of_its_paper(seed):
    z, y = logits(seed)
    ordered = z.sort(dim=1, descending=True).values
    wrong = torch.where(z.argmax(1) == y, ordered[:, 1], ordered[:, 0])
    expected = -(z[torch.arange(len(y)), y] - wrong) / (ordered[:, 0] - ordered[:, 2] + 1e-12)
    torch.testing.assert_close(dlr_with(y)(z), expected)


def test_dlr_of_right_predictions_lies_between_minus_one_and_zero():
    z, _ = logits(1, n=50)
    value = dlr_with(z.argmax(1))(z)
    assert (value <= 0).all()
    assert (value >= -1).all()


def test_dlr_with_two_classes_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match=r"^the DLR objective needs at least 3 classes, but found 2 logits$"):
        dlr_with(torch.tensor([0]))(torch.zeros(1, 2))


def other_than(y, classes=5):
    return (y + 1 + torch.arange(len(y)) % (classes - 1)) % classes


@settings(deadline=None)
@given(seeds, st.floats(-50, 50), st.floats(0.1, 50))
def test_targeted_dlr_knows_neither_shift_nor_scale(seed, shift, scale):
    z, y = logits(seed)
    climb = targeted_dlr_with(y, other_than(y))
    torch.testing.assert_close(climb(scale * z + shift), climb(z), rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seeds)
def test_targeted_dlr_is_equation_7_of_its_paper(seed):
    z, y = logits(seed)
    target, rows = other_than(y), torch.arange(len(y))
    ordered = z.sort(dim=1, descending=True).values
    expected = -(z[rows, y] - z[rows, target]) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)
    torch.testing.assert_close(targeted_dlr_with(y, target)(z), expected)


def test_targeted_dlr_is_positive_exactly_where_the_target_beats_the_label():
    z, y = logits(2, n=50)
    assert torch.equal(
        targeted_dlr_with(y, other_than(y))(z) > 0, z.gather(1, other_than(y)[:, None])[:, 0] > z[range(50), y]
    )


def test_targeted_dlr_with_three_classes_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match=r"^the targeted DLR objective needs at least 4 classes, but found 3 logits$"):
        targeted_dlr_with(torch.tensor([0]), torch.tensor([1]))(torch.zeros(1, 3))


@settings(deadline=None)
@given(seeds)
def test_cross_entropy_is_minus_the_log_probability_of_the_label(seed):
    z, y = logits(seed)
    expected = -z.softmax(1).gather(1, y[:, None]).squeeze(1).log()
    torch.testing.assert_close(cross_entropy_with(y)(z), expected)


@settings(deadline=None)
@given(seeds, seeds)
def test_kl_is_the_textbook_sum_and_never_negative(one, other):
    p, q = logits(one)[0], logits(other)[0]
    expected = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert (kl_divergence(p, q) >= -1e-15).all()


def test_kl_is_zero_only_at_equal_predictions():
    z, _ = logits(2)
    torch.testing.assert_close(kl_divergence(z, z + 7.0), torch.zeros(len(z), dtype=z.dtype), rtol=0, atol=1e-12)
    assert (kl_divergence(z, 2 * z) > 1e-3).all()


def test_kl_weighs_by_its_first_argument():
    # p is sure, q is even: KL(p || q) = log 2, while KL(q || p) grows with how sure p is.
    p, q = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert kl_divergence(p, q).item() == pytest.approx(0.6931472)
    assert kl_divergence(q, p).item() == pytest.approx(25 - 0.6931472)


def test_kl_stays_finite_where_probabilities_underflow():
    p, q = torch.tensor([[0.0, 500.0]]), torch.tensor([[500.0, 0.0]], requires_grad=True)
    value = kl_divergence(p, q)
    value.sum().backward()
    assert value.item() == pytest.approx(500.0)
    assert q.grad.isfinite().all()


def test_kl_lets_gradients_through_both_sides():
    p, q = logits(3)[0].requires_grad_(), logits(4)[0].requires_grad_()
    kl_divergence(p, q).sum().backward()
    reference = [t.detach().clone().requires_grad_() for t in (p, q)]
    F.kl_div(reference[1].log_softmax(1), reference[0].softmax(1), reduction="sum").backward()
    torch.testing.assert_close(p.grad, reference[0].grad)
    torch.testing.assert_close(q.grad, reference[1].grad)


def test_kl_from_a_reference_does_not_pull_on_the_reference():
    reference, z = logits(5)[0].requires_grad_(), logits(6)[0].requires_grad_()
    kl_from(reference)(z).sum().backward()
    assert reference.grad is None
    assert z.grad is not None


@pytest.mark.parametrize(
    "make",
    [
        cross_entropy_with,
        margin_with,
        dlr_with,
        lambda y: kl_from(logits(7)[0]),
        lambda y: targeted_dlr_with(y, other_than(y)),
    ],
)
def test_objectives_give_one_value_per_image_that_the_others_do_not_touch(make):
    z, y = logits(8)
    value = make(y)(z)
    assert value.shape == (len(y),)
    changed = z.clone()
    changed[0] += torch.arange(5)
    assert torch.equal(make(y)(changed)[1:], value[1:])


def test_targets_that_logits_choose_themselves():
    logits = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    losses = -logits.log_softmax(1)
    torch.testing.assert_close(towards(torch.tensor([2, 0]))(logits), -losses[[0, 1], [2, 0]])
    torch.testing.assert_close(towards_least_likely(logits), -losses[[0, 1], [1, 2]])
    torch.testing.assert_close(away_from_prediction(logits), torch.stack([losses[0, 0], losses[1, :2].mean()]))
