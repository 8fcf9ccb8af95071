"""PGD training with an L1 penalty on the weights, as the LASSO has it."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel, l2_length
from methods.anatomy import WEIGHTED, first_layer, last_linear
from methods.base import AdversarialTraining, Batch, Card
from methods.chance import for_epochs, lift
from methods.inner import Inner
from methods.input_gradient import input_gradient
from methods.recipe import Recipe

Layers = Literal["all", "first", "last"]


class L1Penalty(AdversarialTraining):
    r"""Keep the weights few and small while training on adversarial images, so that what is learned generalises.

    .. math:: CE(f(x'), y) + \lambda \sum_{W \in S} \sum_{w \in W} |w|, \quad
        x' = \arg\max_{\|x' - x\| \le \epsilon} CE(f(x'), y)

    with S the weights of convolutions and linear layers; neither biases nor BatchNorm's parameters.

    Source: Xing et al., AISTATS 2021, arXiv:2008.06631. Reading: the paper's theorems are about linear models, where
    the robust estimator for more dimensions than images is inconsistent and the penalty repairs that for sparse truths;
    how it sets up deep networks is not public, and this is ours. A plain SUM over weights, no mean, in the loss and not
    in the optimizer; weight decay is switched off, one regulariser at a time.

    Steps: 1. Attack as ``pgd_at`` does; the penalty has no part in it. 2. In train mode forward the result;
    cross-entropy. 3. Add lambda times the sum of the absolute weights, whose gradient is lambda times their sign, 0 at
    0; backward, optimizer step.

    Warning: in front of BatchNorm the penalty shrinks weights without changing the function, which raises the effective
    learning rate: part of its effect is that. Warning: subgradients give no exact zeros, so look at the share of small
    weights. Warning: it may merely replace stopping early; look at the best epoch and the last. Warning: without weight
    decay ``lam: 0`` is the row to read it against, beside ``pgd_at``.

    Args:
        lam: lambda; 0 is PGD training without weight decay. None takes 1 / (sum of the absolute weights in S at first),
            to one digit, so that the penalty begins at about 1: 1e-5 for a ResNet-18. A suite should fix the number.
        layers: S: ``all``; or only the ``first`` layer, or the ``last`` linear one.
        keep_weight_decay: leave the recipe's weight decay on.
        xi: of the smoothed attack, a single step of :math:`\epsilon g / \sqrt{\|g\|^2 + \xi^2}` from the image along
            its gradient g, in units of the batch's median length of g; in L2 alone. None attacks by PGD.

    History: ``penalty``, the sum of the absolute weights; ``small_weights``, the share of those below a thousandth of
    their layer's largest; ``over_guessing``, the accuracy on the adversarial images in units of that of guessing.
    """

    card = Card(
        key="l1_penalty",
        category="generalization",
        citation="xing2021generalization",
        reconstruction=True,
        trials={"digits": 4},
    )

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        lam: float | None = None,
        layers: Layers = "all",
        keep_weight_decay: bool = False,
        xi: float | None = None,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        if lam is not None and not lam >= 0:
            raise BadInput(f"lam is 0 or more, or null for the rule, but found {lam}")
        if layers not in get_args(Layers):
            raise BadInput(f"layers is one of {', '.join(get_args(Layers))}, but found {layers!r}")
        if xi is not None and not xi >= 0:
            raise BadInput(f"xi is 0 or more, or null for PGD, but found {xi}")
        if xi is not None and threat.norm != "l2":
            raise BadInput(
                f"l1_penalty smooths the attack in L2 alone: leave xi null, because the norm is {threat.norm}"
            )
        super().__init__(network, threat, inner=inner, **common)
        self.lam, self.layers, self.keep_weight_decay, self.xi = lam, layers, keep_weight_decay, xi
        self._layer: str | None = None  # the one that is penalised, where it is one; found with the first images

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        logits = self(attacked)
        weights = self.penalised(batch.x)
        penalty = absolute_sum(weights)
        if self.lam is None:
            self.lam = one_digit(1 / penalty.item())
        self.note("penalty", penalty)
        self.note("small_weights", share_of_small(weights))
        self.note("over_guessing", lift(logits, batch.y))
        return self.classification_loss(logits, batch.y) + self.lam * penalty

    def penalised(self, x: Tensor) -> list[Tensor]:
        """List the weights in S, each once; the first and the last layer are where images ``x`` pass them."""
        if self.layers == "all":
            every = [layer.weight for layer in self.network.modules() if isinstance(layer, WEIGHTED)]
            return list({id(weight): weight for weight in every}.values())  # layers may share one
        self._layer = self._layer or (first_layer if self.layers == "first" else last_linear)(self.network, x)
        weight: Tensor = self.network.get_submodule(self._layer).weight  # type: ignore[assignment]
        return [weight]

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack by PGD, or by the one smoothed step."""
        if self.xi is None:
            return super().perturb(batch, objective)
        x, threat = batch.x, self.present_threat()
        with self.inner.conditions(self.network, x):
            gradient = input_gradient(self.network, x, objective).gradient
        xi = self.xi * l2_length(gradient).median().item()
        return threat.project(x + smoothed_step(gradient, threat.epsilon, xi), x)

    def optimizers_for(self, recipe: Recipe) -> torch.optim.Optimizer:
        """Take the recipe's optimizer without its weight decay, in whose place the penalty stands."""
        return super().optimizers_for(recipe if self.keep_weight_decay else replace(recipe, weight_decay=0.0))

    def remarks(self) -> dict[str, float | str]:
        """Give the last epoch's sum of absolute weights and share of small ones; say where nothing else was learned."""
        told: dict[str, float | str] = {
            name: self.noted(history)[-1]
            for name, history in (("sum_of_absolute_weights", "penalty"), ("small_weights", "small_weights"))
            if self.noted(history)
        }
        if for_epochs(lift <= 1.1 for lift in self.noted("over_guessing")):
            told["mark"] = "penalty dominates"
        return told

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep lambda, which was made of the first weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lam"] = self.lam

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        super().on_load_checkpoint(checkpoint)
        self.lam = checkpoint["lam"]


def absolute_sum(weights: list[Tensor]) -> Tensor:
    """Sum the absolute values of all ``weights``, in float32 at least; a number with a graph."""
    return torch.stack([w.abs().sum(dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]).sum()


def share_of_small(weights: list[Tensor], below: float = 1e-3) -> Tensor:
    """Give the share of entries that are less than ``below`` of the largest of their own tensor; a number."""
    small = [(w.detach().abs() < below * w.detach().abs().max()).sum() for w in weights]
    return torch.stack(small).sum() / sum(w.numel() for w in weights)


def smoothed_step(gradient: Tensor, epsilon: float, xi: float) -> Tensor:
    r"""Give :math:`\epsilon g / \sqrt{\|g\|^2 + \xi^2}` of each image's gradient ``(n, c, h, w)``; 0 where g is."""
    length = (l2_length(gradient) ** 2 + xi**2).sqrt()
    return torch.where(length > 0, epsilon * gradient / length, 0.0)


def one_digit(value: float) -> float:
    """Round to one significant digit."""
    return float(f"{value:.0e}")
