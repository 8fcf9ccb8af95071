"""FGSM training with a term that compares the input gradients of two points, of which FGSM's own is one."""

from typing import Any, Literal, get_args

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode
from attacks.objectives import Objective
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.base import Batch
from methods.inner import one_step
from methods.input_gradient import InputGradient
from methods.second_order import SecondOrder

OneStepStart = Literal["zero", "uniform"]


class TwoGradients(SecondOrder):
    """Take one FGSM step whose gradient may be handed in, because the loss has a use for it as well.

    Args:
        lam: weight of the term; None for the method's rule.
        step_size: of FGSM, in pixel units or relative; the result is brought back into the ball.
        start: ``zero``, the image itself, or ``uniform`` in the ball, inside the pixel range.
        attack_mode: of the network while FGSM's gradient is taken.
        detach: let the weights' gradient flow through the second point only.
    """

    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        lam: float | None,
        step_size: str | float,
        start: OneStepStart,
        attack_mode: Mode,
        detach: bool,
        **common: Any,
    ) -> None:
        if threat.norm != "linf":
            raise BadInput(f"{self.card.key} is made for signs, within linf: threat.norm is {threat.norm!r}")
        if lam is not None and not lam >= 0:
            raise BadInput(f"lam is 0 or more, or null for the rule, but found {lam}")
        if start not in get_args(OneStepStart):
            raise BadInput(f"start is zero or uniform, but found {start!r}")
        inner = one_step(attack_mode, step_size=step_size, start="none" if start == "zero" else "uniform")
        super().__init__(network, threat, inner=inner, **common)
        self.lam, self.detach = lam, detach

    def perturb(
        self, batch: Batch, objective: Objective, start: Tensor | None = None, gradient: Tensor | None = None
    ) -> Tensor:
        """Step along the sign of ``gradient``, taken at ``start``; by default both are FGSM's own."""
        x, threat = batch.x, self.present_threat()
        start = self.inner.begin(x, threat, self.draws) if start is None else start
        if gradient is None:
            gradient = self.attack_gradient(start, objective, create_graph=False).gradient
        return threat.project(start + self.step_length(threat) * threat.direction(gradient.detach()), x)

    def attack_gradient(self, x: Tensor, objective: Objective, *, create_graph: bool) -> InputGradient:
        """Take the input gradient in the mode of the attack."""
        with self.inner.conditions(self.network, x):
            return self.input_gradient(x, objective, create_graph=create_graph)

    def step_length(self, threat: ThreatModel) -> float:
        """Give FGSM's step in pixel units."""
        return Pixels.read(self.inner.step_size).at(threat.epsilon)
