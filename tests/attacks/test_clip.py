"""The clip alone: nothing but torch, pytest and ``attacks.clip``, for this file also runs on torch 2.11."""

import pytest
import torch

from attacks.clip import clip

VALUES = [-0.5, -1e-6, 0.0, 1e-6, 0.5, 1.0, 1.5]
SLOPES = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@both_precisions
def test_values_are_those_of_clamp(dtype):
    x = torch.linspace(-1, 2, 301, dtype=dtype)
    assert torch.equal(clip(x), x.clamp(0, 1))
    assert clip(x).dtype == dtype


@both_precisions
def test_gradient_is_one_on_the_closed_interval_and_zero_outside(dtype):
    x = torch.tensor(VALUES, dtype=dtype, requires_grad=True)
    clip(x).sum().backward()
    assert x.grad.tolist() == SLOPES


def test_the_chain_rule_passes_through_a_bound():
    x = torch.tensor([0.0, 1.0, 1.2], requires_grad=True)
    (3 * clip(2 * clip(x), 0.0, 2.0)).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0, 0.0]


@both_precisions
def test_second_derivative_is_zero_everywhere(dtype):
    x = torch.tensor(VALUES, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad((clip(x) * x).sum(), x, create_graph=True)
    # (clip(x) x)'' = 2 clip'(x) + clip''(x) x, so a second derivative of the clip would show.
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert curvature.tolist() == [2 * slope for slope in SLOPES]


def test_tensor_bounds_broadcast_and_count_as_inside():
    x = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64, requires_grad=True)
    low, high = torch.tensor([[0.2], [0.4]], dtype=torch.float64), torch.tensor([0.3, 0.45, 0.3], dtype=torch.float64)
    limited = clip(x, low, high)
    limited.sum().backward()
    assert limited.tolist() == [[0.2, 0.2, 0.3], [0.3, 0.45, 0.3]]
    assert x.grad.tolist() == [[0, 1, 1], [0, 0, 0]]


def test_bounds_get_no_gradient():
    x, high = torch.full((3,), 2.0, requires_grad=True), torch.ones(3, requires_grad=True)
    clip(x, 0.0, high).sum().backward()
    assert high.grad is None


def test_bounds_keep_the_precision_of_float64():
    third = torch.tensor([0.5], dtype=torch.float64)
    assert clip(third, 0.0, 1 / 3).item() == 1 / 3


def test_nan_stays_nan():
    assert clip(torch.tensor([float("nan")])).isnan().all()


def test_without_gradients_nothing_is_recorded():
    with torch.no_grad():
        assert not clip(torch.ones(2, requires_grad=True)).requires_grad
