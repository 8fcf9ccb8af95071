"""The images' gradient, by itself and as something that is differentiated once more."""

import pytest
import torch
from torch import nn

from attacks import cross_entropy_with
from methods.input_gradient import input_gradient
from tests.methods.tools import images, network


def test_each_image_has_the_gradient_of_its_own_loss_whatever_its_neighbours():
    body, (x, y) = network().eval().double(), images(6)
    x = x.double()
    whole = input_gradient(body, x, cross_entropy_with(y))
    for row in range(len(x)):
        alone = input_gradient(body, x[row : row + 1], cross_entropy_with(y[row : row + 1]))
        torch.testing.assert_close(whole.gradient[row : row + 1], alone.gradient)
        torch.testing.assert_close(whole.value[row : row + 1], alone.value)


def test_without_a_graph_nothing_has_one_and_no_parameter_has_a_gradient():
    body, (x, y) = network(), images(6)
    found = input_gradient(body, x, cross_entropy_with(y))
    assert not any(part.requires_grad for part in found)
    assert all(parameter.grad is None for parameter in body.parameters())
    assert not x.requires_grad


def test_with_a_graph_the_gradient_has_a_derivative_by_the_weights():
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).double()
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    found = input_gradient(body, x, lambda logits: logits[:, 0] ** 2, create_graph=True)
    found.gradient.sum().backward()
    weight = body[1].weight.detach()
    # d/dx (w.x)^2 = 2 (w.x) w; its sum differentiated by w by hand.
    z = x.flatten(1) @ weight.T
    expected = (2 * (x.flatten(1) * weight.sum() + z)).sum(0)
    torch.testing.assert_close(body[1].weight.grad.flatten(), expected)


def test_mixed_precision_is_off_inside():
    body, (x, y) = network(), images(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert body(x).dtype == torch.bfloat16
        found = input_gradient(body, x, cross_entropy_with(y))
    assert (found.logits.dtype, found.gradient.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("create_graph", [True, False])
def test_it_works_where_gradients_are_switched_off(create_graph):
    body, (x, y) = network(), images(6)
    with torch.no_grad():
        assert input_gradient(body, x, cross_entropy_with(y), create_graph=create_graph).gradient.shape == x.shape
