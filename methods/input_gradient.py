"""The gradient of the loss by the images: the one thing that every regulariser of smoothness looks at."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.modes import full_precision
from attacks.objectives import Objective


class InputGradient(NamedTuple):
    """Logits ``(n, k)`` at some images, what the objective says of each ``(n,)``, and its gradient ``(n, c, h, w)``."""

    logits: Tensor
    value: Tensor
    gradient: Tensor


def input_gradient(network: nn.Module, x: Tensor, objective: Objective, *, create_graph: bool = False) -> InputGradient:
    """Differentiate each image's OWN ``objective`` by that image ``(n, c, h, w)``: no mean over the batch.

    The network is run in the mode it is in. In train mode BatchNorm lets images depend on one another, and so does the
    gradient. Mixed precision is off inside, because double backward and small differences of gradients lose their
    digits in it; DDP and gradient checkpointing do not mind.

    Args:
        create_graph: keep the gradient differentiable by the weights (double backward); without it gradient, value and
            logits come without a graph.

    Raises:
        RuntimeError: PyTorch's, where a fused or compiled layer has no second derivative.
    """
    with torch.enable_grad(), full_precision(x):
        point = x.detach().requires_grad_()
        logits = network(point)
        value = objective(logits)
        (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=create_graph)
    if create_graph:
        return InputGradient(logits, value, gradient)
    return InputGradient(logits.detach(), value.detach(), gradient)
