"""Dynamic adversarial training: attack each image until it is converged enough for the epoch, and no further."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import Norm, ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner

_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": math.inf}


class DynamicAT(AdversarialTraining):
    r"""Let attacks converge better and better in the course of training.

    .. math:: CE(f(x^k), y), \quad k = \min\{k \ge 1: c(x^k) \le c_t\}, \quad
        c(x^k) = \max_{\|x' - x\| \le \epsilon} \langle x' - x^k, \nabla CE(f(x^k), y) \rangle
        = \epsilon \|\nabla CE\|_1 - \langle x^k - x, \nabla CE \rangle

    with :math:`c_t = c_{max} \max(0, 1 - t / T')` in epoch t, counted from 0, and k at most K. The first-order
    stationary condition (FOSC) c is 0 where no first-order step can add to the loss, and small where the attack has
    converged.

    Source: Wang et al., ICML 2019, arXiv:2112.08304, algorithm 1. Reading: the gradient is that of each image's own
    loss, not of the mean, which decides the scale of c. Reading: c is taken around the natural image and the loss is a
    plain mean, as in the paper; the authors' code takes it around the started image, where it may be negative, and
    weights the loss. Reading: T' is 5/6 of the training, 100 of the paper's 120 epochs; K steps for everyone after it.

    Steps: 1. Take the threshold of the epoch. 2. In eval mode start from a uniform point of the ball, not clipped to
    the pixel range. 3. Every image takes one step of gradient sign, back into the ball, then into the range. 4. Take
    the gradient there; who is at or below the threshold stays for good, the others take a step with that same gradient,
    and so on to K steps; a last gradient only measures. 5. In train mode forward what came out; cross-entropy,
    backward, optimizer step.

    Warning: the threshold is absolute, so it depends on how steep the network is: a small one is trained on one or two
    steps for most of the time. Warning: the survey's 42.40 under PGD-20 is of an 8-layer network; the same paper has
    48.70 for a Wide ResNet; no AutoAttack figure is known.

    Args:
        c_max: the threshold of the first epoch, in nats; 0 is PGD.
        loss_weighting: ``none``; or the code's ``self``: from the second epoch on each image's loss is multiplied by
            its own value in the mode of the attack, without a gradient, and averaged over images that have any.
        fosc_reference: where c is measured from: the natural ``image``, or the ``start`` of the attack.

    History: ``fosc_threshold``; ``steps_per_image``; ``took_one_step`` and ``took_all_steps``, shares of images;
    ``fosc_1`` and so on, the mean of c after each step, of those that have stopped their last; ``median_fosc_first``
    and ``median_fosc_last``, after the first step and at the end.
    """

    card = Card(key="dynamic_at", category="curriculum", citation="wang2019convergence")
    single_step = True  # where the threshold bites little: the alarm tells what that does

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        c_max: float = 0.5,
        loss_weighting: Literal["none", "self"] = "none",
        fosc_reference: Literal["image", "start"] = "image",
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=False, mode="eval"),
        **common: Any,
    ) -> None:
        if not c_max >= 0:
            raise BadInput(f"c_max is 0 or more, but found {c_max}")
        if loss_weighting not in ("none", "self"):
            raise BadInput(f"loss_weighting is none or self, but found {loss_weighting!r}")
        if fosc_reference not in ("image", "start"):
            raise BadInput(f"fosc_reference is image or start, but found {fosc_reference!r}")
        if inner.patience is not None:
            raise BadInput(f"dynamic_at stops images by c_max: leave inner.patience null, but found {inner.patience}")
        super().__init__(network, threat, inner=inner, **common)
        self.c_max, self.loss_weighting, self.fosc_reference = c_max, loss_weighting, fosc_reference

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        if self.loss_weighting == "none" or self.current_epoch == 0:
            return self.classification_loss(self(attacked), batch.y)
        weight = F.cross_entropy(self.frozen_logits(attacked), batch.y, reduction="none")
        weighted = weight * self.recipe.cross_entropy(self(attacked), batch.y)
        return weighted.sum() / (weight != 0).sum().clamp(min=1)  # the mean of Keras, whose sample weights these are

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack each image until its FOSC is at or below the threshold, and note how far that was."""
        x, threat, threshold = batch.x, self.present_threat(), self.present_threshold()
        start = self.inner.begin(x, threat, self.draws)
        reference = x if self.fosc_reference == "image" else start
        moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
        steps, measured = torch.zeros(len(x), device=x.device), list[Tensor]()

        def stationary(point: Tensor, gradient: Tensor) -> Tensor:
            taken = len(measured)
            measured.append(fosc(point, gradient, reference, threat))
            if taken > 0:  # the first step is for everyone
                moving.logical_and_(measured[-1] > threshold)
            if taken == self.inner.steps:
                moving.fill_(False)
            steps.add_(moving)
            return ~moving

        measuring = replace(self.inner, steps=self.inner.steps + 1)  # the last is a gradient without a step
        attacked = measuring.climb(
            self.network, x, batch.y, objective, threat, start=start, stationary=stationary
        )  # fmt: skip
        self._note_attack(threshold, steps, measured[1:])
        return attacked

    def remarks(self) -> dict[str, float | str]:
        """Give the whole training's steps per image, and say where that made it another method."""
        lines = [line for line in self.history if "steps_per_image" in line]
        if not lines:
            return {}
        found: dict[str, float | str] = {"steps_per_image": sum(line["steps_per_image"] for line in lines) / len(lines)}
        early = [line for line in lines if line["fosc_threshold"] > 0]
        if all(line["took_all_steps"] > 0.95 for line in lines):
            found["mark"] = "pgd_at under another name: over 95 % of images took all steps in every epoch"
        elif early and all(line["took_one_step"] > 0.95 for line in early):
            found["mark"] = "one-step training: over 95 % of images stopped after a step until the threshold was 0"
        return found

    def present_threshold(self) -> float:
        """Give the threshold of this epoch; without a trainer that of the first."""
        if self._trainer is None:
            return scheduled_threshold(self.c_max, 0, 1)
        in_an_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return scheduled_threshold(self.c_max, self.current_epoch * in_an_epoch, self.total_updates())

    def _note_attack(self, threshold: float, steps: Tensor, measured: list[Tensor]) -> None:
        """Note what the attack came to; ``measured`` holds c ``(n,)`` after each step until every image had stopped."""
        self.note("fosc_threshold", steps.new_tensor(threshold))
        self.note("steps_per_image", steps)
        self.note("took_one_step", (steps == 1).to(steps))
        self.note("took_all_steps", (steps == self.inner.steps).to(steps))
        if not measured:  # without steps
            return
        for step in range(self.inner.steps):
            self.note(f"fosc_{step + 1}", measured[min(step, len(measured) - 1)])
        self.note("median_fosc_first", measured[0].median())
        self.note("median_fosc_last", measured[-1].median())


def fosc(point: Tensor, gradient: Tensor, reference: Tensor, threat: ThreatModel) -> Tensor:
    """Give each image's first-order stationary condition ``(n,)``: 0 where the attack has converged.

    Args:
        point: the iterates ``(n, c, h, w)``. gradient: of each image's own loss there.
        reference: the centre of the ball; c is at least 0 for a ``point`` inside it.
    """
    steepest = threat.epsilon * torch.linalg.vector_norm(gradient.flatten(1), _DUAL[threat.norm], dim=1)
    return steepest - ((point - reference) * gradient).flatten(1).sum(1)


def scheduled_threshold(c_max: float, epoch: float, epochs: float) -> float:
    """Give the threshold of ``epoch``, counted from 0, of ``epochs``, both in any unit: 0 from 5/6 of them on."""
    left = 1 - 6 * epoch / (5 * epochs)
    return c_max * left if left > 0 else 0.0
