"""Whether a training gets anywhere: what it reaches in units of an answer that never changes, and for how long."""

import math
from collections.abc import Iterable

from torch import Tensor

PATIENCE = 3  # epochs after which standing still is told


def in_log_classes(loss: Tensor, logits: Tensor) -> Tensor:
    """Give a loss in units of log k, the cross-entropy of k equal ``logits`` ``(n, k)``."""
    return loss / math.log(logits.shape[1])


def lift(logits: Tensor, y: Tensor) -> Tensor:
    """Give the accuracy of ``logits`` ``(n, k)`` in units of 1/k, that of guessing; a number."""
    return (logits.argmax(1) == y).to(logits).mean() * logits.shape[1]


def for_epochs(held: Iterable[bool], patience: int = PATIENCE) -> bool:
    """Tell whether something held in ``patience`` epochs running."""
    running = 0
    for holds in held:
        running = running + 1 if holds else 0
        if running == patience:
            return True
    return False
