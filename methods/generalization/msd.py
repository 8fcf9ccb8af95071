"""Multi steepest descent: one attack on the union of three norms, which chooses the worst norm at every step."""

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.moves import Move, largest, steepest, usual_pixels
from attacks.objectives import Objective
from attacks.slope import slope
from attacks.threat import Norm, ThreatModel, per_image
from attacks.union import PerNorm
from methods.base import Batch, Card
from methods.generalization.union import UnionTraining, inner_without_pace
from methods.inner import Inner

Form = Literal["cifar", "mnist"]

_PUBLISHED_STEP: dict[Norm, float] = {"linf": 1 / 10, "l2": 1 / 6, "l1": 1 / 12}  # shares of the radius, CIFAR-10
_LATER_WINS: dict[Form, tuple[Norm, ...]] = {"cifar": ("l1", "l2", "linf"), "mnist": ("linf", "l1", "l2")}


class MSD(UnionTraining):
    r"""Train on one descent within the union of three balls, of which each step takes the norm that hurts most.

    .. math:: CE(f(x + \delta), y), \quad
        \delta \approx \arg\max_{\delta \in \Delta_\infty \cup \Delta_2 \cup \Delta_1} CE(f(x + \delta), y)

    .. math:: \delta_{t+1} = \arg\max_{p \in \{\infty, 2, 1\}} CE(f(x + \delta^{(p)}), y), \quad
        \delta^{(p)} = \Pi_{\Delta_p}(\delta_t + \alpha_p\, v_p(\nabla CE(f(x + \delta_t), y)))

    with :math:`v_p` the steepest direction in norm p, in L1 the signs of the k largest entries.

    Source: Maini et al., ICML 2020, arXiv:1909.04068, algorithm 1. Reading: the descent goes on from the chosen
    candidate even where its loss is lower than before, and returns the best of all chosen ones, as in the authors'
    code. The whole step runs in train mode, so that each attack forward moves BatchNorm's statistics, as their script
    never calls eval. The L1 projection moves only images that are outside; theirs, once one image is, moves all others
    onto the sphere. Their float16 is float32 here.

    Steps: 1. In train mode forward the present images; gradient of the cross-entropy. 2. From there one step in each
    norm, back into its ball and into the range; in L1 on k pixels that have room for it, k drawn anew. 3. Forward the
    candidates; per image the one with the highest loss is the next point. 4. After T such steps forward the best of the
    points; cross-entropy, backward, optimizer step.

    Warning: later re-evaluations by L1-APGD and multi-norm AutoAttack (Croce and Hein, arXiv:2105.12508) are remembered
    to find less L1 and union accuracy than published; judge by the union, not by PGD in single norms. Warning: in train
    mode the 4 T attack forwards dominate the running statistics: compare with eval mode before blaming the loss.

    Args:
        radii: of the three balls, the Linf one relative to the threat; None leaves a norm out.
        step_sizes: None in a norm is its radius times the larger of the published share (1/10, 1/6, 1/12 in Linf, L2,
            L1) and 2.5 / T, so that few steps cross the ball, too. In L1 a step's L1 length.
        k_min, k_max: between which a step's number of L1 pixels is drawn, one number for the batch and the same on all
            devices; None lets each pixel move by .05 to .2: from 5 to 20 times the L1 length.
        form: which of the authors' files decides on ties, where the later candidate wins (``cifar``: L1, L2, Linf;
            ``mnist``: Linf, L1, L2), and on the order of ball and range in L2 and L1 (``mnist``: the range first).
        inner: its steps, its start, which is none, its mode, and whether the ``best`` or the ``last`` point is trained
            on; ``step_size`` is not looked at.

    History: ``share_linf``, ``share_l2``, ``share_l1``, of the images that chose that norm in the last step.
    """

    card = Card(key="msd", category="generalization", citation="maini2020adversarial", comparison="E")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        radii: PerNorm = PerNorm("epsilon", 0.5, 12.0),
        step_sizes: PerNorm = PerNorm(),
        k_min: int | None = None,
        k_max: int | None = None,
        form: Form = "cifar",
        inner: Inner = Inner(steps=50, start="none", mode="train", keep="best", full_precision=True),
        **common: Any,
    ) -> None:
        if form not in get_args(Form):
            raise BadInput(f"form is cifar or mnist, but found {form!r}")
        if (k_min is None) != (k_max is None):
            raise BadInput(f"k_min and k_max go together, but found {k_min} and {k_max}")
        if k_min is not None and k_max is not None and not 1 <= k_min <= k_max:
            raise BadInput(f"k_min is 1 or more and at most k_max, but found {k_min} and {k_max}")
        inner_without_pace("msd", inner)
        super().__init__(network, threat, radii=radii, step_sizes=step_sizes, inner=inner, **common)
        self.k_min, self.k_max = k_min, k_max
        self.form: Form = form

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Descend within the union, and note which norms the last step chose."""
        x = batch.x
        moves = self._moves(x)
        point = clip(self.inner.begin(x, self.present_threat(), self.draws), self.threat.low, self.threat.high)
        best, best_value = x, x.new_zeros(len(x))
        with self.inner.conditions(self.network, x):
            for step in range(self.inner.steps):
                gradient = self._gradient(point, objective)
                with torch.no_grad():
                    point, value, chosen = self._worst([move(point, gradient) for move in moves.values()], objective)
                better = value > best_value
                best = torch.where(per_image(better, x).bool(), point, best)
                best_value = torch.where(better, value, best_value)
                if step == self.inner.steps - 1:
                    self.note_shares(chosen, tuple(moves))
        return best if self.inner.keep == "best" else point

    def usual_step(self, norm: Norm) -> float:
        """Give the published share of the radius, or what crosses the ball in 40 % of the steps."""
        return max(_PUBLISHED_STEP[norm], 2.5 / max(1, self.inner.steps))

    def _moves(self, x: Tensor) -> dict[Norm, Move]:
        """Give the step of each norm, in the order of comparison."""
        balls, box_first = self.present_balls(), self.form == "mnist"
        found: dict[Norm, Move] = {}
        for norm in (norm for norm in _LATER_WINS[self.form] if norm in balls):
            ball, length = balls[norm], self.step_size(balls[norm])
            if norm == "l1":
                found[norm] = largest(x, ball, length, partial(self._pixels, length), box_first=box_first)
            else:
                found[norm] = steepest(x, ball, length, box_first=box_first)
        return found

    def _pixels(self, length: float) -> int:
        """Draw this step's k; on the CPU, so that all devices have the same and none waits."""
        low, high = usual_pixels(length) if self.k_min is None or self.k_max is None else (self.k_min, self.k_max)
        return low + int(self.draws.integers(high - low + 1, torch.empty(0), (), of_all_ranks=True))

    def _gradient(self, point: Tensor, objective: Objective) -> Tensor:
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            return slope(objective(self.network(point)).sum(), point)

    def _worst(self, candidates: list[Tensor], objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Give per image the candidate with the highest objective, a later one on ties, its value and its place."""
        worst, highest = candidates[0], objective(self.network(candidates[0]))
        chosen = torch.zeros(len(worst), dtype=torch.int64, device=worst.device)
        for place, candidate in enumerate(candidates[1:], 1):
            value = objective(self.network(candidate))
            higher = value >= highest
            worst = torch.where(per_image(higher, worst).bool(), candidate, worst)
            highest, chosen = torch.where(higher, value, highest), chosen.masked_fill(higher, place)
        return worst, highest, chosen
