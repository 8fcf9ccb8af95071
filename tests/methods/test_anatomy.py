"""First layer, last linear layer and features are found in networks of any make, and nothing is left in them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from attacks import BadInput, counting
from benchmark.architectures import build
from methods.anatomy import Front, cut, first_layer, last_linear, observe, with_features
from tests.methods.tools import statistics


class Functional(nn.Module):
    """Home-made: layers in no order, a normalisation, functions between, a temperature behind."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 4)
        self.gate = nn.Linear(8, 8)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        h = F.relu(self.stem((x - 0.5) / 0.25), inplace=True)
        h = h.mean((2, 3))
        h = h * self.gate(input=h).sigmoid()
        return self.head(input=h) / 2


class Headless(nn.Module):
    """A squeeze-and-excite gate is its only linear layer; a convolution gives the logits."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h * self.gate(h.mean((2, 3)))[:, :, None, None]).mean((2, 3))


class Beside(nn.Module):
    """The image goes through a convolution and past it."""

    def __init__(self, second=True):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        self.second = second

    def forward(self, x):
        return self.head((self.one(x) + (self.two(x) if self.second else x)).mean((2, 3)))


class TwoHeads(nn.Module):
    """An auxiliary head is run after the one that gives the logits."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(12, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        h = self.body(x.flatten(1))
        logits = self.head(h)
        self.seen = self.auxiliary(h)
        return logits


def random_images(channels=3, size=32, count=4):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


DIGITS = {"classes": 10, "channels": 1, "size": 8}
CIFAR = {"classes": 10, "channels": 3, "size": 32}
NORMALISED = {"mean": [0.5] * 3, "std": [0.25] * 3}
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
# A network, the images' side, its first and last layer, and how long its features are.
NETWORKS = {
    "digits_cnn": (lambda: build("digits_cnn", **DIGITS), 8, "body.features.0", "body.linear", 512),
    "mnist_small": (lambda: build("mnist_small", classes=10, channels=1, size=28), 28, "body.0", "body.7", 100),
    "small_cnn": (
        lambda: build("small_cnn", **CIFAR, **NORMALISED),
        32,
        "body.feature_extractor.conv1",
        "body.classifier.fc3",
        200,
    ),
    "resnet8": (lambda: build("resnet8", **CIFAR, **NORMALISED), 32, "body.conv1", "body.linear", 64),
    "preact_resnet18": (lambda: build("preact_resnet18", **CIFAR), 32, "body.conv1", "body.linear", 512),
    "wrn-10-1": (lambda: build("wrn-10-1", **CIFAR), 32, "body.conv1", "body.fc", 64),
    "torchvision resnet18": (lambda: models.resnet18(num_classes=5), 32, "conv1", "fc", 512),
    "torchvision densenet": (lambda: models.densenet121(num_classes=5), 32, "features.conv0", "classifier", 1024),
    "torchvision mobilenet": (
        lambda: models.mobilenet_v3_small(num_classes=5),
        32,
        "features.0.0",
        "classifier.3",
        1024,
    ),
    "torchvision inception": (
        lambda: models.inception_v3(num_classes=5, init_weights=False),
        80,
        "Conv2d_1a_3x3.conv",
        "fc",
        2048,
    ),
    "torchvision transformer": (
        lambda: models.VisionTransformer(**VIT, num_classes=5),
        32,
        "conv_proj",
        "heads.head",
        16,
    ),
    "home-made": (Functional, 8, "stem", "head", 8),
    "two heads": (TwoHeads, 2, "body", "head", 6),
}
every_network = pytest.mark.parametrize(("make", "size", "first", "last", "width"), NETWORKS.values(), ids=NETWORKS)


def channels_of(network):
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d)).in_channels


