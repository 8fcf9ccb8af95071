"""What methods share whose loss holds an input gradient."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from attacks import BadInput, ThreatModel
from methods import catalogue
from methods.second_order import SecondOrder
from tests.methods.tools import EPSILON, build, images, loader, network, trace, trainer

NAMES = [name for name in catalogue.names() if issubclass(catalogue.get(name), SecondOrder)]
every_method = pytest.mark.parametrize("name", NAMES)


class Fused(torch.autograd.Function):
    """A product with a hand-made derivative that has none itself."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Silent(Fused):
    """The same, except that PyTorch is not told."""

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return (gradient @ weight.T).detach(), (x.T @ gradient).detach()


class Layer(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.linspace(-1, 1, 64 * 3).reshape(64, 3))

    def forward(self, x):
        return self.kind.apply(x.flatten(1), self.weight)


def test_llr_gradalign_and_fgsmr_are_such_methods():
    assert {"llr", "gradalign", "fgsmr"} <= set(NAMES)


@every_method
@pytest.mark.parametrize("kind", [Fused, Silent])
@pytest.mark.filterwarnings("ignore")
def test_a_layer_without_a_second_derivative_is_refused_in_one_sentence_that_names_the_method(name, kind):
    method = build(name, Layer(kind), steps=1)
    with pytest.raises(BadInput, match=f"^{name} differentiates the network twice, but one of its layers") as caught:
        trainer(1).fit(method, loader())
    assert "\n" not in str(caught.value)


@every_method
def test_other_errors_are_passed_on_as_they_are(name):
    class Broken(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        trace(build(name, Broken(), steps=1), images())


@every_method
def test_a_compiled_network_is_run_eagerly_with_one_message(name):
    plain = trace(build(name, network(), steps=1).train(), images())
    compiled = build(name, torch.compile(network(), backend="aot_eager"), steps=1).train()
    with pytest.warns(UserWarning, match=f"{name} runs the compiled network eagerly"):
        loss = trace(compiled, images()).loss
    assert torch.equal(loss, plain.loss)
    loss.backward()
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("default")
        for _ in range(2):
            trace(compiled, images())
    assert len(again) == 1


@every_method
@pytest.mark.filterwarnings("ignore")
def test_under_mixed_precision_the_input_gradients_stay_in_float32_and_the_row_says_so(name, monkeypatch):
    seen = []
    taken = SecondOrder.input_gradient
    monkeypatch.setattr(
        SecondOrder, "input_gradient", lambda *args, **more: seen.append(taken(*args, **more)) or seen[-1]
    )
    method = build(name, network(), steps=1)
    trainer(1, precision="bf16-mixed").fit(method, loader())
    assert {part.dtype for found in seen for part in found} == {torch.float32}
    assert method.remarks()["precision"] == "input gradients in float32"
    exact = build(name, network(), steps=1)
    trainer(1).fit(exact, loader())
    assert "precision" not in exact.remarks()
    assert method.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.05)


@every_method
def test_a_network_without_batchnorm_is_as_good(name):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3))
    method = build(name, body, ThreatModel("linf", EPSILON), steps=2)
    loss = trace(method, images()).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in body.parameters())
