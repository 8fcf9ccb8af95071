"""FGSM adversarial training: the mean of the clean loss and of the loss after one step."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step


class FGSMAT(AdversarialTraining):
    r"""Train on clean images and, with the same labels, on the images that one gradient step makes of them.

    .. math:: \alpha\, CE(f(x), y) + (1 - \alpha)\, CE(f(x'), y),
        \quad x' = x + \epsilon\,\mathrm{sign}\,\nabla CE(f(x), y)

    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 6. Reading: a mean with the weights alpha and one
    minus alpha, alpha being that of the CLEAN loss, not a term added to the cross-entropy, as the survey has it; no
    random start (that is Fast-AT). Reading: the paper is silent about the network's mode during the step, because its
    networks have no BatchNorm; here eval mode. The two losses have a forward each, as in CleverHans, where ``kurakin``
    and ``alp`` share one.

    Steps: 1. In eval mode forward the clean images; gradient of the cross-entropy of the true label by the images.
    2. One step of epsilon along its sign, clipped to the pixel range. 3. In train mode forward the clean images, then
    the adversarial ones. 4. Mean of the two cross-entropies with the weights alpha and 1 - alpha; backward, optimizer
    step.

    Warning: the network learns to make its one step useless; its accuracy under FGSM is no figure of robustness, and
    where it is above the clean one, the step has given the label away. Warning: accuracy under PGD may fall to nothing
    within an epoch (catastrophic overfitting); the best epoch can hide what the last one shows.

    Args:
        alpha: weight of the clean loss; 1 is natural training, 0 trains on adversarial images alone.
        attack_mode: of the network during the step. In ``train`` one forward serves the step and the clean loss.
        exact_forwards: run CleverHans' forward for the step also where it could be shared; loss and gradient are the
            same but for dropout, BatchNorm's statistics count the clean images twice.
    """

    card = Card(
        key="fgsm_at",
        category="origin",
        citation="goodfellow2015explaining",
        broken="PGD leaves 0.0 % on CIFAR-10 at 8/255 of networks trained on FGSM alone (Madry et al., 2018)",
    )
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        alpha: float = 0.5,
        attack_mode: Mode = "eval",
        exact_forwards: bool = False,
        **common: Any,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise BadInput(f"alpha lies between 0 and 1, but found {alpha}")
        super().__init__(network, threat, inner=one_step(attack_mode), **common)
        self.alpha, self.exact_forwards = alpha, exact_forwards

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        climb = cross_entropy_with(batch.y)
        if self.alpha == 0:
            return self.classification_loss(self(self.perturb(batch, climb)), batch.y)
        if self.inner.mode == "train" and self.network.training and not self.exact_forwards:
            x = batch.x.detach().requires_grad_()
            clean = self(x)
            attacked = self.perturb(batch, climb, (x, clean))
        else:
            attacked = self.perturb(batch, climb)
            clean = self(batch.x)
        clean_loss, adversarial_loss = (self.classification_loss(part, batch.y) for part in (clean, self(attacked)))
        return self.alpha * clean_loss + (1 - self.alpha) * adversarial_loss

    def perturb(self, batch: Batch, objective: Objective, seen: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Take the one step, without a forward where images and their logits ``(n, k)`` with a graph were ``seen``."""
        if seen is None:
            return super().perturb(batch, objective)
        x, logits = seen
        (gradient,) = torch.autograd.grad(objective(logits).sum(), x, retain_graph=True)
        threat = self.present_threat()
        return threat.project(batch.x + threat.epsilon * threat.direction(gradient), batch.x)
