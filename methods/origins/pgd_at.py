"""PGD adversarial training, the row that every other method is tested against."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.objectives import cross_entropy_with
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner


class PGDAT(AdversarialTraining):
    r"""Train on the worst images that projected gradient ascent finds, and on nothing else.

    .. math:: CE(f(x'), y), \quad x' = \arg\max_{\|x' - x\| \le \epsilon} CE(f(x'), y)

    Source: Madry et al., ICLR 2018, arXiv:1706.06083, equation 2.1. Reading: eval mode while attacking, uniform start
    inside the pixel range, last iterate; MadryLab/robustness keeps the best iterate from no random start
    (``inner.keep: best``, ``inner.start: none``), their challenge attacks in train mode, as Rice et al. do.

    Steps: 1. In eval mode, start from a uniform point of the ball, clipped to the pixel range. 2. K times: step along
    the sign of the cross-entropy's gradient, back into the ball, then into the range. 3. In train mode forward the last
    iterate alone; cross-entropy, backward, optimizer step.

    Warning: robust overfitting (Rice et al., ICML 2020): after the learning rate falls, robustness on unseen images
    declines, and the best and the last epoch part by several points; look at both. Warning: on MNIST at 0.3, PGD-40
    without restarts says several points more than strong attacks do.

    Args:
        adversarial_share: weight of the adversarial loss; the rest goes to the clean one (Pang et al., ICLR 2021,
            arXiv:2010.00467). 1 is the method.
        clean_bn_forward: repeat the clean train-mode forward after each step by which the code of Rice et al., ICML
            2020, logs its accuracy, and which moves the statistics of BatchNorm.
    """

    card = Card(key="pgd_at", category="origin", citation="madry2018towards")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="eval"),
        adversarial_share: float = 1.0,
        clean_bn_forward: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(network, threat, inner=inner, **common)
        self.adversarial_share = adversarial_share
        self.clean_bn_forward = clean_bn_forward

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))  # hard labels, whatever the outer loss smooths
        loss = self.classification_loss(self(attacked), batch.y)
        if self.adversarial_share == 1:
            return loss
        clean = self.classification_loss(self(batch.x), batch.y)
        return self.adversarial_share * loss + (1 - self.adversarial_share) * clean

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Run the clean forward of Rice et al. where it is switched on."""
        if self.clean_bn_forward:
            with torch.no_grad():
                self(Batch.of(batch).x)
        super().on_train_batch_end(outputs, batch, batch_idx)
