"""Instance adaptive adversarial training: every training image has a radius of its own."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.pixels import Pixels
from attacks.threat import ThreatModel, per_image
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.per_image import PerImage


class IAAT(AdversarialTraining):
    r"""Attack each image as far as the network can still follow, and remember how far that was.

    .. math:: CE(f(x'), y), \quad x' = \arg\max_{\|x' - x\| \le \epsilon_i} CE(f(x'), y)

    with :math:`\epsilon_i \gets \beta\,\hat\epsilon_i + (1 - \beta)\,\epsilon_i`, where :math:`\hat\epsilon_i` is
    :math:`\epsilon_i + \gamma` if the image holds there, else :math:`\epsilon_i` if it holds there, else
    :math:`\epsilon_i - \gamma`, and 0 if it is wrong when clean.

    Source: Balaji et al., 2019, arXiv:1910.08051, algorithm 1. Reading: train mode in every forward, as in the authors'
    code, so that the attacks move BatchNorm's statistics; nothing caps a radius from above.

    Steps: 1. Forward the clean images and see which are right. 2. In the warm-up give those the whole epsilon, the
    others 0; afterwards attack at each image's radius and at gamma more, see what holds, and move the radius by the
    share beta towards the outcome. 3. Attack once more at the new radius, from a fresh start. 4. Forward that;
    cross-entropy, backward, optimizer step.

    Warning: the mean radius explains the row: below the ranked epsilon expect more clean and less robust accuracy,
    above it the reverse. Warning: the survey's figure is very likely of a targeted attack; no AutoAttack figure is
    known.

    Args:
        inner: ``step_size`` is the floor :math:`a_0` of an image's step, which is 2 radius / steps above it.
        gamma: how much further than its radius an image is tried, in pixel units or relative.
        beta: weight of the new radius; None takes min(0.5, 10 / adaptive epochs), so that a radius can move by about
            10 gamma in all, as in the published 100 adaptive epochs at 0.1.
        warmup: epochs with the whole epsilon for every image that is right; None takes an eleventh of the recipe's.
        largest: cap on a radius, in pixel units or relative; None, the authors' choice, for no cap.
    """

    card = Card(key="iaat", category="adaptive epsilon", citation="balaji2019instance")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=False, mode="train"),
        gamma: str | float = "1.9/8 epsilon",
        beta: float | None = None,
        warmup: int | None = None,
        largest: str | float | None = None,
        **common: Any,
    ) -> None:
        if (inner.start, inner.scale, inner.boxed) != ("uniform", "epsilon", False):
            raise BadInput(
                "iaat starts each image uniformly in its own ball: leave inner.start uniform, inner.scale epsilon and "
                f"inner.boxed false, but found {inner.start}, {inner.scale} and {str(inner.boxed).lower()}"
            )
        super().__init__(network, threat, inner=inner, **common)
        if beta is not None and not 0 <= beta <= 1:
            raise BadInput(f"beta lies between 0 and 1, but found {beta}")
        self.gamma = Pixels.read(gamma, "gamma")
        self.warmup = max(1, round(self.recipe.epochs / 11)) if warmup is None else warmup
        self.beta = min(0.5, 10 / max(1, self.recipe.epochs - self.warmup)) if beta is None else beta
        self.largest = None if largest is None else Pixels.read(largest, "largest")
        self.radii = PerImage(0.0)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        radius = self.choose_radius(batch)
        self.remember(self.radii, batch.index, radius)
        attacked = self.perturb(batch, cross_entropy_with(batch.y), radius)
        return self.classification_loss(self(attacked), batch.y)

    def choose_radius(self, batch: Batch) -> Tensor:
        """Give each image the radius ``(n,)`` that it is trained with now, in pixel units."""
        epsilon = self.present_threat().epsilon
        right = self._holds(batch, batch.x)
        if self.current_epoch < self.warmup:
            return epsilon * right.double()  # as precise as what is remembered
        known = self.radii.of(batch.index)
        further = known + self.gamma.at(epsilon)
        climb = cross_entropy_with(batch.y)
        here, there = (self.perturb(batch, climb, radius) for radius in (known, further))
        holds_here, holds_there = self._holds(batch, here), self._holds(batch, there)
        shrunk = known - self.gamma.at(epsilon)
        wanted = torch.where(holds_there, further, torch.where(holds_here, known, shrunk))
        wanted = (wanted * right).clamp(min=0)  # before the smoothing: a wrong image loses a share beta of its radius
        if self.largest is not None:
            wanted = wanted.clamp(max=self.largest.at(epsilon))
        return self.beta * wanted + (1 - self.beta) * known

    def perturb(self, batch: Batch, objective: Objective, radius: Tensor | None = None) -> Tensor:
        """Attack each image within its ``radius`` ``(n,)``, by default the one remembered, from a fresh start."""
        threat, x = self.present_threat(), batch.x
        radius = self.radii.of(batch.index) if radius is None else radius
        floor = Pixels.read(self.inner.step_size).at(threat.epsilon)
        step = (radius / (0.5 * max(1, self.inner.steps))).clamp(min=floor)
        start = x + per_image(radius, x) * self.draws.uniform(x)
        return self.inner.climb(self.network, x, batch.y, objective, threat, start=start, radius=radius, step_size=step)

    def _holds(self, batch: Batch, images: Tensor) -> Tensor:
        with torch.no_grad(), self.inner.conditions(self.network, images):
            return self(images).argmax(1) == batch.y

    def remarks(self) -> dict[str, float | str]:
        """Give mean, 10th and 90th percentile and maximum of the training images' radii."""
        return {**self.radii.spread("radius")}
