"""Single-step training that treats adversarial images as another domain with the same classes."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import full_precision
from attacks.objectives import Objective, away_from_prediction, cross_entropy_with
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner

Attack = Literal["fgsm", "npgd"]


class ATDA(AdversarialTraining):
    r"""Let clean and adversarial logits have the same mean and covariance, and lie close to their class's centre.

    .. math:: CE(u, y) + CE(v, y) + \lambda\, (L_{coral} + L_{mmd} + L_{margin}), \quad u = f(x), \; v = f(x')

    .. math:: L_{mmd} = \tfrac{1}{k} \|\bar u - \bar v\|_1, \quad L_{coral} = \tfrac{1}{k^2} \|S(u) - S(v)\|_1

    .. math:: L_{margin} = \tfrac{1}{2 B (k - 1)} \sum_z \sum_{j \ne y}
        \mathrm{softplus}(\|z - c_y\|_1 - \|z - c_j\|_1)

    with S the scatter matrix of k logits, z all logits of both domains, and c the centres of the k classes.

    Source: Song et al., ICLR 2019, arXiv:1810.00740. Reading: the attack climbs away from the network's own prediction.
    S is not divided by the number of images less one, as in the authors' code; the paper writes covariances. The loss
    sees the centres from before the step, whose order their graph leaves open. BatchNorm, which their network has
    not, uses batch statistics in all forwards, and the attack leaves no trace in them.

    Steps: 1. In train mode predict the images; one step of epsilon away from that prediction. 2. In train mode forward
    the images, then the adversarial ones. 3. Both cross-entropies and the three terms, with the present centres.
    4. Move each class's centre towards its logits of both domains. 5. Backward through both domains, optimizer step.

    Warning: one step at a small epsilon is all the evidence there is: no figure of random restarts or AutoAttack is
    known, and the survey's 58.10 belongs to epsilon 4/255. Warning: under SGD the unscaled sum with the raw L_coral
    under-fits; L_coral grows with the batch. Warning: with few rows per class in a batch the centres are noisy.

    Args:
        inner: of ``npgd`` alone; ``mode`` of both attacks.
        attack: ``fgsm``, one step away from the own prediction, or ``npgd``, as ``inner`` says on the true labels.
        lam: lambda, the weight of the three terms.
        alpha: how far a centre moves towards its logits in a step.
        loss_scale: factor of the whole loss; 0.5 averages the two cross-entropies as other methods' losses do, which
            SGD sees and the authors' Adam does not.
        coral_divide_by_n_minus_1: take the paper's covariances in L_coral.
        coral_batch_size: multiply L_coral by (this - 1) / (rows - 1), so that it weighs what it weighs at this batch
            size; 32 is the published one. None leaves it as it is.

    History: ``clean_loss``, ``adversarial_loss``, ``coral``, ``mmd``, ``margin``, each without its weight.

    Attributes:
        centres: ``(k, k)``, one row per class; None before the first batch. One set on all devices.
    """

    card = Card(key="atda", category="efficient", citation="song2019improving")
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        attack: Attack = "fgsm",
        lam: float = 1 / 3,
        alpha: float = 0.1,
        loss_scale: float = 1.0,
        coral_divide_by_n_minus_1: bool = False,
        coral_batch_size: int | None = None,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="batch"),
        **common: Any,
    ) -> None:
        if attack not in get_args(Attack):
            raise BadInput(f"attack is fgsm or npgd, but found {attack!r}")
        if not lam >= 0:
            raise BadInput(f"lam is 0 or more, but found {lam}")
        if not 0 <= alpha <= 1:
            raise BadInput(f"alpha lies between 0 and 1, but found {alpha}")
        if not loss_scale > 0:
            raise BadInput(f"loss_scale is above 0, but found {loss_scale}")
        if coral_batch_size is not None and coral_batch_size < 2:
            raise BadInput(f"coral_batch_size is 2 or more, or null, but found {coral_batch_size}")
        if coral_divide_by_n_minus_1 and coral_batch_size is not None:
            raise BadInput(
                "coral_divide_by_n_minus_1 takes the batch size out of L_coral already: leave coral_batch_size null, "
                f"but found {coral_batch_size}"
            )
        super().__init__(network, threat, inner=inner, **common)
        self.attack, self.lam, self.alpha, self.loss_scale = attack, lam, alpha, loss_scale
        self.coral_divide_by_n_minus_1, self.coral_batch_size = coral_divide_by_n_minus_1, coral_batch_size
        self.single_step = attack == "fgsm"  # else there is nothing to be watched for
        self.centres: Tensor | None = None

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        own = away_from_prediction if self.attack == "fgsm" else cross_entropy_with(batch.y)
        attacked = self.perturb(batch, own)
        clean, adversarial = self(batch.x), self(attacked)
        with full_precision(batch.x):  # scatter matrices have too few digits in bfloat16
            return self.loss_scale * self.adaptation_loss(clean, adversarial, batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Take one step of epsilon from the image itself, or attack as ``inner`` says."""
        if self.attack == "npgd":
            return super().perturb(batch, objective)
        x, one = batch.x, replace(self.inner, steps=1, step_size="epsilon", start="none")
        return one.climb(self.network, x, batch.y, objective, self.present_threat(), start=x)

    def adaptation_loss(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """Give the loss of logits ``(n, k)`` of both domains, unscaled, and afterwards move the centres."""
        both, labels = torch.cat([clean, adversarial]), torch.cat([y, y])
        centres = self._centres_like(clean)
        terms = {
            "clean_loss": self.classification_loss(clean, y),
            "adversarial_loss": self.classification_loss(adversarial, y),
            "coral": self._coral_factor(len(y)) * coral(clean, adversarial),
            "mmd": mmd(clean, adversarial),
            "margin": margin_to_centres(both, labels, centres),
        }
        for name, value in terms.items():
            self.note(name, value)
        self._move_centres(both.detach(), labels)
        errors = terms["clean_loss"] + terms["adversarial_loss"]
        return errors + self.lam * (terms["coral"] + terms["mmd"] + terms["margin"])

    def _coral_factor(self, rows: int) -> float:
        if self.coral_divide_by_n_minus_1:
            return 1 / max(1, rows - 1)  # of one row the scatter is 0
        return 1.0 if self.coral_batch_size is None else (self.coral_batch_size - 1) / max(1, rows - 1)

    # The centres

    def _centres_like(self, logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        if self.centres is None:
            self.centres = logits.new_zeros(classes, classes)
        self.centres = self.centres.to(logits)
        return self.centres

    def _move_centres(self, logits: Tensor, labels: Tensor) -> None:
        """Move each class's centre by the rows of all devices; classes that none of them has stay where they are."""
        centres = self._centres_like(logits)
        member = F.one_hot(labels, len(centres)).to(logits)
        sums, counts = self._sum_over_ranks(torch.cat([member.T @ logits, member.sum(0)[:, None]], dim=1)).split(
            [len(centres), 1], dim=1
        )
        self.centres = centres - self.alpha * (counts * centres - sums) / (1 + counts)

    def _sum_over_ranks(self, mine: Tensor) -> Tensor:
        if self._ranks() == 1:
            return mine
        total: Tensor = self.trainer.strategy.reduce(mine, reduce_op="sum")
        return total

    def remarks(self) -> dict[str, float | str]:
        """Give the terms of the last epoch, and whether L_coral was larger than both cross-entropies together."""
        if not self.noted("coral"):
            return {}
        last = {name: self.noted(name)[-1] for name in ("clean_loss", "adversarial_loss", "coral", "mmd", "margin")}
        told: dict[str, float | str] = {**last}
        if last["coral"] > last["clean_loss"] + last["adversarial_loss"]:
            told["mark"] = "regulariser dominates"
        return told

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the centres with the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["atda"] = {"centres": self.centres}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        super().on_load_checkpoint(checkpoint)
        self.centres = checkpoint["atda"]["centres"]


def mmd(clean: Tensor, adversarial: Tensor) -> Tensor:
    r"""Give :math:`\tfrac{1}{k} \|\bar u - \bar v\|_1`, the distance of the mean logits of two sets ``(n, k)``."""
    return (clean.mean(0) - adversarial.mean(0)).abs().mean()


def coral(clean: Tensor, adversarial: Tensor) -> Tensor:
    r"""Give :math:`\tfrac{1}{k^2} \|S(u) - S(v)\|_1` of two sets of logits ``(n, k)``; it grows with n."""
    return (scatter(clean) - scatter(adversarial)).abs().mean()


def scatter(logits: Tensor) -> Tensor:
    r"""Give :math:`\sum_i (u_i - \bar u)(u_i - \bar u)^T`, ``(k, k)``, of logits ``(n, k)``."""
    centred = logits - logits.mean(0)
    return centred.T @ centred


def margin_to_centres(logits: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Ask that logits ``(m, k)`` lie closer to the centre of their class than to others, in L1; a number.

    The mean over images and wrong classes of the softplus of the difference; log 2 where all centres are equal.
    """
    distance = (logits[:, None] - centres).abs().sum(2)
    own = distance.gather(1, labels[:, None])
    wrong = 1 - F.one_hot(labels, len(centres)).to(logits)
    return (wrong * F.softplus(own - distance)).sum() / wrong.sum()
