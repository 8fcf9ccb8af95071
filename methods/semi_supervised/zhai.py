"""PASS: unlabelled images are attacked away from the class that the network itself, at this step, sees in them."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.semi_supervised.normalised_bounds import NormalisedBounds
from methods.unlabelled import HIDDEN, Guesses, Reference, References, SelfLabelling

COLLAPSED, EPOCHS = 0.5, 3  # share of the guesses that one class has, in so many epochs on end; a choice of ours


class Zhai(SelfLabelling, AdversarialTraining):
    r"""Add to adversarial training the same on unlabelled images, with the present prediction for a label.

    .. math:: CE(f(x'), y) + \lambda\, CE(f(u'), \hat y), \quad \hat y = \arg\max_k f_k(u), \quad
        x' = \arg\max_{\|x' - x\| \le \epsilon} CE(f(x'), y), \quad
        u' = \arg\max_{\|u' - u\| \le \epsilon} CE(f(u'), \hat y)

    each a mean over its own images, labelled x or unlabelled u. Source: Zhai et al., 2019, arXiv:1906.00555, whose
    revision calls it PASS. Reading: as in the authors' code, everything runs in train mode, the attack and the
    pseudo-labels included, so that each of its forwards moves BatchNorm's statistics; labelled and unlabelled images
    never share a batch. Reading: bounds are in pixels; those of the authors' code, in normalised space and wrong in two
    ways, are an option. Reading: their transductive experiments train on test images and stand in no suite.

    A batch says y = -1 where an image has no label.

    Steps: 1. In train mode predict the unlabelled images; the likeliest class is their pseudo-label, of this step
    alone. 2. Attack the labelled images: from Gaussian noise cut off at half of epsilon, clipped to the pixel range,
    climb the cross-entropy K times, each time back into the ball, then into the range; forward the last iterate.
    3. Likewise the unlabelled images, away from their pseudo-labels. 4. Labelled loss plus lam times unlabelled loss;
    backward, optimizer step.

    Warning: the published 42.48% most likely comes from 10,000 labels and is no neighbour of rows that use all of them;
    it was measured by the training attack itself, 7 steps from the Gaussian start, and no AutoAttack figure is known.
    Warning: at lam 0.1 the unlabelled term is a tenth of the loss and takes most of the passes; expect little of it on
    few images. Warning: pseudo-labels of the first epochs are close to random, and there is no ramp.

    History: pseudo_label_accuracy, of all guesses of the epoch, majority_share of its most frequent class and that
    majority_class; the harness writes them, for the method does not see the labels.

    Args:
        lam: weight of the unlabelled images; 0 is training on the labelled ones, in the same small batches.
        least_labelled: labelled images of a batch at least, where the ratio of the pools gives fewer; below 16 their
            mean and their batch statistics are noise (our choice).
        cut: how far the start moves a pixel at most, in pixel units or relative to epsilon.
        mean, std: of the network's input normalisation, a value a channel. With both, the attack has the bounds of the
            authors' code (``normalised_bounds.py``), which may leave the ball.
    """

    card = Card(key="zhai", category="semi-supervised", citation="zhai2019adversarially", comparison="D")
    references: ClassVar[References | None] = References(
        lower=(Reference("pgd_at"), Reference("zhai", {"lam": 0.0}, name="zhai/lam_0")), oracle="pgd_at"
    )

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        lam: float = 0.1,
        least_labelled: int = 16,
        cut: str | float = "epsilon/2",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        inner: Inner = Inner(steps=7, step_size="epsilon/4", start="gaussian", scale="epsilon/4", mode="train"),
        **common: Any,
    ) -> None:
        if not lam >= 0:
            raise BadInput(f"lam is 0 or more, but found {lam}")
        if least_labelled < 1:
            raise BadInput(f"least_labelled is 1 or more, but found {least_labelled}")
        super().__init__(network, threat, inner=inner, **common)
        self.lam = lam
        self.least_labelled = least_labelled
        self.cut = Pixels.read(cut, "cut")
        self.bounds = NormalisedBounds.of(mean, std)

    def labelled_rows(self, batch_size: int, labels: int, images: int) -> int:
        """Give each pool its share of the batch, but the labelled images no fewer than :attr:`least_labelled`."""
        return min(batch_size, max(self.least_labelled, round(batch_size * labels / images)))

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        hidden = batch.y == HIDDEN
        labelled, unlabelled = batch.rows(~hidden), self._guessed(batch.rows(hidden))
        losses = [
            weight * self._adversarial_loss(part)
            for weight, part in ((1.0, labelled), (self.lam, unlabelled))
            if len(part.y)  # a library's batch may lack either
        ]
        return torch.stack(losses).sum()

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack from the cut-off noise, within the pixel bounds or those of the authors' code."""
        x, threat = batch.x, self.present_threat()
        cut = self.cut.at(threat.epsilon)
        noise = replace(self.inner, boxed=False).begin(torch.zeros_like(x), threat, self.draws).clamp(-cut, cut)
        if self.bounds is not None:
            return self.bounds.climb(self.inner, self.network, batch, objective, threat, noise)
        start = (x + noise).clamp(threat.low, threat.high) if self.inner.boxed else x + noise
        return self.inner.climb(self.network, x, batch.y, objective, threat, start=start)

    def remarks(self) -> dict[str, float | str]:
        """Say how good the last epoch's pseudo-labels were, and whether one class swallowed the others."""
        told = {name: self.noted(name) for name in ("pseudo_label_accuracy", "majority_share")}
        last = {name: values[-1] for name, values in told.items() if values}
        return last | ({"mark": "collapsed pseudo-labels"} if self._collapsed() else {})

    def _guessed(self, unlabelled: Batch) -> Batch:
        if not len(unlabelled.y):
            return unlabelled
        labels = self(unlabelled.x).argmax(1)
        self.guesses = Guesses(unlabelled.index, labels)
        return unlabelled._replace(y=labels)

    def _adversarial_loss(self, part: Batch) -> Tensor:
        return self.classification_loss(self(self.perturb(part, cross_entropy_with(part.y))), part.y)

    def _collapsed(self) -> bool:
        """Tell whether one and the same class had more than half of the guesses for three epochs on end."""
        epochs, before = 0, -1.0
        for now, share in zip(self.noted("majority_class"), self.noted("majority_share"), strict=True):
            epochs = 0 if share <= COLLAPSED else epochs + 1 if now == before else 1
            if epochs == EPOCHS:
                return True
            before = now
        return False
