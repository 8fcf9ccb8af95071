"""GradAlign: FGSM training that keeps the input gradient's direction the same all over the ball."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import cross_entropy_with
from attacks.threat import ThreatModel, l2_length
from methods.alarm import PGD10, catastrophic_overfitting
from methods.base import Batch, Card
from methods.efficient.two_gradients import OneStepStart, TwoGradients


class GradAlign(TwoGradients):
    r"""Train on FGSM, and align each image's input gradient with that at a random point of its ball.

    .. math:: CE(f(x + \delta), y) + \lambda\, (1 - \cos(\nabla\ell(x), \nabla\ell(x + \eta))),
        \quad \delta = \epsilon\, \mathrm{sign}\,\nabla\ell(x), \quad \eta \sim U[-\epsilon, \epsilon]

    with :math:`\ell` the cross-entropy of an image.

    Source: Andriushchenko and Flammarion, NeurIPS 2020, arXiv:2007.02617. Reading: the gradient at x is
    FGSM's own and detached; the training code takes it through a clip that halves it at pixels of exactly 0 or 1, the
    README does not, and neither do we. Reading: images without a gradient at either point are left out of the mean; if
    none is left the term is 0. Reading: train mode throughout, so that BatchNorm's statistics move three times a step;
    the random point may lie outside the pixel range.

    Steps: 1. Forward the images; input gradient of the cross-entropy. 2. One step along its sign, back into the ball,
    then into the range. 3. Forward the result; mean cross-entropy. 4. Draw a point of the ball uniformly, forward it;
    input gradient, with its graph. 5. Add lambda times one minus the mean cosine of the two gradients; backward also
    through the second gradient, optimizer step.

    Warning: on small data FGSM does not collapse, and there is nothing to align: read the row against ``lam: 0``, which
    is plain FGSM. Warning: the survey says PGD-20 where the paper has PGD-50 with 10 restarts, and plain FGSM has 42.1
    beside its 41.4. Warning: a network whose gradients all but vanish has a cosine near 1 as well. Warning: the count
    of passes flatters it, because one of them is differentiated twice.

    Args:
        lam: weight of the term; None takes the authors' curve, 0.02 times 10 to the power of epsilon/(8/255), for 32x32
            colour images at full epsilons from 1/255 to 16/255, to which it was fitted, else 0.2. It does not follow
            a ramped epsilon. The authors' values for SVHN are 1.976, 2.5 and 3.162 at 4, 8 and 12/255.
        step_size: 1.25 epsilon, which from the image itself comes to epsilon.
        start: ``zero``; or ``uniform``, where the gradient at the start serves for the one at x, as in their code.
        detach: False lets both gradients carry the weights' gradient.
        warmup: share of the training over which the step grows from 0 to its size; a third for the authors' SVHN.

    History: ``cosine``, the mean of those not left out; ``left_out``, the share of images without a gradient.
    """

    card = Card(key="gradalign", category="efficient", citation="andriushchenko2020understanding")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        lam: float | None = None,
        step_size: str | float = "1.25 epsilon",
        start: OneStepStart = "zero",
        detach: bool = True,
        warmup: float = 0.0,
        **common: Any,
    ) -> None:
        if not 0 <= warmup <= 1:
            raise BadInput(f"warmup is a share of the training, between 0 and 1, but found {warmup}")
        super().__init__(
            network, threat, lam=lam, step_size=step_size, start=start, attack_mode="train", detach=detach, **common
        )
        self.warmup = warmup

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x, climb, threat, lam = batch.x, cross_entropy_with(batch.y), self.present_threat(), self.weight_for(batch.x)
        start = self.inner.begin(x, threat, self.draws)
        here = self.attack_gradient(start, climb, create_graph=lam > 0 and not self.detach).gradient
        loss = self.classification_loss(self(self.perturb(batch, climb, start, here)), batch.y)
        if lam == 0:
            return loss
        there = self.input_gradient(x + threat.epsilon * self.draws.uniform(x), climb).gradient
        cosine = cosines(here, there)
        alignment = cosine.mean() if len(cosine) else torch.ones_like(loss)
        self.note("cosine", alignment)
        self.note("left_out", torch.tensor(1 - len(cosine) / len(x), device=x.device))
        return loss + lam * (1 - alignment)

    def weight_for(self, x: Tensor) -> float:
        """Give lambda for images ``x`` ``(n, c, h, w)``."""
        epsilon = self.threat.epsilon
        if self.lam is not None:
            return self.lam
        if x.shape[1:] == (3, 32, 32) and 1 / 255 <= epsilon <= 16 / 255:
            return float(0.02 * 10 ** (epsilon / (8 / 255)))
        return 0.2

    def step_length(self, threat: ThreatModel) -> float:
        """Give FGSM's step in pixel units, which may still be growing."""
        full = super().step_length(threat)
        return full if self.warmup == 0 else full * min(1.0, self.progress() / self.warmup)

    def remarks(self) -> dict[str, float | str]:
        """Give the last epoch's cosine and share of images left out; say where the term hardly acts."""
        last = {name: self.noted(name)[-1] for name in ("cosine", "left_out") if self.noted(name)}
        idle = last.get("left_out", 0.0) > 0.05
        mark = {"mark": "more than 5% of images have no input gradient: the regulariser hardly acts"} if idle else {}
        if self.lam == 0 and self.noted(PGD10) and catastrophic_overfitting(self.history) is None:
            mark = {"mark": "no collapse without the regulariser: nothing to align here"}
        return {**super().remarks(), **last, **mark}


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Give the cosine of each pair of gradients ``(n, c, h, w)`` in which neither is 0; ``(m,)`` with m <= n."""
    compared = ((l2_length(one) != 0) & (l2_length(other) != 0)).flatten()
    one, other = one[compared], other[compared]
    return (one / l2_length(one) * (other / l2_length(other))).flatten(1).sum(1)
