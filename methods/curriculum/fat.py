"""Friendly adversarial training: stop the attack soon after the network is fooled, and train on that."""

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with, kl_divergence, kl_from
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.regularization.mart import doubt, floored_kl, margin_term

Loss = Literal["ce", "trades", "mart"]

# The schedules of the authors' three scripts: how many epochs, and after which of them tau rises by one.
_RISES: dict[Loss, tuple[int, tuple[int, ...]]] = {
    "ce": (120, (50, 90)),
    "trades": (85, (30, 50, 70)),
    "mart": (85, (20, 40, 60, 80)),
}


class FAT(AdversarialTraining):
    r"""Train on the least harmful images that are still misclassified, not on the worst ones.

    .. math:: CE(f(x'), y), \quad x' = \arg\min_{\|x' - x\| \le \epsilon} CE(f(x'), y) \;\text{s.t.}\;
        CE(f(x'), y) - \min_k CE(f(x'), k) \ge \rho

    Source: Zhang et al., ICML 2020, arXiv:2002.11242, algorithm 1. Reading: the margin is never computed. PGD stops per
    image: each may take ``tau`` steps from points that are misclassified (counted before each step, never refilled),
    and is trained on where it stands when they are used up; one that is never fooled takes all steps. An image whose
    start is misclassified is, for ``tau`` 0, trained on there.

    Steps: 1. In eval mode, start from a uniform point of the ball, inside the pixel range. 2. At most K times, for the
    images still climbing: forward them; one that is misclassified and has used up its ``tau`` stays where it is, the
    others take a step of noisy gradient sign, back into the ball, then into the range. 3. In train mode forward what
    came out; cross-entropy, backward, optimizer step.

    Warning: the survey's 16/255 is the radius trained with; its 49.86 is measured at 0.031. The AutoAttack figures
    known are of the variant with TRADES' loss, none of plain FAT. Warning: stopping early buys clean accuracy with
    worst-case robustness; only strong attacks show the price.

    Args:
        loss: ``ce``; or the loss of TRADES, which also attacks the divergence, or of MART, with ``beta``. These two
            start, in place of the default start (uniform, ``scale: epsilon``), from Gaussian noise of 0.001 inside
            the pixel range.
        tau: a fixed number of steps after the first misclassification; None lets it rise with the share of training
            that is done, by epochs: 0, 1, 2 (from 50/120 and 90/120 on; ``trades`` to 3, ``mart`` to 4).
        omega: size of the Gaussian noise inside each step; None is a seventh of the step, 0.001/0.031 epsilon, for
            ``ce``, and 0 for the others.
        beta: weight of the divergence where the loss has one.

    History: ``bp_average``, steps per image, the paper's measure of cost; ``took_no_step``, the share of images that
    were misclassified where they started.
    """

    card = Card(key="fat", category="curriculum", citation="zhang2020attacks")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        loss: Loss = "ce",
        tau: int | None = None,
        omega: str | float | None = None,
        beta: float = 6.0,
        inner: Inner = Inner(steps=10, step_size="0.007/0.031 epsilon", start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        if loss not in get_args(Loss):
            raise BadInput(f"loss is one of {', '.join(get_args(Loss))}, but found {loss!r}")
        if tau is not None and (isinstance(tau, bool) or not isinstance(tau, int) or tau < 0):
            raise BadInput(f"tau is a number of steps, 0 or more, or null for the schedule, but found {tau!r}")
        if inner.patience is not None:
            raise BadInput(f"fat stops images by tau: leave inner.patience null, but found {inner.patience}")
        if loss != "ce" and (inner.start, inner.scale, inner.boxed) == ("uniform", "epsilon", True):
            # From so small a start the gradient of the divergence drowns in bfloat16.
            small = inner.full_precision or loss == "trades"
            inner = replace(inner, start="gaussian", scale=1e-3, full_precision=small)
        super().__init__(network, threat, inner=inner, **common)
        self.loss: Loss = loss
        self.tau, self.beta = tau, beta
        self.omega = omega if omega is not None else "0.001/0.031 epsilon" if loss == "ce" else 0.0
        Pixels.read(self.omega, "omega")

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x, y = batch.x, batch.y
        if self.loss == "trades":
            friendly = self.perturb(batch, kl_from(self.frozen_logits(x)))
            clean, adversarial = self(x), self(friendly)
            return self.classification_loss(clean, y) + self.beta * kl_divergence(clean, adversarial).mean()
        friendly = self.perturb(batch, cross_entropy_with(y))
        adversarial = self(friendly)
        loss = self.classification_loss(adversarial, y)
        if self.loss == "ce":
            return loss
        clean = self(x)  # after the adversarial forward, as in the authors' script; MART's own has it before
        pull = doubt(clean, y) * floored_kl(clean, adversarial)
        return loss + margin_term(adversarial, y).mean() + self.beta * pull.mean()

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack until ``tau`` is used up, and note how many steps that took."""
        x, threat = batch.x, self.present_threat()
        omega = Pixels.read(self.omega).at(threat.epsilon)
        steps = torch.zeros(len(x), device=x.device)

        def jitter(moving: Tensor) -> Tensor:
            steps.add_(moving)
            return omega * self.draws.normal(x) if omega > 0 else torch.zeros_like(x)

        inner = replace(self.inner, patience=self.present_tau() + 1)  # the misclassification after the last stops it
        start = inner.begin(x, threat, self.draws)
        friendly = inner.climb(self.network, x, batch.y, objective, threat, start=start, jitter=jitter)
        self.note("bp_average", steps)
        self.note("took_no_step", (steps == 0).to(steps))
        return friendly

    def remarks(self) -> dict[str, float | str]:
        """Give the whole training's steps per image, and its share of images that took none; epochs count alike."""
        noted = {name: self.noted(name) for name in ("bp_average", "took_no_step")}
        return {name: sum(values) / len(values) for name, values in noted.items() if values}

    def present_tau(self) -> int:
        """Give the tau of this epoch; without a trainer the last of the schedule."""
        if self.tau is not None:
            return self.tau
        if self._trainer is None:
            return scheduled_tau(self.loss, 1, 1)
        in_an_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return scheduled_tau(
            self.loss, (self.current_epoch + 1) * in_an_epoch, int(self.trainer.estimated_stepping_batches)
        )


def scheduled_tau(loss: Loss, epoch: int, epochs: int) -> int:
    """Give tau in ``epoch``, counted from 1, of ``epochs``: the authors' schedule as fractions of the training."""
    length, rises = _RISES[loss]
    return sum(epoch * length > rise * epochs for rise in rises)  # in whole numbers, so that 50/120 is exact
