"""Natural training: no defence at all, the zero of the robust scale and the ceiling of clean accuracy."""

from torch import Tensor

from methods.base import AdversarialTraining, Batch, Card


class Natural(AdversarialTraining):
    r"""Minimise the cross-entropy of clean images; every robust method must collapse to this in some limit.

    .. math:: CE(f(x), y)

    Source: none of its own.
    Reading: the threat is accepted and ignored, so that one run serves every epsilon; the best epoch is the one with
    the highest clean accuracy.

    Steps: 1. Forward the clean images in train mode. 2. Mean cross-entropy, backward, optimizer step.

    Warning: on CIFAR-10 at 8/255 more than about 1 % under PGD-20, or anything under AutoAttack, speaks of a broken
    attack, not of robustness. FGSM alone leaves 20 to 35 % there, because the loss saturates: it is no evidence.
    """

    card = Card(
        key="natural",
        category="origin",
        citation="",
        broken="no defence: AutoAttack leaves 0.00 % (CIFAR-10, Linf 8/255; RobustBench, model Standard)",
    )
    faces_adversary = False

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        return self.classification_loss(self(batch.x), batch.y)
