"""The copy that a search asks: faster, and the same but for the last bits."""

import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks import compiling
from attacks.apgd import APGD
from attacks.autoattack import LOSSES
from attacks.convolutions import Swapped, with_fast_gradients
from attacks.oracle import Oracle
from attacks.prepared import WIDE, in_bfloat16, prepared
from attacks.staged import Stage, attack_in_stages
from attacks.starts import keyed_start
from attacks.threat import ThreatModel
from tests.models import Returning, curved, linear

DRAW = torch.Generator().manual_seed(0)
X = torch.rand(6, 1, 8, 8, generator=DRAW)


def with_statistics(network: nn.Module) -> nn.Module:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=DRAW)
            part.running_var.uniform_(0.5, 2, generator=DRAW)
    return network.eval()


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    asked = x.clone().requires_grad_()
    return torch.autograd.grad(network(asked).square().sum(), asked)[0]


def same(network, x=X):
    twin = prepared(network, x)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), network(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(twin, x), gradient(network, x), rtol=1e-3, atol=1e-4)
    return twin


def test_batchnorm_is_folded_into_convolutions():
    twin = same(with_statistics(curved()))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())


def test_the_network_itself_is_left_alone():
    network = with_statistics(curved())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepared(network, X)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 4),
    width=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)) | st.just((2, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    last=st.booleans(),
)
@example(channels=4, width=3, kernel=(4, 4), stride=(2, 2), padding=(1, 1), dilation=1, last=False)
@example(channels=4, width=3, kernel=(2, 4), stride=(2, 2), padding=(0, 1), dilation=1, last=True)
def test_a_swapped_convolution_has_the_gradient_of_its_kind(channels, width, kernel, stride, padding, dilation, last):
    x = torch.rand(3, channels, 9, 8, generator=DRAW, dtype=torch.float64)
    convolution = nn.Conv2d(channels, width, kernel, stride, padding, dilation, dtype=torch.float64)
    if last:
        x = x.to(memory_format=torch.channels_last)
    network = nn.Sequential(convolution, nn.Tanh()).eval()
    expected = gradient(network, x)
    torch.testing.assert_close(gradient(with_fast_gradients(network), x), expected)


@pytest.mark.parametrize(
    ("convolution", "swapped"),
    [
        (nn.Conv2d(3, 8, 3), True),
        (nn.Conv2d(4, 8, 4, stride=2, padding=1), True),
        (nn.Conv2d(5, 8, 3, stride=2), False),
        (nn.Conv2d(5, 8, 3), False),
        (nn.Conv2d(4, 8, 2, stride=2, groups=2), False),
    ],
)
def test_convolutions_on_few_channels_are_swapped(convolution, swapped):
    assert isinstance(with_fast_gradients(nn.Sequential(convolution))[0], Swapped) == swapped


@pytest.mark.parametrize(
    "how", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}, {"padding": 1, "groups": 2}]
)
def test_other_convolutions_keep_their_own_gradient(how):
    twin = same(nn.Sequential(nn.Conv2d(2, 4, 3, **how), nn.Flatten()).eval(), torch.rand(3, 2, 8, 8))
    assert not any(isinstance(part, Swapped) for part in twin.modules())


class Stopping(nn.Conv2d):
    """Computes as its kind does, but has a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() + 0 * x)


def test_a_users_convolution_keeps_a_gradient_of_its_own():
    network = nn.Sequential(Stopping(1, 4, 3), nn.Flatten()).eval()
    assert not gradient(prepared(network, X), X).any()


def test_a_network_that_cannot_be_traced_keeps_its_batchnorm():
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = with_statistics(curved())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

    assert any(isinstance(part, nn.BatchNorm2d) for part in same(Deciding().eval()).modules())


def test_a_network_that_cannot_be_copied_is_given_back():
    network = linear()
    network.lock = (each for each in ())  # a generator, which copy does not take
    assert prepared(network, X) is network


def test_a_copy_that_answers_otherwise_is_not_used():
    class Counting(nn.Module):
        """Adds a constant that tracing would freeze as it found it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = with_statistics(curved())
            self.folded = False

        def forward(self, x: Tensor) -> Tensor:
            with_norm = any(isinstance(part, nn.BatchNorm2d) for part in self.inner)
            return self.inner(x) + (0 if with_norm and not torch.fx._symbolic_trace.is_fx_tracing() else 100)

    network = Counting().eval()
    twin = prepared(network, X)
    with torch.no_grad():
        torch.testing.assert_close(twin(X), network(X))


@pytest.mark.parametrize(("width", "last"), [(WIDE, True), (WIDE - 1, False)])
def test_only_wide_convolutions_are_stored_channels_last(width, last):
    network = nn.Sequential(nn.Conv2d(1, width, 3), nn.Conv2d(width, 4, 3), nn.Flatten()).eval()
    twin = same(network)
    wide = next(part for part in twin.modules() if isinstance(part, nn.Conv2d) and part.in_channels == width)
    assert wide.weight.is_contiguous(memory_format=torch.channels_last) == last


def test_short_weights_give_the_logits_and_gradients_of_autocast():
    network = prepared(with_statistics(curved()), X)
    twin = in_bfloat16(network, X)
    assert twin is not network
    each = [
        Oracle(network, which, precision="bf16").climb(X, lambda logits: logits.amax(1)) for which in (network, twin)
    ]
    for expected, found in zip(*each, strict=True):
        assert torch.equal(expected, found)


def test_a_network_that_uses_its_weights_otherwise_keeps_them():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)) * torch.linalg.vector_norm(self.linear.weight.view(torch.int32).float())

    network = Scaled().eval()
    assert in_bfloat16(network, X) is network


def brief(compiled, network=None):
    threat = ThreatModel("linf", 0.2)
    network = network or linear(4, 64)

    def plan(classes):
        return [Stage("apgd-ce", APGD(threat, LOSSES["apgd-ce"], keyed_start(threat, 0, "x"), iterations=12), 1, 12)]

    with torch.no_grad():
        y = network(X).argmax(1)
    return attack_in_stages(network, X, y, threat, plan, compiled=compiled)


def test_without_a_compiler_the_attack_goes_on_and_says_so(monkeypatch):
    def fail(*_args, **_how):
        def called(*_):
            raise RuntimeError("no working C++ compiler found")

        return called

    monkeypatch.setattr(torch, "compile", fail)
    found, plain = brief(True), brief(False)
    assert found.by == plain.by
    assert torch.equal(found.adversarial, plain.adversarial)
    assert [line for line in found.log if "no working C++ compiler found" in line and "goes on without" in line]
    assert not plain.log


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs: no g++ here")
def test_compiled_and_eager_find_the_same():
    found, plain = brief(True), brief(False)
    assert not found.log
    assert found.by == plain.by
    torch.testing.assert_close(found.adversarial, plain.adversarial, atol=1e-5, rtol=0)


def test_a_network_that_cannot_be_compiled_is_searched_as_it_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: Returning(lambda x: 1 / 0))
    network = linear()
    made, reason = compiling.compiled(network, X)
    assert made is network
    assert "division by zero" in reason
