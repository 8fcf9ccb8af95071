"""What methods share that train against several norms at once: balls, steps, and the choice of the best epoch."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import cross_entropy_with
from attacks.threat import Norm, ThreatModel
from attacks.union import NORMS, PerNorm, check_linf, pgd_in_any_norm
from methods.base import AdversarialTraining, Batch
from methods.inner import Inner
from methods.selection import Right

ONE_NORM = "acts as single-norm training"


class UnionTraining(AdversarialTraining):
    """Train within a union of balls; which of them a step was trained in is noted as shares of its images.

    The best epoch is that with the most held-out images which withstand PGD-10 in every norm.

    Args:
        radii: of the balls, in pixel units or relative to ``threat.epsilon``; None leaves a norm out. A recipe's ramp
            goes for all of them.
        step_sizes: in pixel units or relative to the norm's own radius, in L1 the L1 length; None: :meth:`usual_step`.
    """

    kinds: ClassVar[tuple[str, ...]] = NORMS  # between which a step chooses, in the order in which they are noted

    def __init__(
        self, network: nn.Module, threat: ThreatModel, *, radii: PerNorm, step_sizes: PerNorm, **common: Any
    ) -> None:
        check_linf(self.card.key, threat)
        radii.check("radii")
        step_sizes.check("step_sizes")
        if not radii.balls(threat):
            raise BadInput("radii has a radius for at least one norm, but found none")
        super().__init__(network, threat, **common)
        self.radii, self.step_sizes = radii, step_sizes

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        return self.classification_loss(self(attacked), batch.y)

    def present_balls(self) -> dict[Norm, ThreatModel]:
        """Give the balls in force at this step: a recipe may still be ramping all of them up."""
        full = self.threat.epsilon
        return self.radii.balls(self.threat, self.present_threat().epsilon / full if full > 0 else 1.0)

    def usual_step(self, norm: Norm) -> float:
        """Give a step's usual share of the radius."""
        raise NotImplementedError

    def step_size(self, ball: ThreatModel) -> float:
        """Give the length of a step within ``ball``."""
        own = self.step_sizes.at(ball.norm, ball.epsilon)
        return self.usual_step(ball.norm) * ball.epsilon if own is None else own

    def note_shares(self, choice: Tensor, kinds: tuple[str, ...]) -> None:
        """Note which share of the images was trained on in each kind; ``choice`` ``(n,)`` is a place in ``kinds``."""
        for place, kind in enumerate(kinds):
            self.note(f"share_{kind}", (choice == place).float())

    def remarks(self) -> dict[str, float | str]:
        """Give the whole training's shares, and a mark where one of several kinds has nearly all images."""
        noted = {name: self.noted(name) for name in (f"share_{kind}" for kind in self.kinds)}
        shares: dict[str, float | str] = {name: sum(values) / len(values) for name, values in noted.items() if values}
        one = len(shares) > 1 and any(float(share) > 0.95 for share in shares.values())
        return shares | ({"mark": ONE_NORM} if one else {})

    # The choice of the best epoch

    def held_out_right(self, network: nn.Module, batch: Batch) -> Right:
        """Attack held-out images by PGD-10 on the cross-entropy in every norm, in steps of a quarter of the radius."""
        x, y, index = batch
        with torch.no_grad():
            clean = network(x).argmax(1) == y
        right = {}
        for norm, ball in self.radii.balls(self.threat).items():
            attacked = pgd_in_any_norm(
                network,
                x,
                cross_entropy_with(y),
                ball,
                index=index.tolist(),
                names=(self.seed, "selection", norm),
                steps=10,
                step_size=ball.epsilon / 4,
            )
            with torch.no_grad():
                right[norm] = network(attacked).argmax(1) == y
        robust = torch.stack([clean, *right.values()]).all(0)
        return Right(clean, right.get("linf", robust), robust)


def inner_without_pace(method: str, inner: Inner) -> None:
    """Refuse settings of ``inner`` that a ``method`` with steps of its own does not look at."""
    if inner.patience is not None or inner.scored:
        raise BadInput(f"{method} takes all steps in every norm: leave inner.patience and inner.scored alone")
