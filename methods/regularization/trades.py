"""TRADES: cross-entropy on clean images, and adversarial predictions that agree with them."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.objectives import Objective, kl_divergence, kl_from
from attacks.threat import ThreatModel, l2_length
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner


class TRADES(AdversarialTraining):
    r"""Trade accuracy against robustness by pulling adversarial predictions to the clean ones.

    .. math:: CE(f(x), y) + \beta\, KL(p(x) \| p(x')), \quad x' = \arg\max_{\|x'-x\| \le \epsilon} KL(p(x) \| p(x'))

    Source: Zhang et al., ICML 2019, arXiv:1901.08573, equation 5. Reading: the clean prediction is NOT detached, the
    attack sees no labels and starts from Gaussian noise of a fixed 0.001, outside the pixel range where it falls there
    (at the image itself the divergence has no gradient). In L2 the authors' ascent is another one, below.

    Steps: 1. Predict the clean images once, in eval mode, without a graph. 2. From the noise climb the divergence from
    that prediction K times, still in eval mode, each time back into the ball, then into the range. 3. In train mode
    forward the clean images, then the adversarial ones. 4. Clean cross-entropy plus beta times the divergence, both
    means over the batch; backward through both predictions, optimizer step.

    Warning: AutoAttack lies some 3.5 points below PGD, as is usual here and no sign of masking. Warning: a short
    training at beta 6 mostly costs clean accuracy; look at the training loss before calling that a trade-off.

    Args:
        beta: weight of the divergence, 1/lambda in the paper; the authors recommend 1 to 10.
        exact_forwards: run the authors' third train-mode forward, on the clean images again; loss and gradient are
            the same, BatchNorm's statistics count the clean images twice.
    """

    card = Card(key="trades", category="regularization", citation="zhang2019theoretically")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        beta: float = 6.0,
        inner: Inner = Inner(
            steps=10,
            step_size="0.007/0.031 epsilon",
            start="gaussian",
            scale=1e-3,
            boxed=False,
            mode="eval",
            full_precision=True,  # from so small a start the gradient drowns in bfloat16
        ),
        exact_forwards: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(network, threat, inner=inner, **common)
        self.beta = beta
        self.exact_forwards = exact_forwards

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, kl_from(self.frozen_logits(batch.x)))  # both in eval mode, no graph
        clean, adversarial = self(batch.x), self(attacked)
        reference = self(batch.x) if self.exact_forwards else clean
        return self.classification_loss(clean, batch.y) + self.beta * kl_divergence(reference, adversarial).mean()

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack as the threat's norm asks: projected ascent in Linf, the authors' own in L2."""
        threat = self.present_threat()
        if threat.norm == "l2":
            return self._l2_ascent(batch.x, objective, threat)
        return super().perturb(batch, objective)

    def _l2_ascent(self, x: Tensor, objective: Objective, threat: ThreatModel) -> Tensor:
        """Climb by unit gradients times 2 epsilon / steps; each iterate goes into the range FIRST, then the ball."""
        delta = self.inner.begin(x, threat, self.draws) - x
        with self.inner.conditions(self.network, x):
            for _ in range(self.inner.steps):
                point = (x + delta).requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(objective(self(point)).sum(), point)
                length = l2_length(gradient)
                direction = torch.where(length > 0, gradient / length, self.draws.normal(x))
                stepped = x + delta + 2 * threat.epsilon / self.inner.steps * direction
                delta = _renorm(stepped.clamp(threat.low, threat.high) - x, threat.epsilon)
        return (x + delta).clamp(threat.low, threat.high)


def _renorm(delta: Tensor, epsilon: float) -> Tensor:
    return delta.flatten(1).renorm(2, dim=0, maxnorm=epsilon).reshape(delta.shape)
