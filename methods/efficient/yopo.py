"""YOPO: many cheap steps through the first layer for each pass through the whole network."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.modes import without_parameter_gradients
from attacks.objectives import Objective, kl_divergence, kl_from
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.anatomy import Front, cut, first_layer, observe
from methods.base import AdversarialTraining, Batch, Card
from methods.carried_gradient import Gradients, added, carrying
from methods.inner import Inner

Loss = Literal["ce", "trades"]
FirstLayer = Literal["intended", "both"]
Reduction = Literal["mean", "sum"]


class YOPO(AdversarialTraining):
    r"""Hold the rest of the network still while the noise takes several steps through the first layer alone.

    .. math:: \min_\theta \max_{\|\eta\|_\infty \le \epsilon} CE(f(x + \eta), y), \quad f = g \circ f_0, \quad
        \eta \gets \Pi(\eta + \sigma\, \mathrm{sign}\, \nabla_\eta \langle p, f_0(x + \eta) \rangle), \quad
        p = \nabla_{f_0} CE(g(f_0(x + \eta)), y)

    with the adjoint :math:`p` held fixed for n steps; a minibatch has m such rounds and one update.

    Source: Zhang et al., NeurIPS 2019, arXiv:1905.00877, algorithm 1. Reading: the rest's gradient is that of the pass
    which gives the adjoint, BEFORE the steps, as in the authors' code (the paper writes it after them); the first
    layer's is that of the Hamiltonian alone, after them. The first layer is the first convolution with the
    normalisation before it; BatchNorm and ReLU belong to the rest. The first pass sees the noise unclipped; the clip
    of the steps has gradient 1 on a bound. Train mode throughout.

    Steps: 1. Draw noise uniformly from the ball. 2. Forward image plus noise; a backward pass down to the first layer's
    output gives the rest's gradient, which is kept, and the adjoint. 3. Repeat n times: gradient of the adjoint times
    the first layer's output by the noise; a step along its sign, back into the ball, then into the pixel range.
    4. There, with the old adjoint, take the first layer's gradient, and keep it. 5. Repeat steps 2 to 4 m times; update
    once with the mean of the kept gradients.

    Warning: the first of the m gradients is taken at random noise, and the last adversary reaches the first layer only;
    with m = 1 the rest of the network never sees an adversary. Warning: a lone convolution is linear, so that n steps
    act as one of n times the length, up to the clips: n = 3 is no stronger than one step of 0.75 epsilon. Warning: on
    small networks and next to short attacks the cost advantage is gone; it pays at 7 to 10 steps and depth. AutoAttack
    lies 3 points below the published PGD-20 (44.83 against 47.98).

    Args:
        m: passes through the whole network for each minibatch.
        n: steps through the first layer for each of them.
        step_size: sigma, in pixel units or relative.
        loss: ``ce``; or ``trades``, the authors' variant: the rounds, in eval mode and from Gaussian noise of
            0.001/0.031 epsilon, climb the divergence from the clean prediction and keep no gradients; then one step on
            TRADES' loss.
        beta: weight of the divergence, for ``trades``.
        first_layer_grad: of ``ce``: ``intended``; ``both`` also adds the full pass's, as the released code in effect
            did.
        reduction: of ``ce``: the ``mean`` of the m gradients, so that the recipe's rate is used as it is; or their
            ``sum``, as in the authors' code, which divides the rate by m.

    History: ``first_layer_share``, of all multiplications of a forward pass.
    """

    card = Card(key="yopo", category="efficient", citation="zhang2019you")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        m: int = 5,
        n: int = 3,
        step_size: str | float = "epsilon/4",
        loss: Loss = "ce",
        beta: float = 1.0,
        first_layer_grad: FirstLayer = "intended",
        reduction: Reduction = "mean",
        **common: Any,
    ) -> None:
        if threat.norm != "linf":
            raise BadInput(f"yopo moves its noise by signs, within linf: threat.norm is {threat.norm!r}")
        for name, value, least in (("m", m, 1), ("n", n, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BadInput(f"{name} is a whole number, {least} or more, but found {value!r}")
        for name, chosen, kind in (
            ("loss", loss, Loss),
            ("first_layer_grad", first_layer_grad, FirstLayer),
            ("reduction", reduction, Reduction),
        ):
            if chosen not in get_args(kind):
                raise BadInput(f"{name} is {' or '.join(get_args(kind))}, but found {chosen!r}")
        noise = {"start": "gaussian", "scale": "0.001/0.031 epsilon"} if loss == "trades" else {"start": "uniform"}
        super().__init__(network, threat, inner=Inner(n, step_size, boxed=False, **noise), **common)  # type: ignore[arg-type]
        self.m, self.n, self.beta = m, n, beta
        self.loss, self.first_layer_grad, self.reduction = loss, first_layer_grad, reduction
        self._first = ""  # name of the first layer
        self._share = 0.0  # of it in the multiplications

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        self._find_first_layer(batch.x)
        return self._trades(batch) if self.loss == "trades" else self._cross_entropy(batch)

    def _cross_entropy(self, batch: Batch) -> Tensor:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        kept: Gradients = [None] * len(parameters)
        attacked, front = self.inner.begin(batch.x, self.present_threat(), self.draws), Front(self.network, self._first)
        for _ in range(self.m):
            logits, made, seen = cut(self, f"network.{self._first}", attacked)
            loss = self.classification_loss(logits, batch.y)
            # Of the sum over the images, so that float16 need not hold a 1/n; no scaler stands behind it here.
            adjoint, *rest = torch.autograd.grad(loss * len(batch.x), [seen, *parameters], allow_unused=True)
            climb = along(adjoint)
            attacked = self.perturb(batch, climb, attacked)
            hamiltonian = climb(front(clip(attacked, self.threat.low, self.threat.high))).sum()
            if self.first_layer_grad == "both":
                hamiltonian = hamiltonian + climb(made).sum()  # by the chain rule what the full pass would add
            first = torch.autograd.grad(hamiltonian, parameters, allow_unused=True)
            kept = added(added(kept, rest), first)
        over = len(batch.x) * (self.m if self.reduction == "mean" else 1)
        return carrying(loss, parameters, [None if gradient is None else gradient / over for gradient in kept])

    def _trades(self, batch: Batch) -> Tensor:
        attacked = self.inner.begin(batch.x, self.present_threat(), self.draws)
        divergence = kl_from(self.frozen_logits(batch.x))
        with self.inner.conditions(self.network, batch.x), without_parameter_gradients(self.network):
            for _ in range(self.m):
                logits, _, seen = cut(self, f"network.{self._first}", attacked)
                (adjoint,) = torch.autograd.grad(divergence(logits).sum(), seen)
                attacked = self.perturb(batch, along(adjoint), attacked)
        clean, adversarial = self(batch.x), self(attacked.clamp(self.threat.low, self.threat.high))
        return self.classification_loss(clean, batch.y) + self.beta * kl_divergence(clean, adversarial).mean()

    def perturb(self, batch: Batch, objective: Objective, start: Tensor | None = None) -> Tensor:
        """Take the n cheap steps from ``start``; the ``objective`` is one of the first layer's output."""
        threat = self.present_threat()
        return pgd(
            _Clipped(self.network, self._first, threat.low, threat.high),
            batch.x,
            objective,
            threat,
            start=batch.x if start is None else start,
            steps=self.n,
            step_size=Pixels.read(self.inner.step_size).at(threat.epsilon),
        )

    def _find_first_layer(self, x: Tensor) -> None:
        if not self._first:
            self._first = first_layer(self.network, x)
            _, calls = observe(self.network, x)
            work = [call.made.numel() * call.layer.get_parameter("weight")[0].numel() for call in calls]
            of_first = sum(size for call, size in zip(calls, work, strict=True) if call.name == self._first)
            self._share = of_first / sum(work)
        self.note("first_layer_share", x.new_tensor(self._share))

    def remarks(self) -> dict[str, float | str]:
        """Give the first layer's share in a full pass, and what its steps cost beside the full passes, in such."""
        pairs = self.m * (self.n + (self.loss == "ce"))
        return {
            name: count * share
            for share in self.noted("first_layer_share")[-1:]
            for name, count in (("first_layer_share", 1), ("first_layer_passes", pairs))
        }


def along(adjoint: Tensor) -> Objective:
    r"""Climb :math:`\langle p, h \rangle` per image ``(n,)``: the first layer's output ``h`` along the ``adjoint``."""
    return lambda made: (adjoint * made).flatten(1).sum(1)


class _Clipped(Front):
    """The first layer behind a clip, which only the first step can find at work."""

    def __init__(self, network: nn.Module, layer: str, low: float, high: float) -> None:
        super().__init__(network, layer)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(clip(x, self.low, self.high))
