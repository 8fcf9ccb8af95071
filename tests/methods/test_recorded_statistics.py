"""BatchNorm with the statistics of one batch, whatever comes after."""

import pytest
import torch
from torch import nn

from attacks import BadInput
from methods.regularization.recorded_statistics import RecordedStatistics
from tests.methods.tools import assert_same, images, network, statistics, toy


@pytest.fixture
def toys():
    model, x, y, _ = toy()
    return model, x, y


def test_the_first_batch_is_normalised_as_in_train_mode(toys):
    model, x, _ = toys
    before = statistics(model)
    recorded = RecordedStatistics(model)(x)
    assert_same(statistics(model), before)
    torch.testing.assert_close(recorded, model.train()(x))


def test_afterwards_an_image_has_its_logits_alone_as_in_a_batch_and_the_first_batch_its_own_bit_for_bit(toys):
    model, x, _ = toys
    fixed, other = RecordedStatistics(model), x.flip(0) * 0.9
    first = fixed(x)
    assert torch.equal(fixed(x), first)
    together = fixed(other)
    for row in range(len(x)):
        torch.testing.assert_close(fixed(other[row : row + 1]), together[row : row + 1])


class Scale(nn.Module):
    """Stands for a layer with a weight, which a test hands in."""

    def __init__(self, weight):
        super().__init__()
        self.given = weight

    def forward(self, x):
        return x * self.given + self.given**2 * x**2


def test_gradients_flow_through_the_recorded_statistics_once_and_twice():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(2, 2)).double()

    def later(first, x, weight):
        fixed = RecordedStatistics(nn.Sequential(Scale(weight), *body))
        fixed(first)
        return fixed(x)

    inputs = [torch.rand(3, 1, 3, 3, dtype=torch.float64) for _ in range(2)] + [torch.tensor(0.7).double()]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(later, inputs)
    assert torch.autograd.gradgradcheck(later, inputs)


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_buffers_come_back_even_after_an_error(training, toys):
    model, x, _ = toys
    model.train(training)
    model[1].eval()
    modes, before = [part.training for part in model.modules()], statistics(model)
    fixed = RecordedStatistics(model)
    fixed(x)
    with pytest.raises(RuntimeError):
        fixed(x[:, :1])
    assert [part.training for part in model.modules()] == modes
    assert_same(statistics(model), before)
    model.eval()
    torch.testing.assert_close(model(x), nn.Sequential(*model).eval()(x))  # nothing is caught any more


def test_frozen_batchnorm_stays_frozen(toys):
    model, x, _ = toys
    model.train()[1].eval()
    torch.testing.assert_close(RecordedStatistics(model)(x), model(x))


def test_dropout_is_off_and_a_network_without_batchnorm_is_itself():
    body, (x, _) = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 3)).train(), images()
    assert torch.equal(RecordedStatistics(body)(x), body.eval()(x))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, eps=0.1)]
)
def test_every_kind_of_batchnorm_is_recorded(norm):
    body, (x, _) = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.BatchNorm1d(4 * 36)).train(), images()
    fixed = RecordedStatistics(body)
    torch.testing.assert_close(fixed(x), body(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fixed(x[:1]), fixed(x)[:1], rtol=1e-4, atol=1e-5)


def test_a_layer_derived_from_batchnorm_keeps_what_it_does_besides():
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu() + 7

    body, (x, _) = nn.Sequential(nn.Conv2d(1, 4, 3), WithActivation(4)).train(), images()
    assert RecordedStatistics(body)(x).min() >= 7


def test_mixed_precision_is_off_inside():
    fixed = RecordedStatistics(network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fixed(images()[0]).dtype == torch.float32


def test_a_network_that_takes_another_way_is_refused():
    class Deeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.times = 1

        def forward(self, x):
            for _ in range(self.times):
                x = self.norm(x)
            return x

    body, (x, _) = Deeper(), images()
    fixed = RecordedStatistics(body)
    fixed(x)
    body.times = 2
    with pytest.raises(BadInput, match="the same BatchNorm layers every time"):
        fixed(x)
