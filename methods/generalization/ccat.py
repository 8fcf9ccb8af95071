"""Confidence-calibrated adversarial training: be unsure of attacked images, so that they can be refused."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.momentum import Climbed, momentum_ascent, within_ball
from attacks.objectives import Objective, wrong_confidence_with
from attacks.pixels import Pixels
from attacks.randomness import normal, uniform
from attacks.threat import ThreatModel, per_image
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.rejection import Answers, judge, threshold
from methods.selection import Score

Transition = Literal["power", "exponential"]
SELECTION_STEPS = 10
TAU, TAU_LIFT = "held_out_tau", "held_out_tau_over_guessing"


class CCAT(AdversarialTraining):
    r"""Let the label fade to uniform as the perturbation grows, so that attacked images are told by low confidence.

    .. math:: (1 - \phi)\, CE(y, f(x)) + \phi\, CE(\tilde y(\delta), f(x + \delta)), \quad
        \tilde y(\delta) = \lambda(\delta)\, y + (1 - \lambda(\delta))\, 1/C, \quad
        \lambda(\delta) = (1 - \min(1, \|\delta\| / \epsilon))^\rho
    .. math:: \delta = \arg\max_{\|\delta\| \le \epsilon} \max_{k \ne y} p_k(x + \delta)

    with the first :math:`\phi` of a batch clean and the others, DIFFERENT images, attacked.

    Source: Stutz et al., ICML 2020, arXiv:1910.06259. Reading: as in the authors' code the attack runs in eval
    mode and the update is one train-mode forward over both parts; the start is of one kind for a whole batch, of all
    devices; each part's mean is weighted by its share of a half and half batch. Reading: of the norm of delta after all
    clipping; the label is a constant. Reading: the threshold comes from held-out TRAINING images, where the authors
    take test images.

    Steps: 1. Of the second part: start from Gaussian noise of epsilon/(2 ln D) for D inputs, from a random direction of
    random length, or from the images, one draw for all. 2. T times: momentum on the gradient's sign; take the step if
    it does not lower the wrong class's probability, else divide that image's step by 1.5; keep the best point. 3. From
    each norm of delta the share of the true label. 4. In train mode forward clean and attacked images together; two
    means of cross-entropies, weighted; backward, optimizer step.

    Warning: without its threshold it is not robust, and accuracy under PGD or AutoAttack is near 0 by design: compare
    it at the threshold alone. Warning: attacks on the cross-entropy find errors of moderate confidence, which are
    refused, so they understate the threat; the confidence itself has to be attacked. Warning: as many images as reach
    epsilon see a uniform label whatever rho; most of its influence is on those that do not.

    Args:
        rho: how fast the label fades; 10 in the paper, 12 in the example of the code.
        fraction: of a batch that stays clean.
        transition: ``power``, as above; or ``exponential``, :math:`\lambda = e^{-\rho \|\delta\| / \epsilon}`.
        momentum: of the attack; None takes 1 - 4 / T, which is the published 0.9 for its 40 steps.
        backtracking: what a failed step is divided by; 1 takes every step.
        reach: how many epsilons the attack's steps come to at least, for few steps. Ours.
        inner: its ``step_size`` is the shortest first step; start and iterate are those above whatever it says.

    History: ``label_share``, the mean of lambda; ``at_epsilon``, the share of attacked images at the full radius;
    ``held_out_tau``, the threshold of the epoch; ``held_out_tau_over_guessing``, the same in units of 1/C;
    ``held_out_robust``, here 1 minus the error at that threshold under the confidence attack, by which the best epoch
    is chosen.
    """

    card = Card(key="ccat", category="generalization", citation="stutz2020confidence", comparison="F")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        rho: float = 10.0,
        fraction: float = 0.5,
        transition: Transition = "power",
        momentum: float | None = None,
        backtracking: float = 1.5,
        reach: float = 2.5,
        inner: Inner = Inner(steps=10, step_size="epsilon/6", start="none", mode="eval", keep="best"),
        **common: Any,
    ) -> None:
        if not rho >= 0:
            raise BadInput(f"rho is 0 or more, but found {rho}")
        if not 0 < fraction < 1:
            raise BadInput(f"fraction lies between 0 and 1, both excluded, but found {fraction}")
        if transition not in get_args(Transition):
            raise BadInput(f"transition is one of {', '.join(get_args(Transition))}, but found {transition!r}")
        if momentum is not None and not 0 <= momentum < 1:
            raise BadInput(f"momentum lies between 0 and 1, or is null for the rule, but found {momentum}")
        if not backtracking >= 1:
            raise BadInput(f"backtracking is 1 or more, but found {backtracking}")
        if not reach >= 0:
            raise BadInput(f"reach is 0 or more, but found {reach}")
        super().__init__(network, threat, inner=inner, **common)
        self.rho, self.fraction, self.transition = rho, fraction, transition
        self.momentum, self.backtracking, self.reach = momentum, backtracking, reach
        self._answers: list[Tensor] = []  # to held-out images: clean wrong, clean confidence, the same when attacked

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        m = int(self.fraction * len(batch.x))
        phi = m / len(batch.x)
        clean, other = (Batch(*(part[rows] for part in batch)) for rows in (slice(m), slice(m, None)))
        attacked = self.perturb(other, wrong_confidence_with(other.y))
        share = self.label_share(attacked, other.x)
        logits = self(torch.cat([clean.x, attacked]))
        target = faded(other.y, share, logits)
        of_clean = self.recipe.cross_entropy(logits[:m], clean.y).sum() / max(1, m)  # a batch may be a single image
        return (1 - phi) * of_clean + phi * F.cross_entropy(logits[m:], target)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack all images of ``batch`` from a start whose kind is drawn."""
        threat = self.present_threat()
        with self.inner.conditions(self.network, batch.x):
            start = self.begin(batch.x, threat)
            return self.ascend(self.network, batch.x, objective, threat, start, self.inner.steps).images

    def begin(self, x: Tensor, threat: ThreatModel) -> Tensor:
        """Draw the first iterate for images ``x`` ``(n, c, h, w)``: one kind for all of them."""
        kind = int(self.draws.integers(3, x, shape=(), of_all_ranks=True))
        if kind == 0:
            return x + threat.epsilon / (2 * math.log(x[0].numel())) * self.draws.normal(x)
        if kind == 1:
            share = (self.draws.uniform(x, shape=(len(x), 1, 1, 1)).flatten() + 1) / 2
            return within_ball(x, threat, self.draws.normal(x), share)
        return x

    def ascend(
        self, network: nn.Module, x: Tensor, objective: Objective, threat: ThreatModel, start: Tensor, steps: int
    ) -> Climbed:
        """Attack in ``steps``, by whose number momentum and step go."""
        shortest = Pixels.read(self.inner.step_size).at(threat.epsilon)
        return momentum_ascent(
            network,
            x,
            objective,
            threat,
            start=start,
            steps=steps,
            step_size=max(shortest, self.reach * threat.epsilon / max(1, steps)),
            momentum=max(0.0, 1 - 4 / max(1, steps)) if self.momentum is None else self.momentum,
            backtracking=self.backtracking,
        )

    def label_share(self, attacked: Tensor, x: Tensor) -> Tensor:
        """Give lambda of each image ``(n,)``, and note its mean and how many images are at the full radius."""
        threat = self.present_threat()
        distance = threat.distance(attacked, x)
        ratio = distance / threat.epsilon if threat.epsilon > 0 else torch.zeros_like(distance)
        share = (-self.rho * ratio).exp() if self.transition == "exponential" else (1 - ratio.clamp(max=1)) ** self.rho
        self.note("label_share", share)
        self.note("at_epsilon", (ratio >= 1 - 1e-4).to(share))
        return share.detach()

    def remarks(self) -> dict[str, float | str]:
        """Give the last epoch's mean of lambda, full radii and threshold; say where rejection means nothing."""
        names = ("label_share", "at_epsilon", TAU)
        told: dict[str, float | str] = {"plain": "plain figures under attack are without rejection (no reject)"}
        told |= {name: self.noted(name)[-1] for name in names if self.noted(name)}
        if any(lift < 2 for lift in self.noted(TAU_LIFT)[-1:]):
            told["threshold"] = "red: threshold near chance"
        if any(share > 0.5 for share in self.noted("label_share")[-1:]):
            told["labels"] = "amber: most attacked images keep their label, which is natural training"
        return told

    # The choice of the best epoch

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's answers too."""
        super().on_validation_epoch_start()
        self._answers.clear()

    def held_out_counts(self, batch: Batch) -> Tensor:
        """Attack the confidence from the image and from a keyed random start, and keep what the network says."""
        network, (x, y, index) = self.classifier(), batch
        objective, threat = wrong_confidence_with(y), self.threat
        drawn = (uniform(x[:, 0, 0, 0], index.tolist(), self.seed, "selection", "share") + 1) / 2
        direction = normal(x, index.tolist(), self.seed, "selection", "direction")
        with in_mode(network, "eval"):
            tries = [
                self.ascend(network, x, objective, threat, start, SELECTION_STEPS)
                for start in (x, within_ball(x, threat, direction, drawn))
            ]
            second = per_image(tries[1].value > tries[0].value, x).bool()
            attacked = torch.where(second, tries[1].images, tries[0].images)
            with torch.no_grad():
                predicted = torch.stack([network(images).softmax(1) for images in (x, attacked)])
        confidence, prediction = predicted.max(2)
        wrong = prediction != y
        self._answers.append(torch.cat([wrong.double(), confidence.double()]).T)
        self._classes = predicted.shape[2]
        right = ~wrong
        return torch.stack([right.all(0).sum(), right[0].sum(), torch.tensor(len(y), device=x.device)])

    def score_held_out(self, score: Score) -> tuple[Score, dict[str, float]]:
        """Score the epoch by its error at its own threshold."""
        clean_wrong, wrong, clean_confidence, confidence = self.of_all_held_out(self._answers).cpu().numpy().T
        clean = Answers(clean_wrong > 0, clean_confidence)
        tau = threshold(clean)
        error = judge(clean, Answers(wrong > 0, confidence), tau).error
        return Score(robust=1 - error, clean=score.clean), {TAU: tau, TAU_LIFT: tau * self._classes}


def faded(y: Tensor, share: Tensor, like: Tensor) -> Tensor:
    """Give label distributions for classes like those of logits ``(n, k)``: ``share`` ``(n,)`` true, else uniform."""
    classes = like.shape[1]
    share = share.to(like)[:, None]
    return share * F.one_hot(y, classes).to(like) + (1 - share) / classes
