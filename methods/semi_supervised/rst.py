"""Robust self-training: TRADES on labelled images and on images that a standard network has labelled."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, kl_divergence, kl_from
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.base import Batch, Card
from methods.inner import Inner
from methods.per_image import PerImage
from methods.regularization.trades import TRADES
from methods.unlabelled import HIDDEN, PseudoLabelled, Reference, References, entropy, mean_where


class RST(PseudoLabelled, TRADES):
    r"""Label the unlabelled images by a network trained without a defence, then train all of them by TRADES.

    .. math:: CE(f(x), t) + \beta\, KL(p(x) \| p(x')), \quad x' = \arg\max_{\|x'-x\| \le \epsilon} KL(p(x) \| p(x'))

    with :math:`t` the true label or the pseudo-label, hard and fixed, without a threshold of confidence. Source: Carmon
    et al., NeurIPS 2019, arXiv:1905.13736. Reading: as in the authors' code, the weight of unlabelled images is their
    share of the batch, not a factor of the loss; the start is Gaussian noise of 0.001 at their epsilon of 0.031, here
    the same fraction of any epsilon. In L2 the ascent is that of TRADES, for the authors have none.

    A batch says y = -1 where an image has no label; :meth:`learn_from` takes the pseudo-labels. A target that is still
    -1 is left out of the cross-entropy, a mean over the others, and kept in the divergence.

    Steps: 1. Put the pseudo-label in the place of each label that is hidden. 2. Predict the images once, in eval mode,
    without a graph, and from the noise climb the divergence from that prediction K times. 3. In train mode forward the
    adversarial images first, then the clean ones. 4. Clean cross-entropy plus beta times the divergence; backward
    through both predictions, optimizer step.

    Warning: where labels are hidden from a small data set this is not the published situation, 500,000 extra images
    beside 50,000 labels; its figures belong nowhere near such rows. Warning: the teacher's errors are learned, for no
    confidence threshold helps, so look at its accuracy on the unlabelled images. Warning: few labels are seen often;
    where the best checkpoint is well above the last, the network overfits to them.

    History: without_target is the share of images in the batches that had neither label nor pseudo-label.

    Args:
        beta: weight of the divergence; 0 is cross-entropy on clean images and nothing else.
        unsup_fraction: share of unlabelled images in a batch.
        pseudo_labels: False for the variant without them ("rVAT"): unlabelled images are in the divergence only.
        entropy_weight: of the mean entropy of p(x) over images without a target.
        sigma: train stability in place of an attack (RST_stab): x' = x + sigma N(0, I), clipped to the pixel range. In
            pixel units or relative to epsilon; the authors' is 0.25.
    """

    card = Card(key="rst", category="semi-supervised", citation="carmon2019unlabeled", comparison="D")
    references: ClassVar[References | None] = References(lower=(Reference("trades"),), oracle="trades")
    redraws_unlabelled = True
    pools_apart = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        beta: float = 6.0,
        unsup_fraction: float = 0.5,
        pseudo_labels: bool = True,
        entropy_weight: float = 0.0,
        sigma: str | float | None = None,
        inner: Inner = Inner(
            steps=10,
            step_size="0.007/0.031 epsilon",
            start="gaussian",
            scale="0.001/0.031 epsilon",
            boxed=False,
            mode="eval",
            full_precision=True,
        ),
        **common: Any,
    ) -> None:
        super().__init__(network, threat, beta=beta, inner=inner, exact_forwards=False, **common)
        if not 0 <= unsup_fraction <= 1:
            raise BadInput(f"unsup_fraction lies between 0 and 1, but found {unsup_fraction}")
        if sigma is not None:
            Pixels.read(sigma, "sigma")
        self.unsup_fraction = unsup_fraction
        self.uses_pseudo_labels = pseudo_labels
        self.entropy_weight = entropy_weight
        self.sigma = sigma
        self.pseudo_labels = PerImage(HIDDEN)

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:  # noqa: D102 - the mixin says it
        return bool(settings.get("pseudo_labels", True))

    def labelled_rows(self, batch_size: int, labels: int, images: int) -> int:
        """Give the labelled images their share; the authors round the unlabelled ones down."""
        return batch_size - int(batch_size * self.unsup_fraction)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        targets = self.with_pseudo_labels(batch.y, batch.index) if self.uses_pseudo_labels else batch.y
        known = targets != HIDDEN
        self.note("without_target", (~known).double())
        if self.beta == 0:
            return self._natural_loss(self(batch.x), targets, known)
        climbed = kl_from(self.frozen_logits(batch.x)) if self.sigma is None else None
        attacked = self.perturb(batch, climbed)
        adversarial, clean = self(attacked), self(batch.x)  # BatchNorm counts the attacked images first
        loss = self._natural_loss(clean, targets, known) + self.beta * kl_divergence(clean, adversarial).mean()
        if self.entropy_weight == 0:
            return loss
        return loss + self.entropy_weight * mean_where(~known, entropy(clean))

    def perturb(self, batch: Batch, objective: Objective | None) -> Tensor:
        """Attack as TRADES does; without an objective only disturb the images by ``sigma``, whatever the weights."""
        if objective is not None:
            return super().perturb(batch, objective)
        threat = self.present_threat()
        noise = Pixels.read(self.sigma or 0.0).at(threat.epsilon) * self.draws.normal(batch.x)
        return (batch.x + noise).clamp(threat.low, threat.high)

    def _natural_loss(self, logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        if known.all():
            return self.classification_loss(logits, targets)
        return mean_where(known, self.recipe.cross_entropy(logits, targets.clamp(min=0)))