@every_network
def test_the_first_and_the_last_layer_are_found_and_the_network_is_as_it_was(make, size, first, last, width):
    network = make().train()
    x = random_images(3 if isinstance(network, TwoHeads) else channels_of(network), size)
    before, state = statistics(network), torch.get_rng_state()
    with counting(network) as passes:
        assert first_layer(network, x) == first
        assert last_linear(network, x) == last
    assert (passes.forward, passes.backward) == (0, 0)
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    assert all(part.training for part in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert torch.equal(state, torch.get_rng_state())
    logits, features = with_features(network.eval(), last, x)
    assert features.shape == (4, width)
    torch.testing.assert_close(logits, network(x))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


@every_network
def test_front_and_rest_make_up_the_network_and_its_gradient(make, size, first, last, width):
    network = make().double().eval()
    x = random_images(3 if isinstance(network, TwoHeads) else channels_of(network), size, count=2).double()
    x.requires_grad_()
    parameters = list(network.parameters())
    direct = torch.autograd.grad(network(x)[:, 0].sum(), [x, *parameters], allow_unused=True)
    with counting(network) as passes:
        logits, made, seen = cut(network, first, x)
        adjoint, *rest = torch.autograd.grad(logits[:, 0].sum(), [seen, *parameters], allow_unused=True)
        assert (passes.forward, passes.backward) == (2, 2)
        torch.testing.assert_close(made, Front(network, first)(x))
        assert passes.forward == 2  # the front is no pass
    back = torch.autograd.grad((adjoint * made).sum(), [x, *parameters], allow_unused=True)
    torch.testing.assert_close(back[0], direct[0])
    for whole, behind, before in zip(direct[1:], rest, back[1:], strict=True):
        assert behind is None or before is None  # a parameter belongs to one of the two
        torch.testing.assert_close(behind if before is None else before, whole)


def test_the_front_runs_nothing_behind_its_layer_and_leaves_no_hook():
    network = build("resnet8", **CIFAR, **NORMALISED).train()
    before = statistics(network)
    front = Front(network, "body.conv1")
    made = front(random_images())
    assert made.shape == (4, 16, 32, 32)
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    torch.testing.assert_close(made, network.body.conv1(network.normalise(random_images())))
    assert not network.body.conv1._forward_hooks


def test_an_error_of_the_network_itself_leaves_no_hook_either():
    network = build("resnet8", **CIFAR)
    for broken in (
        lambda x: first_layer(network, x),
        lambda x: last_linear(network, x),
        lambda x: with_features(network, "body.linear", x),
        lambda x: cut(network, "body.conv1", x),
        lambda x: Front(network, "body.conv1")(x),
    ):
        with pytest.raises(RuntimeError):
            broken(random_images(channels=5))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert network.training


def test_runs_are_listed_in_the_order_in_which_they_happen():
    logits, calls = observe(Functional(), random_images(size=8))
    assert [call.name for call in calls] == ["stem", "gate", "head"]
    assert [tuple(call.given.shape) for call in calls] == [(2, 3, 8, 8), (2, 8), (2, 8)]
    torch.testing.assert_close(calls[-1].made / 2, logits)


def test_a_backward_pass_from_the_features_alone_is_counted_and_gives_the_last_layer_zeros():
    network = build("resnet8", **CIFAR)
    with counting(network) as passes:
        _, features = with_features(network, "body.linear", random_images())
        features.square().mean().backward()
    assert (passes.forward, passes.backward) == (4, 4)
    assert network.body.linear.weight.grad.abs().max() == 0
    assert network.body.conv1.weight.grad.abs().max() > 0


def test_a_backward_pass_from_both_ends_is_the_sum_and_counts_once():
    network, x = build("resnet8", **CIFAR).double().eval(), random_images().double()
    with counting(network) as passes:
        logits, features = with_features(network, "body.linear", x)
        (logits.logsumexp(1).sum() + features.square().sum()).backward()
    assert passes.backward == 4
    found = network.body.conv1.weight.grad.clone()
    network.zero_grad()
    seen = []
    network.body.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (network(x).logsumexp(1).sum() + seen[0].square().sum()).backward()
    torch.testing.assert_close(found, network.body.conv1.weight.grad)


@pytest.mark.parametrize("network", [Headless(), models.squeezenet1_1(num_classes=5)], ids=["own", "squeezenet"])
def test_a_network_that_does_not_end_in_a_linear_layer_is_told_so_in_one_sentence(network):
    with pytest.raises(BadInput, match=r"last nn.Linear .* found none in \w+, and .*\(Conv2d\) as the last layer: end"):
        last_linear(network, random_images())


def test_a_network_without_any_layer_is_told_so():
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(BadInput, match=r"found none in Sequential: build the network of torch\.nn's layers"):
        first_layer(network, random_images())
    with pytest.raises(BadInput, match="found none in Sequential, and no layer"):
        last_linear(network, random_images())


@pytest.mark.parametrize(("second", "beside"), [(True, "two"), (False, "head")])
def test_an_image_that_goes_past_the_first_layer_is_refused(second, beside):
    with pytest.raises(BadInput, match=f"in Beside it reaches {beside} past one: put"):
        first_layer(Beside(second), random_images())
