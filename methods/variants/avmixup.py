"""Adversarial vertex mixup: train between clean images and points beyond the adversarial ones, labels mixed too."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner


class AVMixup(AdversarialTraining):
    r"""Train on the way from each image to its adversarial vertex, with a label that grows softer along it.

    .. math:: CE(f(\hat x), \hat y), \quad \hat x = w x + (1 - w)(x + \gamma \delta), \quad
        \hat y = w\, \phi(y, \lambda_1) + (1 - w)\, \phi(y, \lambda_2), \quad w \sim Beta(\alpha, \alpha)

    with :math:`\delta` the perturbation of PGD and :math:`\phi(y, \lambda)` the label that leaves :math:`\lambda` to
    the true class.

    Source: Lee et al., CVPR 2020, arXiv:2003.02484. Reading: batch statistics during the attack, which
    moves no running statistic, as in the authors' TensorFlow; one w per image; the vertex is clipped to the pixel range
    but not to the ball, so that images with w < 1/2 may lie up to 2 epsilon away. A recipe's label smoothing is not
    added: these labels are soft already.

    Steps: 1. Attack the hard labels' cross-entropy by PGD, with batch statistics. 2. Go on to the vertex, gamma times
    as far from the image, and clip it to the pixel range. 3. Draw one w per image; mix image and vertex, and their two
    smoothed labels, by the same w. 4. In train mode forward the mixed images; soft cross-entropy, backward, optimizer
    step.

    Warning: such soft labels flatter PGD on the cross-entropy: the published CW-20 is 5 to 17 points lower, and no
    AutoAttack figure is known, so rank it by the worst case. Warning: the survey's Tiny ImageNet figure may be that of
    the PGD baseline. Warning: the loss does not fall to 0, because the labels themselves have entropy.

    Args:
        gamma: how far the vertex lies, in perturbations.
        lambda1, lambda2: mass of the true class at the clean end, and at the vertex; 1 is a hard label.
        alpha: of the Beta distribution; 1 is uniform.

    History: ``largest_radius``, gamma epsilon, up to which images are trained on.

    """

    card = Card(key="avmixup", category="variant", citation="lee2020adversarial")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        gamma: float = 2.0,
        lambda1: float = 1.0,
        lambda2: float = 0.1,
        alpha: float = 1.0,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="batch"),
        **common: Any,
    ) -> None:
        if not gamma >= 0:
            raise BadInput(f"gamma is 0 or more, but found {gamma}")
        if not alpha > 0:
            raise BadInput(f"alpha is above 0, but found {alpha}")
        for name, mass in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not 0 <= mass <= 1:
                raise BadInput(f"{name} is the mass of the true class, between 0 and 1, but found {mass}")
        super().__init__(network, threat, inner=inner, **common)
        self.gamma, self.lambda1, self.lambda2, self.alpha = gamma, lambda1, lambda2, alpha

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        weight = self.draws.beta(self.alpha, self.alpha, batch.x, shape=(len(batch.x), 1, 1, 1))
        mixed = self.perturb(batch, cross_entropy_with(batch.y), weight)
        self.note("largest_radius", mixed.new_tensor(self.gamma * self.present_threat().epsilon))
        logits = self(mixed)
        return -(self.mixed_labels(batch.y, weight, logits) * logits.log_softmax(1)).sum(1).mean()

    def perturb(self, batch: Batch, objective: Objective, weight: Tensor | float = 0.0) -> Tensor:
        """Mix images with their vertices; ``weight`` ``(n, 1, 1, 1)`` is the clean image's share, 0 the vertex."""
        x, threat = batch.x, self.present_threat()
        vertex = (x + self.gamma * (super().perturb(batch, objective) - x)).clamp(threat.low, threat.high)
        return (weight * x + (1 - weight) * vertex).clamp(threat.low, threat.high)  # rounding may step over a bound

    def remarks(self) -> dict[str, float | str]:
        """Give the largest radius up to which images are trained on, gamma epsilon."""
        return {"largest_radius": self.gamma * self.threat.epsilon}

    def mixed_labels(self, y: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Give the label distributions ``(n, k)``, mixed by the images' own ``weight``, for logits ``like`` them."""
        share = weight.reshape(-1, 1)
        return share * phi(y, self.lambda1, like) + (1 - share) * phi(y, self.lambda2, like)


def phi(y: Tensor, mass: float, like: Tensor) -> Tensor:
    """Give label distributions like logits ``(n, k)``: ``mass`` on the true class, the rest shared by the others."""
    hard = F.one_hot(y, like.shape[1]).to(like)
    return mass * hard + (1 - mass) / (like.shape[1] - 1) * (1 - hard)
