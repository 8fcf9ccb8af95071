"""Differentiate by the images, also where a network lets no gradient through."""

import torch
from torch import Tensor


def slope(value: Tensor, point: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Give the gradient of the number ``value`` by ``point``, like it.

    It is zero where no graph leads from one to the other, as behind ``torch.no_grad`` or ``detach``: an attack stands
    still there, others without gradients may not, and credibility checks tell.
    """
    if not value.requires_grad:
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(value, point, retain_graph=retain_graph, allow_unused=True)
    return torch.zeros_like(point) if found is None else found
