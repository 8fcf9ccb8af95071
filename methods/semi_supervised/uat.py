"""Unsupervised adversarial training: unlabelled images resist towards what a network says of them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import cross_entropy_with, kl_divergence, kl_from
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.per_image import PerImage
from methods.unlabelled import HIDDEN, PseudoLabelled, Reference, References

Variant = Literal["pp", "ft", "ot"]
LAM: dict[Variant, float] = {"pp": 3.0, "ft": 0.0, "ot": 5.0}


class UAT(PseudoLabelled, AdversarialTraining):
    r"""Attack unlabelled images towards fixed pseudo-labels, towards the network's own clean prediction, or both.

    .. math:: UAT{+}{+}: \; CE(f(x'), t) + \lambda\, KL(\bar p(x) \| p(x')), \quad
        x' = \arg\max_{\|x'-x\| \le \epsilon} CE(f(x'), t)

    .. math:: UAT\text{-}OT: \; CE(f(x), y) + \lambda\, KL(\bar p(u) \| p(u')), \quad
        u' = \arg\max_{\|u'-u\| \le \epsilon} KL(\bar p(u) \| p(u'))

    with :math:`t` the true label or that of a teacher trained on the labelled images without a defence,
    :math:`\bar p` the present prediction taken as a constant, and :math:`u` the unlabelled images; UAT-FT is
    :math:`\lambda = 0` in the first line.

    Source: Alayrac et al., NeurIPS 2019, arXiv:1905.13725. Reading: the authors published no training code, so the form
    of UAT++ is that of a re-implementation (Yang et al., ICCV 2023): one attack, on the cross-entropy, for both terms.
    Reading: whether the supervised loss of UAT-OT is clean or adversarial is not known; it is clean here. Reading: the
    stopped gradient is what parts UAT-OT from TRADES; where a batch has no unlabelled image its divergence is that of
    the labelled ones, as the paper's expectation is over both.

    A batch says y = -1 where an image has no label; :meth:`learn_from` takes the teacher's.

    Steps: 1. Put the pseudo-label in the place of each label that is hidden. 2. In eval mode, from a uniform start in
    ball and range, climb the cross-entropy K times (UAT-OT: of the unlabelled images only, and the divergence from
    their eval mode prediction). 3. In train mode forward the adversarial images; for UAT++ then the clean ones, without
    a graph (UAT-OT: labelled images, clean unlabelled ones without a graph, adversarial unlabelled ones). 4. Sum of the
    means; backward, optimizer step.

    Warning: where labels are hidden from a small data set this is not the published situation, 200,000 extra images
    beside 50,000 labels; its figures belong nowhere near such rows. Warning: the teacher's errors are learned by UAT-FT
    and UAT++, so look at its accuracy on the unlabelled images; UAT-OT has no teacher, and with few labels little to
    hold on to. Warning: Table 1 says FGSM, but the authors' attack of that name takes 20 steps.

    History: smoothness is the divergence, before its weight; not of UAT-FT.

    Args:
        variant: ``pp`` for UAT++, ``ft`` for fixed targets, ``ot`` for online targets.
        lam: weight of the divergence, constant from the first step; None for 3 of UAT++ and 5 of UAT-OT.
        kl_attack: UAT++ only: let the divergence have an attack of its own, on itself, at twice the cost.
        labelled_share: of a batch, what of it is labelled; rounded to whole images.
    """

    card = Card(key="uat", category="semi-supervised", citation="alayrac2019labels", comparison="D")
    references: ClassVar[References | None] = References(lower=(Reference("pgd_at"),), oracle="pgd_at")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        variant: Variant = "pp",
        lam: float | None = None,
        kl_attack: bool = False,
        labelled_share: float = 1 / 3,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        if variant not in get_args(Variant):
            raise BadInput(f"variant is one of {', '.join(get_args(Variant))}, but found {variant!r}")
        if lam is not None and not lam >= 0:
            raise BadInput(f"lam is 0 or more, but found {lam}")
        if not 0 <= labelled_share <= 1:
            raise BadInput(f"labelled_share lies between 0 and 1, but found {labelled_share}")
        super().__init__(network, threat, inner=inner, **common)
        self.variant = variant
        self.lam = LAM[variant] if lam is None else lam
        self.kl_attack = kl_attack
        self.labelled_share = labelled_share
        self.pseudo_labels = PerImage(HIDDEN)

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:  # noqa: D102 - the mixin says it
        return settings.get("variant", "pp") != "ot"

    def labelled_rows(self, batch_size: int, labels: int, images: int) -> int:
        """Give the labelled images their share, a third by default: the re-implementation's 64 beside 128."""
        return round(batch_size * self.labelled_share)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        if self.variant == "ot":
            return self._online_targets(batch)
        batch = self.with_targets(batch)
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        adversarial = self(attacked)  # BatchNorm counts the attacked images first
        loss = self.classification_loss(adversarial, batch.y)
        if self.variant == "ft":
            return loss
        clean = self._constant(batch.x)
        if self.kl_attack:
            adversarial = self(self._away_from_itself(batch))
        return loss + self.lam * self._smoothness(clean, adversarial)

    def _online_targets(self, batch: Batch) -> Tensor:
        hidden = batch.y == HIDDEN
        smoothed = batch.rows(hidden if hidden.any() else ~hidden)
        attacked = self._away_from_itself(smoothed)
        labelled, loss = batch.rows(~hidden), attacked.new_zeros(())
        if len(labelled.y):
            loss = self.classification_loss(self(labelled.x), labelled.y)
        clean = self._constant(smoothed.x)
        return loss + self.lam * self._smoothness(clean, self(attacked))

    def _away_from_itself(self, batch: Batch) -> Tensor:
        """Climb the divergence from the present prediction; from the image itself it has no gradient."""
        return self.perturb(batch, kl_from(self.frozen_logits(batch.x)))

    def _constant(self, x: Tensor) -> Tensor:
        """Predict in the present mode, which moves BatchNorm's statistics, without a graph."""
        with torch.no_grad():
            return self(x)

    def _smoothness(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        divergence = kl_divergence(clean, adversarial).mean()
        self.note("smoothness", divergence)
        return divergence
