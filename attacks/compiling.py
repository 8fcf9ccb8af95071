"""Compile what is asked often, and go on without where that fails: no C++ compiler, a network it cannot follow."""

import torch
from torch import Tensor, nn

from attacks.oracle import Oracle, Precision


def compiled(network: nn.Module, example: Tensor, precision: Precision = "fp32") -> tuple[nn.Module, str]:
    """Put ``network`` through ``torch.compile`` and ask it about ``example``, with a gradient and without.

    Batches are of one shape, so that nothing is compiled for shapes in general. It takes up to a minute.

    Returns:
        the compiled network and ``""``; or ``network`` itself, and a sentence for people.
    """
    made = torch.compile(network, dynamic=False)
    try:
        trial = Oracle(network, made, precision=precision)  # type: ignore[arg-type]
        trial.logits(example)
        trial.climb(example, lambda logits: logits.amax(1))
    except Exception as error:  # of many kinds; a network that fails by itself has failed before
        reason = next(iter(str(error).strip().splitlines()), "")[:160]
        return network, f"torch.compile fails here ({type(error).__name__}: {reason}): the attack goes on without"
    return made, ""  # type: ignore[return-value]
