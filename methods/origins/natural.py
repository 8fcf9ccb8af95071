"""Natural training: no defence at all, the zero of the robust scale and the ceiling of clean accuracy."""

from torch import Tensor

from methods.base import AdversarialTraining, Batch, Card


class Natural(AdversarialTraining):
    r"""Minimise the cross-entropy of clean images; every robust method must collapse to this in some limit.

    .. math:: CE(f(x), y)

    Source: none of its own. The threat is accepted and ignored, so that one run serves every epsilon; the best epoch is
    the one with the highest clean accuracy.
    """

    card = Card(key="natural", category="origin", citation="")
    faces_adversary = False

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        return self.classification_loss(self(batch.x), batch.y)
