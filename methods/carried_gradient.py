"""A loss that carries a gradient which was computed already: for steps of several backward passes and one update."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]  # one for each parameter, None where none arrived


def carrying(value: Tensor, parameters: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """Give a loss of the ``value`` ``()`` whose backward pass gives ``parameters`` exactly these ``gradients``.

    It does not run through the network again. Whatever the trainer does with a loss and with what lands in ``.grad``
    works as ever: scaling, accumulating, clipping, and DDP, which sees one backward pass and reduces once.
    """
    loss: Tensor = _Carry.apply(value.detach(), gradients, *parameters)
    return loss


def added(gradients: Gradients, more: Gradients) -> list[Tensor | None]:
    """Add up two lists of gradients of the same parameters."""
    return [
        one if other is None else other if one is None else one + other
        for one, other in zip(gradients, more, strict=True)
    ]


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else upstream * gradient for gradient in ctx.gradients)
