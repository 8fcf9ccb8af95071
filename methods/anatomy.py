"""Where a network begins and ends: its first layer, its last linear layer and the features between, of any network.

Layers are found by watching the network work, and named as in ``network.named_modules()``. A name survives copies,
keeps the layer out of a method's own parameters, and serves ``network.get_submodule`` and ``set_submodule``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import in_mode, without_parameter_gradients

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Call(NamedTuple):
    """One run of a convolution or linear layer: its name, the layer, what it was given, what it made of it."""

    name: str
    layer: nn.Module
    given: Tensor
    made: Tensor


def observe(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Call]]:
    """Run ``network`` on the first two of the images ``x``, in eval mode; nothing of that is left in it.

    Two images, because layers that always take the batch's statistics refuse a single one.

    Returns:
        logits ``(2, k)``, and the runs of all convolutions and linear layers in their order; without graphs.
    """
    calls: list[Call] = []

    def note(name: str, layer: nn.Module, given: Tensor, made: Tensor) -> None:
        calls.append(Call(name, layer, given, made))

    with torch.no_grad():
        return _watched(network, x, note), calls


def first_layer(network: nn.Module, x: Tensor) -> str:
    """Name the first convolution or linear layer that the images ``x`` ``(n, c, h, w)`` pass.

    What stands before it, such as a normalisation, belongs to it: :class:`Front` is both.

    Raises:
        BadInput: where there is none, or where part of the image goes past it.
    """
    found: list[str] = []

    def cut(name: str, _layer: nn.Module, _given: Tensor, made: Tensor) -> Tensor | None:
        if not made.requires_grad:  # the image does not come here, or only through a layer found before
            return None
        found.append(name)
        return made.detach()

    with torch.enable_grad():
        logits = _watched(network, x.detach().clone().requires_grad_(), cut)
    kind = type(network).__name__
    if not found:
        raise BadInput(
            f"the first layer is a convolution or linear layer that the image passes, but found none in {kind}: "
            "build the network of torch.nn's layers"
        )
    if len(found) > 1 or logits.requires_grad:
        past = found[1] if len(found) > 1 else "the logits"
        raise BadInput(
            f"the whole image passes the first layer, but in {kind} it reaches {past} past {found[0]}: put one "
            "convolution in front of what branches"
        )
    return found[0]


def last_linear(network: nn.Module, x: Tensor) -> str:
    """Name the last linear layer that gives ``network``'s logits for images ``x``, or something of their shape.

    Raises:
        BadInput: where there is none.
    """
    logits, calls = observe(network, x)
    like_logits = [call for call in calls if isinstance(call.layer, nn.Linear) and call.made.shape == logits.shape]
    if not like_logits:
        kind, ends = type(network).__name__, calls[-1] if calls else None
        found = f"{ends.name} ({type(ends.layer).__name__}) as the last layer" if ends else "no layer"
        raise BadInput(
            f"the features are what the last nn.Linear is given, which makes the {logits.shape[-1]} logits of them, "
            f"but found none in {kind}, and {found}: end the network with an nn.Linear"
        )
    themselves = [call for call in like_logits if torch.equal(call.made, logits)]
    return (themselves or like_logits)[-1].name


def with_features(network: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run ``network`` on images ``x`` in the mode it is in: its logits ``(n, k)``, and the features ``(n, d)``.

    A backward pass from the features alone shows at the logits as zeros. The last layer then has a gradient, which DDP
    waits for, and :func:`attacks.passes.counting`, which watches the logits, counts it.

    Args:
        layer: name of the layer that is given the features, from :func:`last_linear`.
    """
    given: list[Tensor] = []

    def note(_layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append(_only(inputs, named))

    handle = network.get_submodule(layer).register_forward_pre_hook(note, with_kwargs=True)
    try:
        logits: Tensor = network(x)
    finally:
        handle.remove()
    features: Tensor = _Tied.apply(given[-1], logits)
    return logits, features


class Cut(NamedTuple):
    """A forward pass whose graph is cut behind a layer.

    Args:
        logits: their graph leads to ``seen``.
        made: what the layer made; its graph leads to the image and to the parameters up to the layer.
        seen: the same values, a leaf with which the rest of the network went on.
    """

    logits: Tensor
    made: Tensor
    seen: Tensor


def cut(network: nn.Module, layer: str, x: Tensor) -> Cut:
    """Run ``network`` on images ``x`` in the mode it is in, and cut the graph behind ``layer``."""
    parts: list[tuple[Tensor, Tensor]] = []

    def part(_layer: nn.Module, _inputs: tuple[Any, ...], made: Tensor) -> Tensor | None:
        if parts:
            return None
        seen = made.detach().requires_grad_()
        parts.append((made, seen))
        return seen.clone()  # the next layer may work in place

    handle = network.get_submodule(layer).register_forward_hook(part)
    try:
        logits: Tensor = network(x)
    finally:
        handle.remove()
    return Cut(logits, *parts[0])


class Front(nn.Module):
    """A network up to and including one of its layers: images to what the layer makes of them. Nothing behind it runs.

    It is no pass through the network: :func:`attacks.passes.counting` does not see it.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, x: Tensor) -> Tensor:
        """Run the network until ``layer`` is done."""

        def stop(_layer: nn.Module, _inputs: tuple[Any, ...], made: Tensor) -> None:
            raise _Reached(made)

        handle = self.network.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.network(x)
        except _Reached as reached:
            return reached.made
        finally:
            handle.remove()
        raise RuntimeError(f"{self.layer} was not run")


class Features(nn.Module):
    """A network whose output is its features, what its ``layer`` of :func:`last_linear` is given; attacks climb those.

    All of the network runs, and :func:`attacks.passes.counting` counts it.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, x: Tensor) -> Tensor:
        """Give the features ``(n, d)``, in float32 at least."""
        _, features = with_features(self.network, self.layer, x)
        return features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))


class _Reached(Exception):
    """Leaves a network in the middle of its forward pass."""

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self.made = made


class _Tied(torch.autograd.Function):
    """Hand features on, and send zeros to the logits whenever a gradient comes back."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (logits,) = ctx.saved_tensors
        return gradient, torch.zeros_like(logits)


Watch = Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]


def _watched(network: nn.Module, x: Tensor, watch: Watch) -> Tensor:
    """Forward two images in eval mode; after each layer that has weights ``watch`` may put something in its place."""

    def hook(name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], made: Tensor) -> Any:
        return watch(name, layer, _only(inputs, named), made)

    handles = [
        layer.register_forward_hook(partial(hook, name), with_kwargs=True)
        for name, layer in network.named_modules()
        if isinstance(layer, WEIGHTED)
    ]
    try:
        with in_mode(network, "eval"), without_parameter_gradients(network):
            logits: Tensor = network.forward(x[:2])  # no call, so that whoever counts passes does not count it
    finally:
        for handle in handles:
            handle.remove()
    return logits


def _only(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    given: Tensor = inputs[0] if inputs else named["input"]
    return given
