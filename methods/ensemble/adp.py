"""Adaptive diversity promoting: members that agree on the true class and differ on all others."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import full_precision
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel
from methods.base import Batch, Card
from methods.ensemble.members import log_mean_probability
from methods.ensemble.of_members import OfMembers
from methods.inner import Inner

PlusAdv = Literal["none", "pt", "tf"]


class ADP(OfMembers):
    r"""Train K networks together whose wrong classes point in different directions, and predict with their mean.

    .. math:: \sum_k CE(p_k, y) - \alpha\, H(\bar p) - \beta \log\det(M + 10^{-6} I), \quad
        \bar p = \tfrac{1}{K} \sum_k p_k, \quad M_{ij} = \langle \tilde p_i, \tilde p_j \rangle

    with :math:`p_k` the prediction of member k, :math:`\tilde p_k` the same without its entry of the TRUE class and of
    length one, H the entropy.

    Source: Pang et al., ICML 2019, arXiv:1901.08846; authors' Keras code (``tf``) and the PyTorch code of DVERGE
    (``pt``), whose formulas agree. Reading: a SUM over members, for which alpha and beta are tuned and in which each
    member's gradient is that of a network trained alone; clean images only, as in the survey's row; weights of the last
    epoch or of the best on held-out images, where the authors keep the best on the test set.

    Steps: 1. Forward the one shared batch through every member, in train mode. 2. Sum of the members' cross-entropies,
    less alpha times the entropy of the mean prediction, less beta times the log-determinant of the wrong classes'
    directions. 3. One backward through all members, one optimizer step for all. 4. With ``plus_adv`` an attack on the
    mean prediction comes first, and the loss counts its images too.

    Warning: broken by stronger attacks (Tramer et al., NeurIPS 2020, arXiv:2002.08347): ten steps of PGD do not
    converge on this loss surface, which is no robustness. Report AutoAttack beside PGD-10. The survey's row is
    3 x ResNet-20, no Wide ResNet, at epsilon 0.005, 1.3/255: never compare it with rows at 8/255.
    Warning: confidence is capped by design. With K = 3, ten classes and alpha = 2 the loss is lowest at a true-class
    probability of 0.59, so the cross-entropy stays near 0.5; that is no underfitting.

    Args:
        members: how many networks :meth:`compose` makes; an Ensemble that is handed in has its own number. The
            determinant says something up to classes - 1 members; with more it is of the order of its offset.
        alpha: weight of the entropy of the mean prediction (``lamda`` in the authors' code).
        beta: weight of the log-determinant (``log_det_lamda``).
        plus_adv: also train on adversarial images. ``pt``: made with the true labels, the members' cross-entropy on
            them is added. ``tf``: one radius per batch from U(0.2, 1) epsilon (published: 0.01 to 0.05), in steps of
            radius / ``inner.steps`` whatever ``inner.step_size``, made with the ensemble's own predictions as labels;
            the whole loss on them is added. The authors' second subtraction of the pixel mean, a slip, is left out.
        inner: the attack of ``plus_adv`` on the mean prediction, in train mode as in both codes.

    Raises:
        BadInput: for a network that is no Ensemble, or an unknown ``plus_adv``.
    """

    card = Card(
        key="adp",
        category="ensemble",
        citation="pang2019improving",
        comparison="C",
        broken="broken by stronger attacks: longer PGD and a boundary attack leave less than 10 % of the authors' own "
        "checkpoint (CIFAR-10, epsilon 0.01; Tramer et al., NeurIPS 2020)",
    )

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        members: int = 3,
        alpha: float = 2.0,
        beta: float = 0.5,
        plus_adv: PlusAdv = "none",
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=True, mode="train"),
        **common: Any,
    ) -> None:
        if plus_adv not in ("none", "pt", "tf"):
            raise BadInput(f"plus_adv is none, pt or tf, but found {plus_adv!r}")
        super().__init__(network, threat, inner=inner, **common)
        self.alpha, self.beta, self.plus_adv = alpha, beta, plus_adv

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        if self.plus_adv == "none":
            return self.diverse_loss(batch.x, batch.y)
        own = self.plus_adv == "tf"  # labels of the ensemble's own
        labels = self.frozen_logits(batch.x).argmax(1) if own else batch.y
        attacked = self.perturb(batch, cross_entropy_with(labels))
        clean = self.diverse_loss(batch.x, batch.y)
        return clean + (self.diverse_loss if own else self.members_loss)(attacked, batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack the mean prediction; in the form ``tf`` within a radius that is drawn for the batch."""
        threat, inner = self.present_threat(), self.inner
        if self.plus_adv == "tf":
            share = 0.6 + 0.4 * self.draws.uniform(batch.x, shape=(1, 1, 1, 1)).item()
            threat = threat.at(share * threat.epsilon)
            inner = replace(inner, step_size=threat.epsilon / max(1, inner.steps))
        return inner.maximise(self.network, batch.x, batch.y, objective, threat, self.draws)

    def members_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over the members of their mean cross-entropy on images ``x``; a number."""
        return self._sum_of_losses(self.members_logits(x), y)

    def diverse_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over the members of their mean cross-entropy, less alpha times entropy and beta times log-determinant."""
        logits = self.members_logits(x)
        with full_precision(x):  # a determinant has too few digits in half precision
            errors = self._sum_of_losses(logits, y)
            entropy, volume = ensemble_entropy(logits).mean(), log_determinant(logits, y).mean()
            self.note("entropy", entropy)
            self.note("log_determinant", volume)
            return errors - self.alpha * entropy - self.beta * volume

    def _sum_of_losses(self, logits: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.classification_loss(of_member, y) for of_member in logits]).sum()


def ensemble_entropy(logits: Tensor, offset: float = 1e-20) -> Tensor:
    r"""Entropy :math:`-\sum_c \bar p_c \log(\bar p_c + offset)` ``(n,)`` of the mean prediction of ``(k, n, c)``."""
    mean = log_mean_probability(logits).exp()
    return -(mean * (mean + offset).log()).sum(-1)


def log_determinant(logits: Tensor, y: Tensor, offset: float = 1e-6) -> Tensor:
    r"""Give :math:`\log\det(M + offset\, I)` per image ``(n,)``, from logits ``(k, n, c)`` and true labels ``(n,)``.

    det M, in [0, 1], is the squared volume that the members' normalised predictions of the wrong classes span.
    The true class only scales what is normalised afterwards, so its logit is left out before the softmax, where the
    authors leave its probability out after it: a member that is sure of itself would give 0/0. In float64, because
    members that agree leave nothing of the matrix but the offset, which is a few roundings of float32.
    """
    classes = logits.shape[-1]
    others = torch.arange(classes - 1, device=y.device) + (torch.arange(classes - 1, device=y.device) >= y[:, None])
    wrong = logits.double().gather(-1, others.expand(len(logits), -1, -1)).softmax(-1)
    direction = (wrong / torch.linalg.vector_norm(wrong, dim=-1, keepdim=True)).transpose(0, 1)
    gram = direction @ direction.mT
    identity = torch.eye(len(logits), dtype=gram.dtype, device=gram.device)
    return torch.logdet(gram + offset * identity).to(logits)
