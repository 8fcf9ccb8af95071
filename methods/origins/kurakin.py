"""Adversarial machine learning at scale: a part of every batch is adversarial, towards the least likely class."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode, in_mode
from attacks.objectives import Objective, cross_entropy_with, towards_least_likely
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.aim import Label, aim, check_label
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step

_WORDS: dict[Label, str] = {"ll": "l.l.", "random": "rnd.", "predicted": "predicted label", "true": "true label"}
STEP_LL = "held_out_step_ll"  # accuracy in [0, 1] in a line of the history


class Kurakin(AdversarialTraining):
    r"""Replace a part of each batch by adversarial images of many radii, made without looking at the label.

    .. math:: \frac{1}{m - k + \lambda k} \{ \sum_{i > k} CE(f(x_i), y_i) + \lambda \sum_{i \le k} CE(f(x'_i), y_i) \},
        \quad x'_i = x_i - \epsilon_i\,\mathrm{sign}\,\nabla CE(f(x_i), y_{ll})

    for m images, of which k are chosen, :math:`y_{ll}` the class that the network holds for the least likely, and
    :math:`\epsilon_i` drawn from a normal with deviation :math:`\sigma = \epsilon_{max} / 2`, truncated to
    :math:`[0, \epsilon_{max}]`.

    Source: Kurakin et al., ICLR 2017, arXiv:1611.01236, algorithm 1; no code was released. Reading: radii up to the
    preset's epsilon, so that no image leaves the ball that every other row is trained for; ``eps_max: 2 epsilon`` is
    nearer to the authors, who judged at the radii they trained with, and its mean radius nearer to the ranked one.
    Reading: eval mode during the step, as in the authors' later code; the rows are drawn anew in every step.

    Steps: 1. Draw which half of the batch is attacked, and a radius for each of its images. 2. In eval mode forward
    them; gradient by the images of the cross-entropy of the class they are taken least for. 3. One step AGAINST its
    sign, as long as the radius, clipped to the pixel range. 4. In train mode ONE forward of the batch, in which the
    adversarial images stand in place of their clean ones; mean of the cross-entropies with weight lambda for the
    adversarial ones; backward, optimizer step.

    Warning: the authors themselves found next to no gain against iterative attacks; high accuracy under one step is
    gradient masking (Tramer et al., 2018; Athalye et al., 2018). Warning: with the true label the step gives the label
    away, and accuracy under FGSM exceeds clean accuracy.

    Args:
        ratio: k / m, the share of a batch that is attacked, rounded down.
        lam: lambda, the weight of an adversarial image; a clean one has 1.
        eps_max: largest radius, in pixel units or relative; the mean is 0.36 of it.
        label: towards which class the step goes: ``ll``, the least likely; ``random``; or it is FGSM, away from the
            ``predicted`` or the ``true`` one.
        steps: 1; more, which together are 1.25 radii long (our choice), make it the iterative attack.
        attack_mode: of the network during the attack.

    History: ``radius``, the mean over the attacked images; ``held_out_step_ll``, accuracy on held-out images under step
    l.l. of epsilon, to be looked at beside PGD.
    """

    card = Card(
        key="kurakin",
        category="origin",
        citation="kurakin2017adversarial",
        broken="iterative attacks leave about as little as without defence, ImageNet at up to 16/255 (the authors)",
    )
    single_step = True
    held_out_measures = (STEP_LL,)

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        ratio: float = 0.5,
        lam: float = 0.3,
        eps_max: str | float = "epsilon",
        label: Label = "ll",
        steps: int = 1,
        attack_mode: Mode = "eval",
        **common: Any,
    ) -> None:
        if not 0 <= ratio <= 1:
            raise BadInput(f"ratio lies between 0 and 1, but found {ratio}")
        if not lam >= 0 or (lam == 0 and ratio == 1):
            raise BadInput(f"lam is 0 or more, and above 0 where all images are adversarial, but found {lam}")
        check_label(label)
        if steps < 1:
            raise BadInput(f"steps is 1 or more, but found {steps}")
        super().__init__(network, threat, inner=replace(one_step(attack_mode), steps=steps), **common)
        self.ratio, self.lam, self.label = ratio, lam, label
        self.eps_max = str(eps_max)
        self.single_step = steps == 1
        Pixels.read(eps_max, "eps_max")

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x, y = batch.x, batch.y
        rows = self.draws.permutation(len(x), x)[: math.floor(self.ratio * len(x) + 1e-9)]
        logits = self(self.perturb(batch, self.objective(x[rows], y[rows]), rows))
        losses = self.recipe.cross_entropy(logits, y)
        weights = torch.ones_like(losses).index_fill(0, rows, self.lam)
        return (weights * losses).sum() / weights.sum()

    def perturb(self, batch: Batch, objective: Objective, rows: Tensor | None = None) -> Tensor:
        """Attack the images ``rows``, by default all, each within a fresh radius; the others stay as they are.

        ``objective`` sees the logits of those that are attacked.
        """
        x, threat = batch.x, self.present_threat()
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        if len(rows) == 0:
            return x
        chance = (self.draws.uniform(x.new_empty(0, dtype=torch.float64), shape=(len(rows), 1, 1, 1)).flatten() + 1) / 2
        radius = truncated_normal(chance, Pixels.read(self.eps_max).at(threat.epsilon))
        self.note("radius", radius)
        step = radius if self.inner.steps == 1 else 1.25 * radius / self.inner.steps
        clean = x[rows]
        attacked = self.inner.climb(
            self.network, clean, batch.y[rows], objective, threat, start=clean, radius=radius, step_size=step
        )
        return x.index_copy(0, rows, attacked)

    def objective(self, x: Tensor, y: Tensor) -> Objective:
        """Say what the attack on images ``x`` ``(n, c, h, w)`` climbs; a single step chooses by its own logits."""
        if self.label == "true":
            return cross_entropy_with(y)
        if self.inner.steps > 1 and len(x) > 0:
            return aim(self.label, self.frozen_logits(x), self.draws)
        return lambda logits: aim(self.label, logits, self.draws)(logits)

    def measure_held_out(self, batch: Batch) -> Tensor:
        """Tell which held-out images are right after step l.l. of epsilon, ``(n, 1)``."""
        network, x, length = self.classifier(), batch.x, self.threat.epsilon
        with in_mode(network, "eval"):
            attacked = pgd(network, x, towards_least_likely, self.threat, start=x, steps=1, step_size=length)
            with torch.no_grad():
                return (network(attacked).argmax(1) == batch.y)[:, None]

    def remarks(self) -> dict[str, float | str]:
        """Say which variant it is and how little adversarial images weigh, and give radius and step-l.l. accuracy."""
        kind = "step" if self.inner.steps == 1 else "iterative"
        share = self.ratio * self.lam / (1 - self.ratio + self.ratio * self.lam)
        told: dict[str, float | str] = {
            "variant": f"{kind} {_WORDS[self.label]} with radii up to {self.eps_max}",
            "reminder": f"adversarial images have {100 * share:.0f} % of the weight",
        }
        if radii := self.noted("radius"):
            told["radius_mean"] = sum(radii) / len(radii)
        if right := self.noted(STEP_LL):
            told["step_ll_accuracy_on_held_out_images_in_the_last_epoch"] = right[-1]
        return told


def truncated_normal(chance: Tensor, largest: float) -> Tensor:
    """Turn chances in [0, 1] into draws of N(0, largest / 2) truncated to [0, largest], by the inverse distribution."""
    two_deviations = math.erf(math.sqrt(2))  # the probability of [-2, 2]
    return (largest / 2 * math.sqrt(2) * torch.erfinv(two_deviations * chance)).clamp(max=largest)
