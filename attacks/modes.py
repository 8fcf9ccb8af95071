"""Borrow a network for an attack and give it back as it was: mode, gradients, parameters' flags."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["eval", "train", "batch"]


@contextmanager
def in_mode(network: nn.Module, mode: Mode) -> Iterator[nn.Module]:
    """Put ``network`` into a mode inside the block; afterwards each part is in the mode it was in.

    Part by part, because a network may keep some of its layers (frozen BatchNorm) in eval mode for good; a network
    that is in train mode already is therefore left as it is.

    Args:
        mode: ``eval``; ``train``; or ``batch``, which is train mode except that running statistics stay as they are,
            as in TensorFlow, where they move with the training step only.
    """
    found = [(module, module.training) for module in network.modules()]
    if mode == "eval" or not network.training:
        network.train(mode != "eval")
    try:
        with _other_buffers(network) if mode == "batch" else nullcontext():
            yield network
    finally:
        for module, training in found:
            module.training = training


@contextmanager
def _other_buffers(network: nn.Module) -> Iterator[None]:
    """Let ``network`` write to copies of its buffers; its own are not touched, so that no graph minds."""
    own = [(part, name, value) for part in network.modules() for name, value in part.named_buffers(recurse=False)]
    for part, name, value in own:
        setattr(part, name, value.clone())
    try:
        yield
    finally:
        for part, name, value in own:
            setattr(part, name, value)


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Switch mixed precision off inside the block, on the device of ``like``."""
    return torch.autocast(like.device.type, enabled=False)


@contextmanager
def products(kind: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Multiply float32 numbers whole, or as NVIDIA's short TF32, inside the block.

    PyTorch rounds the factors of convolutions to TF32 unless it is told otherwise. Without effect on CPUs.
    """
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined] # made at run time
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = kind
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


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
