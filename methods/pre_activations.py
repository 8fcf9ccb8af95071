"""What enters the activations of any network: feature maps before their non-linearity, by number."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attacks.errors import BadInput
from attacks.modes import in_mode, without_parameter_gradients
from methods.activations import is_activation


def count_feature_maps(network: nn.Module, x: Tensor) -> int:
    """Count the feature maps ``(n, c, h, w)`` that enter activations of ``network``, module or function, in eval mode.

    In an ordinary network these are the outputs of its convolutions with their normalisation, and in a residual one the
    sums at the end of its blocks.

    Raises:
        BadInput: where there is none.
    """
    watch = _Watch(stop=None)
    with torch.no_grad(), in_mode(network, "eval"), without_parameter_gradients(network), watch:
        network.forward(x[:2])  # no call, so that whoever counts passes does not count it
    if not watch.seen:
        raise BadInput(
            f"features are what enters the activations behind convolutions, but found none in {type(network).__name__}"
        )
    return watch.seen


@contextmanager
def ending_at(network: nn.Module, number: int) -> Iterator[nn.Module]:
    """Inside the block let ``network`` give the feature map of that ``number``, from 1, and run no further.

    It is a pass through the network all the same: :func:`attacks.passes.counting` counts it.
    """
    whole = network.forward

    def short(x: Tensor) -> Tensor:
        try:
            with _Watch(stop=number):
                whole(x)
        except _Reached as reached:
            return reached.features
        raise RuntimeError(f"the network has fewer than {number} activations on feature maps")

    network.forward = short  # stands before the class's own
    try:
        yield network
    finally:
        del network.forward


class _Reached(Exception):
    """Leaves a network in the middle of its forward pass."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class _Watch(TorchFunctionMode):
    """Counts calls of activations on feature maps, and stops before that of a number."""

    def __init__(self, stop: int | None) -> None:
        super().__init__()
        self.stop, self.seen = stop, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_activation(function):
            given = args[0] if args else (kwargs or {})["input"]
            if given.ndim == 4:
                self.seen += 1
                if self.seen == self.stop:
                    raise _Reached(given)
        return function(*args, **(kwargs or {}))
