"""Smooth adversarial training: no ReLU is left in the network, so that its gradients change gradually."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with, kl_divergence, kl_from
from attacks.threat import ThreatModel
from methods.activations import activation_modules, every_activation, swap_activations
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.smooth_activations import (
    USUAL_SLOPES,
    SmoothGradientReLU,
    SmoothReLU,
    check_slope,
    smooth_activation,
    smooth_gradients,
)

Activation = Literal["silu", "gelu", "elu", "softplus", "smooth_relu", "mish", "relu"]
BackwardOnly = Literal["none", "attack", "update", "both"]
Loss = Literal["ce", "trades"]


class SmoothAT(AdversarialTraining):
    r"""Train by PGD a network in which every ReLU is replaced by a smooth function.

    .. math:: CE(f^\phi(x'), y), \quad x' = \arg\max_{\|x' - x\| \le \epsilon} CE(f^\phi(x'), y), \quad
        \phi(t) = t\, \sigma(t)

    with :math:`f^\phi` the same network with :math:`\phi` in place of each ReLU, in the attack, the update and the
    evaluation.

    Source: Xie et al., 2020, arXiv:2006.14536. Reading: SILU, which the authors' table favours with GELU; attack and
    loss are those of `pgd_at`, so that the two rows differ in the activation alone, where the authors train by one step
    at 4/255 on ImageNet. Reading: softplus has a = 10, as in the paper, not the code's 1; GELU is the code's tanh form;
    first weights are drawn as for ReLU. Label smoothing, Nesterov and the decay of kernels alone belong to the recipe.

    Steps: 1. In eval mode attack the cross-entropy of the hard labels by PGD; for some batches, where ``clean_start``
    says so, from the images themselves. 2. In train mode forward the last iterate alone; cross-entropy, backward,
    optimizer step, which also learns SmoothReLU's slopes.

    Warning: the published gain is on ImageNet, with large networks. On CIFAR-10 third parties see about a point, and on
    small networks the difference to `pgd_at` is of the size of the seed's; that is not "no effect". No AutoAttack
    figure is known. Warning: an activation that is left (one called as a function is refused) undoes part of the gain.
    Warning: SmoothReLU starts near ReLU, and a short training leaves it there. Warning: seconds and memory are more
    than ReLU's, for its input is kept for the backward pass.

    Args:
        activation: in place of ReLU; ``relu`` replaces nothing, and is the method that this one is read against.
        slope: a of ``softplus`` and ``backward_only`` (None: 10) and, at first, of ``smooth_relu`` (None: 400).
        backward_only: keep ReLU's values and replace its derivative alone, by that of softplus: in the ``attack``, in
            the ``update`` of the weights or in ``both``; the paper's ablation, for ``activation: relu``. Evaluation
            sees a plain ReLU network.
        loss: ``ce``, that of `pgd_at`; or that of TRADES, which also attacks the divergence, with ``beta`` and, where
            ``inner`` says so, its start.
        beta: weight of the divergence in the loss of TRADES.
        clean_start: probability that a whole batch is attacked from the images themselves; 0.2 in the authors' code.

    History: ``slope``, the mean a of SmoothReLU.
    """

    card = Card(key="smooth_at", category="variant", citation="xie2020smooth", comparison="B")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        activation: Activation = "silu",
        slope: float | None = None,
        backward_only: BackwardOnly = "none",
        loss: Loss = "ce",
        beta: float = 6.0,
        clean_start: float = 0.0,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        for name, chosen, kind in (("loss", loss, Loss), ("backward_only", backward_only, BackwardOnly)):
            if chosen not in get_args(kind):
                raise BadInput(f"{name} is one of {', '.join(get_args(kind))}, but found {chosen!r}")
        if not 0 <= clean_start <= 1:
            raise BadInput(f"clean_start is a probability, between 0 and 1, but found {clean_start}")
        network = smoothed(network, activation, slope=slope, backward_only=backward_only != "none")
        super().__init__(network, threat, inner=inner, **common)
        self.activation: Activation = activation
        self.backward_only: BackwardOnly = backward_only
        self.loss: Loss = loss
        self.beta, self.clean_start = beta, clean_start
        self.looked = activation == "relu" and backward_only == "none"  # for activations called as functions

    @classmethod
    def compose(
        cls,
        build: Callable[[int], nn.Module],
        *,
        activation: Activation = "silu",
        slope: float | None = None,
        backward_only: BackwardOnly = "none",
        **settings: Any,
    ) -> nn.Module:
        """Make the network without ReLUs."""
        return smoothed(build(0), activation, slope=slope, backward_only=backward_only != "none")

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        with self._no_functions(), smooth_gradients(self.network, on=self.backward_only in ("update", "both")):
            if self.loss == "trades":
                attacked = self.perturb(batch, kl_from(self.frozen_logits(batch.x)))
                clean, adversarial = self(batch.x), self(attacked)
                pull = kl_divergence(clean, adversarial).mean()
                loss = self.classification_loss(clean, batch.y) + self.beta * pull
            else:
                attacked = self.perturb(batch, cross_entropy_with(batch.y))
                loss = self.classification_loss(self(attacked), batch.y)
        if slopes := self.slopes():
            self.note("slope", torch.stack(slopes))
        return loss

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack as ``inner`` says, a share of the batches from the images themselves."""
        inner = self.inner
        if self.clean_start > 0 and self.draws.bernoulli(self.clean_start, batch.x, shape=(1,)).item() == 1:
            inner = replace(inner, start="none")
        with smooth_gradients(self.network, on=self.backward_only in ("attack", "both")):
            return inner.maximise(self.network, batch.x, batch.y, objective, self.present_threat(), self.draws)

    def slopes(self) -> list[Tensor]:
        """List the present a of every SmoothReLU."""
        return [part.slope for part in self.network.modules() if isinstance(part, SmoothReLU)]

    def remarks(self) -> dict[str, float | str]:
        """Count the activations; say where there was nothing to replace, or where SmoothReLU hardly left ReLU."""
        places = len(activation_modules(self.network))
        told: dict[str, float | str] = {"activations": places}
        if places == 0:
            told["mark"] = "the network has no activation to replace"
        if slopes := self.slopes():
            told["slope"] = mean = torch.stack(slopes).mean().item()
            if mean > USUAL_SLOPES["smooth_relu"] / 2:
                told["mark"] = "SmoothReLU stayed near ReLU: the row answers little"
        return told

    def _no_functions(self) -> AbstractContextManager[Any]:
        """Refuse, in the first step, activations that are called as functions: one of them may be a ReLU."""
        looked, self.looked = self.looked, True
        return nullcontext() if looked else every_activation(self.network)


def smoothed(
    network: nn.Module, activation: Activation = "silu", *, slope: float | None = None, backward_only: bool = False
) -> nn.Module:
    """Put ``activation`` in place of every ReLU of any ``network``, which is changed and given back.

    Any method may be put around it. What a network calls as a function cannot be replaced; smooth_at refuses it in its
    first training step.

    Args:
        slope: as for :class:`SmoothAT`.
        backward_only: for ``relu``: keep its values, and let :func:`methods.smooth_activations.smooth_gradients` switch
            the derivative of softplus on.

    Raises:
        BadInput: for an unknown activation, or a slope of one that has none.

    Example::

        TRADES(smoothed(network), ThreatModel("linf", 8 / 255))
    """
    if activation == "relu":
        if backward_only:
            a = check_slope(USUAL_SLOPES["softplus"] if slope is None else slope)
            swap_activations(network, nn.ReLU, lambda: SmoothGradientReLU(a))
        elif slope is not None:
            raise BadInput(f"slope is of {' and '.join(USUAL_SLOPES)}, and relu has none, but found {slope}")
        return network
    if backward_only:
        raise BadInput(f"backward_only keeps the values of ReLU: set activation to relu, but found {activation!r}")
    swap_activations(network, nn.ReLU, smooth_activation(activation, slope))
    return network
