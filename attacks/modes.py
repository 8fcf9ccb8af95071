"""Borrow a network for an attack and give it back as it was: mode, gradients, parameters' flags."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

Mode = Literal["eval", "train"]


@contextmanager
def in_mode(network: nn.Module, mode: Mode) -> Iterator[nn.Module]:
    """Put ``network`` into train or eval mode inside the block; afterwards each part is in the mode it was in.

    Part by part, because a network may keep some of its layers (frozen BatchNorm) in eval mode for good; a network
    that is in train mode already is therefore left as it is.
    """
    found = [(module, module.training) for module in network.modules()]
    if not (mode == "train" and network.training):
        network.train(mode == "train")
    try:
        yield network
    finally:
        for module, training in found:
            module.training = training


@contextmanager
def without_parameter_gradients(network: nn.Module) -> Iterator[nn.Module]:
    """Keep parameters out of every graph inside the block; afterwards flags and stored gradients are as before."""
    found = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    for parameter, _ in found:
        parameter.requires_grad_(False)
    try:
        yield network
    finally:
        for parameter, required in found:
            parameter.requires_grad_(required)
