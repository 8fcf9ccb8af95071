"""Single-step training that looks at the way to the attack before it goes there."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode, in_mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel, per_image
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step


class SingleStepCheckpoints(AdversarialTraining):
    r"""Go only as far along a one-step perturbation as the first checkpoint where the network is wrong.

    .. math:: CE(f(x + \tfrac{k}{c}\, p), y), \quad
        k = \min\{j \in 1..c-1 : \arg\max f(x + \tfrac{j}{c}\, p) \ne y\}

    with p the perturbation of one FGSM step from a random start; k = c, all of it, where no such j exists, and k = 0,
    the clean image, where the network is wrong at the start already.

    Source: Kim et al., AAAI 2021, arXiv:2010.01799. Reading: whether an image is wrong already is read, as in the
    authors' code, off the attack's own forward at the random start; the paper speaks of the image. The whole
    perturbation is not checked. With c = 1, on which their code breaks off, nothing is checked.

    Steps: 1. In eval mode take one step from a random start in the ball, and see which starts are right. 2. Of those
    classify the checkpoints x + (j/c) p, j = 1..c-1, in eval mode and without a gradient. 3. Choose each image's k, and
    with it the point that it is trained on. 4. In train mode forward these points of the whole batch; mean
    cross-entropy, backward, optimizer step.

    Warning: AutoAttack lies clearly below that of PGD training, while clean accuracy exceeds that of fast_at, because
    many images are hardly moved. Warning: the survey's figure of 50.50 is accuracy under FGSM; never put it beside
    PGD. Warning: where nearly all images survive the way the method is fast_at with an attack in eval mode; where most
    are wrong at the start it is mostly natural training.

    Args:
        checkpoints: c, into how many parts the perturbation is cut; the authors take 3.
        step_size: of the one step, in pixel units or relative.
        inf_batch: how many images are classified at once, without an influence on the choice; at least one checkpoint
            of every image. None takes all checkpoints together.
        attack_mode: of the network during the attack; the checkpoints are classified in eval mode whatever it is.

    History: ``right_at_start``, the share q of images whose checkpoints are looked at; ``share_k0`` and so on, the
    histogram of k; ``effective_epsilon``, how far images were moved on average, in pixel units, and
    ``effective_share``, the same in epsilons.
    """

    card = Card(key="single_step_checkpoints", category="efficient", citation="kim2021understanding")
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        checkpoints: int = 3,
        step_size: str | float = "1.25 epsilon",
        inf_batch: int | None = None,
        attack_mode: Mode = "eval",
        **common: Any,
    ) -> None:
        for name, value in (("checkpoints", checkpoints), ("inf_batch", inf_batch)):
            if value is not None and value < 1:
                raise BadInput(f"{name} is 1 or more, but found {value}")
        inner = one_step(attack_mode, step_size=step_size, start="uniform")
        super().__init__(network, threat, inner=inner, **common)
        self.checkpoints, self.inf_batch = checkpoints, inf_batch

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        return self.classification_loss(self(attacked), batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Move each image to its checkpoint k on the way to its attack."""
        at_start: list[Tensor] = []

        def remembering(logits: Tensor) -> Tensor:
            at_start.append(logits.detach())
            return objective(logits)

        whole = super().perturb(batch, remembering)
        right = at_start[0].argmax(1) == batch.y
        chosen = self.first_wrong(batch, whole, right)
        moved = self._on_the_way(batch.x, whole, chosen)
        self._note_choice(right, chosen, self.present_threat().distance(moved, batch.x))
        return moved

    def first_wrong(self, batch: Batch, whole: Tensor, right: Tensor) -> Tensor:
        """Give each image's k ``(n,)``, int64, on its way to the ``whole`` perturbation ``(n, c, h, w)``.

        ``right`` ``(n,)`` says which were right at the random start.
        """
        last = self.checkpoints - 1  # the end of the way is not checked
        chosen = torch.where(right, self.checkpoints, 0)
        left, checked = right.nonzero().squeeze(1), 0  # images that were right so far, checkpoints looked at
        while len(left) and checked < last:
            room = last if self.inf_batch is None else max(1, self.inf_batch // len(left))
            steps = torch.arange(checked, min(last, checked + room), device=chosen.device) + 1
            wrong = self._wrong_at(steps, batch.x[left], whole[left], batch.y[left])
            found = wrong.any(0)
            chosen[left[found]] = steps[wrong[:, found].int().argmax(0)]  # of equals argmax takes the first
            left, checked = left[~found], int(steps[-1])
        return chosen

    def _wrong_at(self, steps: Tensor, x: Tensor, whole: Tensor, y: Tensor) -> Tensor:
        """Tell at which of the checkpoints ``steps`` ``(s,)`` each of ``n`` images is wrong, ``(s, n)``."""
        points = [self._on_the_way(x, whole, step.expand(len(x))) for step in steps]
        with torch.no_grad(), in_mode(self.network, "eval"):
            return self(torch.cat(points)).argmax(1).view(len(steps), -1) != y

    def _on_the_way(self, x: Tensor, whole: Tensor, step: Tensor) -> Tensor:
        """Go ``step`` ``(n,)`` checkpoints from ``x`` to ``whole``; exact at both ends."""
        return torch.lerp(x, whole, per_image(step.to(x) / self.checkpoints, x))

    def _note_choice(self, right: Tensor, chosen: Tensor, distance: Tensor) -> None:
        self.note("right_at_start", right.to(distance))
        for k in range(self.checkpoints + 1):
            self.note(f"share_k{k}", (chosen == k).to(distance))
        self.note("effective_epsilon", distance)
        self.note("effective_share", distance / max(self.present_threat().epsilon, 1e-12))  # a ramp may begin at 0

    def remarks(self) -> dict[str, float | str]:
        """Give the histogram of k and the share right at the start, over the whole training, and whether it idled."""
        names = ["right_at_start", *(f"share_k{k}" for k in range(self.checkpoints + 1))]
        told: dict[str, float | str] = {}
        told |= {name: sum(values) / len(values) for name in names if (values := self.noted(name))}
        if told and (float(told[names[-1]]) > 0.9 or float(told["share_k0"]) > 0.5):
            told["mark"] = "mechanism idle"
        return told
