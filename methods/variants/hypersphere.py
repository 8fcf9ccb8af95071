"""Hypersphere embedding: an adversarial training whose last layer compares directions, with a margin."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import cross_entropy_with, kl_divergence, kl_from
from attacks.threat import ThreatModel
from methods.anatomy import observe
from methods.base import AdversarialTraining, Batch, Card, StepTrace
from methods.cosine_head import CosineHead, head_of, with_cosine_head
from methods.efficient.free_at import FreeAT
from methods.inner import Inner
from methods.regularization.trades import TRADES

Framework = Literal["pgd_at", "trades", "alp", "free_at"]

# Scale, margin and weight of the second term, by framework.
_DEFAULTS: dict[str, tuple[float, float, float]] = {
    "pgd_at": (15.0, 0.2, 0.0),
    "trades": (15.0, 0.2, 6.0),
    "alp": (20.0, 0.3, 0.5),
    "free_at": (10.0, 0.2, 0.0),
}


class Hypersphere(AdversarialTraining):
    r"""Compare features and class weights by their angle alone, and ask the true class for a margin.

    .. math:: HE(x'), \quad HE(x) = -\log \frac{e^{s (\cos_y - m)}}{e^{s (\cos_y - m)} + \sum_{c \ne y} e^{s \cos_c}},
        \quad \cos_c = \frac{\langle z(x), w_c \rangle}{\|z(x)\| \|w_c\|}

    .. math:: trades: HE(x) + \beta\, KL(p(x) \| p(x')), \quad
        alp: \tfrac{1}{2} HE(x) + \tfrac{1}{2} HE(x') + \beta\, \mathrm{mean}(\cos(x) - \cos(x'))^2

    with features z, and p the softmax of the logits :math:`s \cos`.

    Source: Pang et al., NeurIPS 2020, arXiv:2002.08619. Reading: the network's logits are s times the cosines, so that
    attacks see what training saw; the authors' network gives the cosines, and attacks on their cross-entropy are weak.
    Rows of unit length are written back outside the graph, as in their code. Reading: the margin is training's alone,
    the attack has none (but for Free-AT, where one pass serves both), and is otherwise that of the framework's own
    method; the authors start all of them from Gaussian noise of 0.001.

    Steps: 1. In eval mode attack the cross-entropy of s cos without a margin; for ``trades`` the divergence. 2. In
    train mode put the rows of the last layer back to unit length. 3. Forward the adversarial images (``trades`` and
    ``alp``: the clean ones first) and take the margin off the true class's cosine. 4. The framework's loss, backward,
    optimizer step.

    Warning: part of the published gain under PGD is the scale of the loss: attack s cos, never the raw cosines, and
    believe it under AutoAttack (53.74 at WRN-34-20, like a well-tuned PGD-AT). Warning: the losses lie between bounds,
    for the logits do, and never reach 0. Unit rows turn fast at first: watch the first epochs.

    Args:
        framework: whose attack and loss the head is put into: ``pgd_at``, ``trades``, ``alp`` or ``free_at``. Where
            ``inner`` is left alone it is that of the method of this name, but for the steps; ``free_at`` has none.
        s: scale of the cosines; None takes 15, for ``alp`` 20, for ``free_at`` 10.
        m: margin, in cosine units; None takes 0.2, for ``alp`` 0.3.
        beta: weight of the divergence, None takes 6; or of the pairing, None takes 0.5.
        wn_in_graph: differentiate through the normalisation of the rows, which are then left as long as they get.

    History: ``true_cosine``, the mean of the true class's cosine on the images of the loss.
    """

    card = Card(key="hypersphere", category="variant", citation="pang2020boosting", comparison="B")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        framework: Framework = "pgd_at",
        s: float | None = None,
        m: float | None = None,
        beta: float | None = None,
        wn_in_graph: bool = False,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        usual = _defaults(framework)
        scale, margin, weight = (
            by_default if given is None else given for given, by_default in zip((s, m, beta), usual, strict=True)
        )
        for name, value in (("m", margin), ("beta", weight)):
            if not value >= 0:
                raise BadInput(f"{name} is 0 or more, but found {value}")
        network = with_cosine_head(network, scale=_positive(scale), in_graph=wn_in_graph)
        if framework == "free_at" and type(self) is Hypersphere:
            self.__class__ = _InFreeAT  # whose training step is another one
        super().__init__(network, threat, **self._attack(framework, inner), **common)
        self.framework: Framework = framework
        self.s, self.m, self.beta = scale, margin, weight
        self._ends_in_head = False  # nothing has been seen of it

    @classmethod
    def compose(
        cls,
        build: Callable[[int], nn.Module],
        *,
        framework: Framework = "pgd_at",
        s: float | None = None,
        wn_in_graph: bool = False,
        **settings: Any,
    ) -> nn.Module:
        """Make the network, its last linear layer replaced by a cosine head."""
        scale = _defaults(framework)[0] if s is None else s
        return with_cosine_head(build(0), scale=_positive(scale), in_graph=wn_in_graph)

    def trace_step(self, batch: Any) -> StepTrace:
        """Run the step, the first one on a network that is seen to end in the head."""
        self._check_head(Batch.of(batch).x)
        return super().trace_step(batch)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x, y = batch.x, batch.y
        if self.framework == "pgd_at":
            return self.classification_loss(self(self.perturb(batch, cross_entropy_with(y))), y)
        trades = self.framework == "trades"
        attacked = self.perturb(batch, kl_from(self.frozen_logits(x)) if trades else cross_entropy_with(y))
        clean, adversarial = self(x), self(attacked)
        loss = self.classification_loss(clean, y)
        if trades:
            return loss + self.beta * kl_divergence(clean, adversarial).mean()
        pairing = F.mse_loss(clean / self.s, adversarial / self.s)
        return (loss + self.classification_loss(adversarial, y)) / 2 + self.beta * pairing

    def classification_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits s cos, the true class's less s m."""
        true = F.one_hot(y, logits.shape[1]).bool()
        self.note("true_cosine", logits[true] / self.s)
        return super().classification_loss(torch.where(true, logits - self.s * self.m, logits), y)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Leave unit rows behind the step, also in what is saved; of averaged rows once, behind the last step."""
        _unit_rows(self.network)
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.averaged is not None and self.trainer.global_step >= self.total_updates():
            _unit_rows(self.averaged)

    @property
    def head(self) -> CosineHead:
        """The network's last layer."""
        head = head_of(self.network)
        assert head is not None
        return head

    def _attack(self, framework: Framework, inner: Inner) -> dict[str, Any]:
        """Give ``inner``; with TRADES its own attack of as many steps, unless a person has chosen another one."""
        default, of_trades = (_inner_of(kind) for kind in (Hypersphere, TRADES))
        chosen = framework != "trades" or replace(inner, steps=default.steps) != default
        return {"inner": inner if chosen else replace(of_trades, steps=inner.steps)}

    def _check_head(self, x: Tensor) -> None:
        if self._ends_in_head:
            return
        logits, calls = observe(self.network, x)
        if not any(call.layer is self.head and torch.equal(call.made, logits) for call in calls):
            raise BadInput(
                "hypersphere replaces the one linear layer that makes the logits, but what the last one of "
                f"{type(self.network).__name__} makes is not its logits: end the network with an nn.Linear"
            )
        self._ends_in_head = True


class _InFreeAT(Hypersphere, FreeAT):
    """Free-AT on the head: one pass trains on the margin and moves the noise, so the noise sees the margin, too."""

    single_step = True

    def _attack(self, framework: Framework, inner: Inner) -> dict[str, Any]:
        return {}  # the training is the attack


def _defaults(framework: str) -> tuple[float, float, float]:
    if framework not in get_args(Framework):
        raise BadInput(f"framework is one of {', '.join(get_args(Framework))}, but found {framework!r}")
    return _DEFAULTS[framework]


def _positive(scale: float) -> float:
    if not scale > 0:
        raise BadInput(f"s is above 0, but found {scale}")
    return scale


def _unit_rows(network: nn.Module) -> None:
    head = head_of(network)
    if head is not None and not head.in_graph:
        head.normalise()


def _inner_of(kind: type[AdversarialTraining]) -> Inner:
    inner: Inner = inspect.signature(kind.__init__).parameters["inner"].default
    return inner
