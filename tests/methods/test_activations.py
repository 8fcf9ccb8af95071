"""Non-linearities are found and followed in any network, and those that no hook can follow are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import BadInput
from benchmark.architectures import build
from methods.activations import activation_modules, after_activations, every_activation
from tests.methods.tools import network

DIGITS = {"classes": 10, "channels": 1, "size": 8}
MNIST = {"classes": 10, "channels": 1, "size": 28}
CIFAR = {"classes": 10, "channels": 3, "size": 32}


class Own(nn.Module):
    """A user's network: one module called twice, and an end that the test chooses."""

    def __init__(self, end) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.active, self.end = nn.ReLU(), end

    def forward(self, x: Tensor) -> Tensor:
        x = self.active(self.first(x.flatten(1)))
        return self.last(self.end(self.active(self.second(x))))


def calls_of(body, x):
    with every_activation(body) as calls:
        body(x)
    return calls


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("digits_cnn", DIGITS, 3),
        ("mnist_small", MNIST, 3),
        ("small_cnn", MNIST, 6),
        ("resnet8", CIFAR, 7),
        ("preact_resnet18", CIFAR, 17),
        ("wrn-10-1", CIFAR, 7),
        ("torchvision/resnet18", CIFAR, 17),  # nine modules, most of which are called twice
    ],
)
def test_every_call_is_found_in_the_networks_of_this_project_and_of_torchvision(name, data, places):
    x = torch.rand(2, data["channels"], data["size"], data["size"])
    assert len(calls_of(build(name, **data).eval(), x)) == places


def test_calls_stand_in_the_order_of_the_forward_with_the_shape_for_one_image():
    calls = calls_of(build("mnist_small", **MNIST), torch.rand(3, 1, 28, 28))
    assert [call.shape for call in calls] == [(16, 14, 14), (32, 7, 7), (100,)]
    assert [call.name for call in calls] == ["body.1", "body.3", "body.6"]


def test_a_module_that_is_called_twice_is_listed_twice_and_changed_twice():
    body, x, seen = Own(nn.Identity()).train(), torch.rand(5, 4), []
    assert [call.name for call in calls_of(body, x)] == ["active", "active"]
    with after_activations(body, lambda output: seen.append(output) or output):
        body(x)
    assert len(seen) == 2
    assert not torch.equal(*seen)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.clone().relu_(), "relu_"),
        (F.relu6, "relu6"),
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (lambda x: F.leaky_relu(x, 0.1), "leaky_relu"),
        (lambda x: x * torch.sigmoid(x), "sigmoid"),
        (torch.tanh, "tanh"),
        (F.softplus, "softplus"),
    ],
)
def test_an_activation_that_is_called_as_a_function_is_refused_with_one_sentence(function, name):
    with pytest.raises(BadInput, match=f"^Own calls {name} as a function.*make it a module of torch.nn") as caught:
        calls_of(Own(function), torch.rand(5, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.PReLU, nn.Softplus, nn.Mish])
def test_every_module_of_torch_that_is_a_non_linearity_is_followed(kind):
    assert [call.name for call in calls_of(Own(kind()), torch.rand(5, 4))] == ["active", "active", "end"]


def test_a_users_subclass_is_an_activation_too():
    class Capped(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).clamp(max=1)

    assert list(activation_modules(Own(Capped()))) == ["active", "end"]
    assert len(calls_of(Own(Capped()), torch.rand(5, 4))) == 3


def test_softmax_dropout_and_clipping_are_no_activations():
    end = nn.Sequential(nn.Softmax(1), nn.Dropout(0.5), nn.Identity())
    assert list(activation_modules(Own(end))) == ["active"]
    assert len(calls_of(Own(lambda x: x.clamp(0, 1).softmax(1)), torch.rand(5, 4))) == 2


@pytest.mark.parametrize("training", [True, False])
def test_only_modules_in_train_mode_are_changed(training):
    body, x = Own(nn.Identity()).train(training), torch.rand(5, 4)
    plain = body(x)
    with after_activations(body, torch.zeros_like):
        changed = body(x)
    assert torch.equal(plain, changed) != training


def test_nothing_is_left_on_the_network_not_even_by_an_error():
    body, x = network(), torch.rand(2, 1, 8, 8)

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in body.modules())

    with pytest.raises(ZeroDivisionError), after_activations(body, lambda output: output / (1 // 0)):
        body(x)
    with pytest.raises(RuntimeError), every_activation(body):
        body(x[0, 0, 0])  # a row of pixels is no image
    assert hooks() == 0
    F.relu(x)


def test_watching_changes_no_bit():
    body, x = network().eval(), torch.rand(4, 1, 8, 8)
    plain = body(x)
    with every_activation(body):
        watched = body(x)
    assert torch.equal(plain, watched)
