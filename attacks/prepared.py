"""Make a network faster to attack without changing what it computes, but for the last bits."""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDE = 16  # input channels from which channels-last convolutions gain on CPUs; narrower ones lose a little
NARROW = 4  # input channels up to which a convolution's gradient is faster by a matrix product on CPUs
SAME = 1e-3  # of the largest logit: what is done here rounds differently, and nothing else


def prepared(network: nn.Module, example: Tensor, *, to_compile: bool = False) -> nn.Module:
    """Give a copy of ``network`` for searching: frozen, BatchNorm folded into convolutions, in the layout that is fast.

    What cannot be done to a network is left out: one that cannot be copied is given back as it is, one that cannot be
    traced keeps its BatchNorm, and a copy whose logits on ``example`` ``(n, c, h, w)`` differ is not used.

    Args:
        network: in eval mode.
        to_compile: leave alone what a compiler does by itself, or cannot follow.
    """
    try:
        twin = copy.deepcopy(network)
    except Exception:  # whatever a user's module raises; the plain network serves as well
        return network
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    twin = _checked(_folded(twin), twin, network, example)
    if example.device.type == "cpu" and not to_compile:
        twin = _checked(_with_fast_gradients(copy.deepcopy(twin)), twin, network, example)
    if _is_wide(twin):
        twin = _checked(copy.deepcopy(twin).to(memory_format=torch.channels_last), twin, network, example)
    return twin


def _folded(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm that follows a convolution into it, where the network can be traced."""
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        return network
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(network)
    except Exception:  # control flow that depends on the images, and anything else that tracing cannot follow
        return network


def _with_fast_gradients(network: nn.Module) -> nn.Module:
    """Swap the convolutions on few channels, in place: those that read the images, whose gradient every step asks."""
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            # A subclass may compute something else, such as another gradient.
            if type(part) is nn.Conv2d and _is_narrow(part):
                setattr(parent, name, _Narrow(part))
    return network


def _is_narrow(part: nn.Conv2d) -> bool:
    plain = part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return plain and part.in_channels <= NARROW


class _Narrow(nn.Module):
    """A convolution on few channels; oneDNN takes up to six times as long as this for the gradient of its images."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        asked = x.requires_grad and torch.is_grad_enabled()
        return _NarrowConvolution.apply(x, self.convolution) if asked else self.convolution(x)


class _NarrowConvolution(torch.autograd.Function):
    """Its gradient: the transposed weights times the gradient behind it, summed over the windows of each pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: nn.Conv2d) -> Tensor:
        ctx.convolution, ctx.like = convolution, x
        return convolution(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        part: nn.Conv2d = ctx.convolution
        columns = part.weight.flatten(1).t().to(gradient.dtype) @ gradient.flatten(2)
        size = ctx.like.shape[2:]
        padding = cast(tuple[int, ...], part.padding)
        folded = F.fold(columns.to(ctx.like.dtype), size, part.kernel_size, part.dilation, padding, part.stride)
        return folded, None


def _checked(made: nn.Module, before: nn.Module, original: nn.Module, example: Tensor) -> nn.Module:
    """Take ``made`` if it answers as the ``original`` does, else what there was ``before``."""
    try:
        with torch.no_grad():
            expected, found = original(example), made(example)
    except Exception:
        return before
    room = SAME * float(expected.abs().max())
    return made if bool(((expected - found).abs() <= room).all()) else before


def _is_wide(network: nn.Module) -> bool:
    return any(part.in_channels // part.groups >= WIDE for part in network.modules() if isinstance(part, nn.Conv2d))
