"""FGSM training with curvature regularisation, adv.FGSMR: a loss that bends little along FGSM's direction."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode
from attacks.objectives import cross_entropy_with
from attacks.pixels import Pixels
from attacks.threat import ThreatModel, l2_length
from methods.base import Batch, Card
from methods.efficient.two_gradients import OneStepStart, TwoGradients

CurvatureForm = Literal["gradient", "directional"]


class FGSMR(TwoGradients):
    r"""Train on FGSM, and let the input gradient change little from an image to its FGSM point.

    .. math:: CE(f(x + \delta), y) + \lambda\, \|\nabla\ell(x + h s) - \nabla\ell(x)\|_2^2,
        \quad \delta = \epsilon s, \quad s = \mathrm{sign}\,\nabla\ell(x)

    with :math:`\ell` the cross-entropy of an image.

    Source: Huang et al., 2020, arXiv:2011.05157. Reading: a reconstruction. No code is public and only the abstract
    could be checked: FGSM training and a curvature regulariser along FGSM's direction. The finite difference is that of
    CURE (Moosavi-Dezfooli et al., CVPR 2019), but along the sign vector itself; it is no Hessian-vector product, which
    would miss the kinks of ReLU. Reading: weights follow through both gradients, train mode in all three forwards, and
    the second point is not clipped to the pixel range, so that the direction stays FGSM's.

    Steps: 1. Forward the images; input gradient of each image's own cross-entropy, with its graph, and its sign. 2. One
    step along the sign, into the range; forward the result, mean cross-entropy. 3. Forward x + h s; input gradient,
    with its graph. 4. Add lambda times the mean squared change of the gradient; backward through both gradients,
    optimizer step.

    Warning: formula, lambda and schedule may differ from the paper's. Warning: a network lowers the term most cheaply
    by shrinking all its gradients, which is masking: compare ``curvature`` with ``gradient_length``, and rank by the
    worst case over attacks. Warning: the passes counted flatter it, because two of them are differentiated twice: on a
    small network a step costs as much as one of PGD-7.

    Args:
        lam: weight of the term; None for ``factor`` epsilon^2 D, with D the number of input values and the epsilon in
            force, the one scaling that survives a change of pixel units.
        factor: of that rule.
        curvature_form: ``gradient``, as above; or ``directional``, the second derivative along s, |s (change)| /
            (h |s|^2).
        h: how far the second point lies, in pixel units or relative.
        step_size: of FGSM.
        start: of FGSM: ``zero``; or ``uniform``, which takes one forward more, as an ``attack_mode`` other than train
            does; s is the sign at x all the same.
        attack_mode: of the network while FGSM's gradient is taken.
        detach: True lets the weights follow through the second gradient only.

    History: ``curvature``, the term before its weight; ``gradient_length``, the mean L2 length of the gradient at x.
    """

    card = Card(key="fgsmr", category="efficient", citation="huang2020bridging", reconstruction=True)

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        lam: float | None = None,
        factor: float = 0.05,
        curvature_form: CurvatureForm = "gradient",
        h: str | float = "epsilon",
        step_size: str | float = "epsilon",
        start: OneStepStart = "zero",
        attack_mode: Mode = "train",
        detach: bool = False,
        **common: Any,
    ) -> None:
        if not factor >= 0:
            raise BadInput(f"factor is 0 or more, but found {factor}")
        if curvature_form not in get_args(CurvatureForm):
            raise BadInput(f"curvature_form is gradient or directional, but found {curvature_form!r}")
        super().__init__(
            network, threat, lam=lam, step_size=step_size, start=start, attack_mode=attack_mode, detach=detach, **common
        )
        self.factor, self.h = factor, Pixels.read(h, "h")
        self.curvature_form: CurvatureForm = curvature_form

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x, climb, lam = batch.x, cross_entropy_with(batch.y), self.weight_for(batch.x)
        if lam == 0:
            return self.classification_loss(self(self.perturb(batch, climb)), batch.y)
        shared = (self.inner.start, self.inner.mode) == ("none", "train")  # FGSM's gradient is the one at x
        take = self.attack_gradient if shared else self.input_gradient
        here = take(x, climb, create_graph=not self.detach).gradient
        attacked = self.perturb(batch, climb, x, here) if shared else self.perturb(batch, climb)
        loss = self.classification_loss(self(attacked), batch.y)
        h, direction = self.h.at(self.present_threat().epsilon), here.detach().sign()
        there = self.input_gradient(x + h * direction, climb).gradient
        change = there - here
        bend = squared_length(change) if self.curvature_form == "gradient" else bend_along(direction, h, change)
        self.note("curvature", bend)
        self.note("gradient_length", l2_length(here))
        return loss + lam * bend.mean()

    def weight_for(self, x: Tensor) -> float:
        """Give lambda for images ``x`` ``(n, c, h, w)`` at the epsilon in force."""
        return self.factor * self.present_threat().epsilon ** 2 * x[0].numel() if self.lam is None else self.lam

    def remarks(self) -> dict[str, float | str]:
        """Give the form, and the first and the last epoch's curvature and length of the gradient."""
        curve = {name: self.noted(name) for name in ("curvature", "gradient_length")}
        first = {f"first_{name}": values[0] for name, values in curve.items() if values}
        last = {name: values[-1] for name, values in curve.items() if values}
        return {**super().remarks(), "form": f"{self.curvature_form} form", **first, **last}


def squared_length(change: Tensor) -> Tensor:
    """Give the squared length ``(n,)`` of each image's ``change`` of the gradient ``(n, c, h, w)``."""
    return change.pow(2).flatten(1).sum(1)


def bend_along(direction: Tensor, h: float, change: Tensor) -> Tensor:
    """Give the size ``(n,)`` of each image's second derivative along ``direction``; 0 where there is no way to go."""
    length = h * squared_length(direction)
    along = (direction * change).flatten(1).sum(1).abs()
    return torch.where(length > 0, along / torch.where(length > 0, length, 1.0), torch.zeros_like(along))
