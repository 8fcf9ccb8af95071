"""A loss that carries a gradient behaves like the loss that the gradient was computed from."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from methods.carried_gradient import added, carrying
from tests.methods.tools import images, network, trainer


def computed(body, x, y):
    """The cross-entropy, the parameters and the gradients of a plain backward pass."""
    parameters = list(body.parameters())
    loss = torch.nn.functional.cross_entropy(body(x), y)
    return loss, parameters, torch.autograd.grad(loss, parameters)


def test_the_loss_has_the_value_and_its_backward_pass_gives_exactly_the_gradients():
    body = network()
    loss, parameters, gradients = computed(body, *images())
    carried = carrying(loss, parameters, gradients)
    assert carried.item() == loss.item()
    assert carried.requires_grad
    carried.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, gradients, strict=True))


def test_a_scaled_loss_has_scaled_gradients_as_mixed_precision_and_accumulation_want_it():
    body = network()
    loss, parameters, gradients = computed(body, *images())
    (carrying(loss, parameters, gradients) * 1024).backward()
    (carrying(loss, parameters, gradients) / 4).backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 1024.25 * gradient)


def test_a_gradient_that_overflowed_reaches_the_parameters_and_not_the_loss():
    """So that a gradient scaler skips the step, and the history keeps a number."""
    weight = torch.zeros(2, requires_grad=True)
    loss = carrying(torch.tensor(3.0), [weight], [torch.tensor([torch.inf, 1.0])])
    loss.backward()
    assert loss.item() == 3
    assert weight.grad.tolist() == [torch.inf, 1.0]


def test_a_parameter_without_a_gradient_gets_none():
    used, unused = (torch.zeros(2, requires_grad=True) for _ in range(2))
    carrying(torch.tensor(1.0), [used, unused], [torch.ones(2), None]).backward()
    assert used.grad.tolist() == [1, 1]
    assert unused.grad is None


def test_gradients_are_added_where_there_are_some():
    one, two = torch.ones(2), 2 * torch.ones(2)
    total = added([one, None, one, None], [two, two, None, None])
    assert [None if t is None else t.tolist() for t in total] == [[3, 3], [2, 2], [1, 1], None]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_steps_clips_and_accumulates_as_with_the_plain_loss(precision):
    class Module(pl.LightningModule):
        def __init__(self, carried):
            super().__init__()
            self.network, self.carried = network(), carried

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            if not self.carried:
                return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            return carrying(*computed(self.network, *batch))

    ended = []
    for carried in (True, False):
        module = Module(carried)
        run = trainer(2, precision=precision, gradient_clip_val=0.5, accumulate_grad_batches=2)
        run.fit(module, DataLoader(TensorDataset(*images()), batch_size=6))
        ended.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    torch.testing.assert_close(*ended, rtol=1e-4, atol=1e-6)
