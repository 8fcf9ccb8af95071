"""Compile what is asked often, and go on without where that fails: no C++ compiler, a network it cannot follow."""

import torch
from torch import Tensor, nn

from attacks.modes import products


def compiled(network: nn.Module, example: Tensor) -> tuple[nn.Module, str]:
    """Put ``network`` through ``torch.compile`` and try it on ``example``, with a gradient and without.

    Batches are of one shape, so that nothing is compiled for shapes in general. It takes up to a minute.

    Returns:
        the compiled network and ``""``; or ``network`` itself, and a sentence for people.
    """
    made = torch.compile(network, dynamic=False)
    try:
        with products("ieee"):
            with torch.inference_mode():
                made(example)
            with torch.enable_grad():
                asked = example.detach().clone().requires_grad_()
                torch.autograd.grad(made(asked).sum(), asked)
    except Exception as error:  # of many kinds; a network that fails by itself has failed before
        reason = next(iter(str(error).strip().splitlines()), "")[:160]
        return network, f"torch.compile fails here ({type(error).__name__}: {reason}): the attack goes on without"
    return made, ""  # type: ignore[return-value]
