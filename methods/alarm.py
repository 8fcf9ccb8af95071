"""The alarm for catastrophic overfitting: single-step methods under FGSM and under PGD-10, epoch by epoch.

A network trained on one-step attacks may learn to make that one step useless: within an epoch its accuracy under FGSM
rises while that under PGD falls to nothing. Held-out training images show it; nothing here acts on the training.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from attacks.pgd import fgsm
from attacks.threat import ThreatModel

FGSM, PGD10 = "held_out_fgsm", "held_out_pgd10"  # accuracies in [0, 1] in a line of a method's history


def right_under_fgsm(network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Tell which images ``x`` ``(n, c, h, w)`` are right after one step of epsilon from themselves, ``(n,)``."""
    attacked = fgsm(network, x, y, threat)
    with torch.no_grad():
        return network(attacked).argmax(1) == y


def catastrophic_overfitting(history: Iterable[Mapping[str, float]]) -> int | None:
    """Give the first epoch in which PGD-10 accuracy is below half of its maximum so far; None where there is none."""
    highest = 0.0
    for line in history:
        accuracy = line.get(PGD10, highest)  # an epoch without validation tells nothing
        if accuracy < highest / 2:
            return int(line["epoch"])
        highest = max(highest, accuracy)
    return None


def label_leaking(history: Iterable[Mapping[str, float]]) -> list[int]:
    """List the epochs in which FGSM accuracy is above clean accuracy: the attack gives the label away.

    Such a figure is never one of robustness. Source: Kurakin et al., ICLR 2017, arXiv:1611.01236, who named it.
    """
    return [int(line["epoch"]) for line in history if FGSM in line and line[FGSM] > line["held_out_clean"]]
