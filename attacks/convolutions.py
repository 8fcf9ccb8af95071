"""Convolutions whose images' gradient comes by another way than oneDNN's on CPUs, where that is slow.

Forward they are what they were. An attack asks for the gradient of the images in every step, and for no other.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 4  # input channels up to which there is a faster way, by two to six times; those that read the images

Way = Callable[[nn.Conv2d, Tensor, torch.Size], Tensor]
"""Convolution, gradient of its result, and shape of its images, to the gradient of these."""


def with_fast_gradients(network: nn.Module) -> nn.Module:
    """Swap the convolutions that gain, in place."""
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            # A subclass may compute something else, such as another gradient.
            if type(part) is nn.Conv2d and (way := _way(part)) is not None:
                setattr(parent, name, Swapped(part, way))
    return network


def _way(part: nn.Conv2d) -> Way | None:
    plain = part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    if not plain or part.in_channels > NARROW:
        return None
    stride = part.stride[0]
    square = part.stride[1] == stride and part.dilation == (1, 1)
    in_blocks = square and stride > 1 and not any(side % stride for side in part.kernel_size)
    return by_unit_stride if in_blocks else by_matrix_product


class Swapped(nn.Module):
    """A convolution with a way of its own to the gradient of its images."""

    def __init__(self, convolution: nn.Conv2d, way: Way) -> None:
        super().__init__()
        self.convolution, self.way = convolution, way

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        asked = x.requires_grad and torch.is_grad_enabled()
        return _Function.apply(x, self.convolution, self.way) if asked else self.convolution(x)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: nn.Conv2d, way: Way) -> Tensor:
        ctx.convolution, ctx.way, ctx.shape, ctx.dtype = convolution, way, x.shape, x.dtype
        result: Tensor = convolution(x)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.way(ctx.convolution, gradient, ctx.shape).to(ctx.dtype), None, None


def by_matrix_product(part: nn.Conv2d, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Give the transposed weights times the gradient, summed over the windows of each pixel, in float32 at least."""
    columns = part.weight.flatten(1).t().to(gradient.dtype) @ gradient.flatten(2)
    columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
    padding = cast(tuple[int, ...], part.padding)
    return F.fold(columns, shape[2:], part.kernel_size, part.dilation, padding, part.stride)


def by_unit_stride(part: nn.Conv2d, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Take each block of stride times stride pixels for one pixel of as many channels: a convolution of stride 1."""
    stride, (top, left) = part.stride[0], cast(tuple[int, int], part.padding)
    blocks = F.pixel_unshuffle(part.weight, stride).to(gradient.dtype)
    covered = F.pixel_shuffle(F.conv_transpose2d(gradient, blocks), stride)
    below, right = shape[2] + top - covered.shape[2], shape[3] + left - covered.shape[3]
    return F.pad(covered, (-left, right, -top, below))
