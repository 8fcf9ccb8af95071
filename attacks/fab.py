r"""FAB: step onto the decision boundary as the gradient sees it, leaning towards the image, to end as near as possible.

.. math:: x_{i+1} = \Pi\big((1 - a)\,(x_i + \eta\, d(x_i)) + a\,(x + \eta\, d(x))\big), \quad
    a = \min\left(\frac{\|d(x_i)\|}{\|d(x_i)\| + \|d(x)\|}, a_{max}\right)

with :math:`d` the shortest way (:mod:`attacks.hyperplane`) onto the boundary linearised at :math:`x_i`. A point that is
misclassified is drawn back, to :math:`x + \beta (x_{i+1} - x)`. Source: Croce and Hein, ICML 2020, arXiv:1907.02044,
algorithm 1, with the settings of AutoAttack, and without the final search, as there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.apgd import target_classes
from attacks.engine import Found, Jobs
from attacks.hyperplane import onto_hyperplane
from attacks.oracle import Oracle
from attacks.threat import ThreatModel, per_image


class FABState(NamedTuple):
    """Slots of FAB, one row each."""

    x: Tensor
    y: Tensor
    target: Tensor
    point: Tensor  # is linearised next
    iterations: Tensor  # so far


@dataclass(frozen=True)
class FAB:
    """FAB within ``threat``, which bounds what counts, not how far the search goes.

    The authors look for the nearest misclassified point and compare its distance with epsilon at the end; here a job
    ends at the first one within epsilon, with the same verdict.

    Args:
        threat: norm, radius and range.
        start: noise for restarts beyond the first, like the images; scaled to half the radius here. The first begins
            at the image itself, and so does every target class.
        targeted: whether a phase is the rank of a target class, from the likeliest wrong one; else a restart.
        iterations: of a job.
        alpha_max: the most that a step leans towards the image; ``eta``: how far it goes beyond the boundary;
            ``beta``: the part of the way that is kept when a misclassified point is drawn back.
    """

    threat: ThreatModel
    start: Callable[[Jobs], Tensor]
    targeted: bool = False
    iterations: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def begin(self, jobs: Jobs) -> FABState:
        """Start at the image, in a restart beside it."""
        x, threat, point = jobs.x, self.threat, jobs.x
        again = torch.tensor([not self.targeted and phase > 0 for phase in jobs.phase], device=x.device)
        if not self.targeted and any(jobs.phase):
            noise = self.start(jobs)
            length = threat.distance(noise, torch.zeros_like(noise)).clamp(min=1e-12)
            point = (x + per_image(again * threat.epsilon / 2 / length, x) * noise).clamp(threat.low, threat.high)
        return FABState(
            x=x,
            y=jobs.y,
            target=target_classes(jobs) if self.targeted else jobs.y,
            point=point,
            iterations=torch.zeros(len(x), dtype=torch.int64, device=x.device),
        )

    def step(self, state: FABState, oracle: Oracle) -> tuple[FABState, Found]:
        """Linearise at each slot's point, go to the boundary, and ask what is there."""
        lead, slope = _towards(state, oracle) if self.targeted else self._nearest(state, oracle)
        moved = self._moved(state, lead, slope)
        wrong = oracle.logits(moved).argmax(1) != state.y
        iterations = state.iterations + 1
        near = self.threat.distance(moved, state.x) <= self.threat.epsilon
        kept = per_image(torch.where(wrong, self.beta, 1.0), moved)
        after = state._replace(point=torch.lerp(state.x, moved, kept), iterations=iterations)
        return after, Found(moved, wrong & near, iterations >= self.iterations)

    def _nearest(self, state: FABState, oracle: Oracle) -> tuple[Tensor, Tensor]:
        """Choose the class whose linearised boundary is nearest, the range aside."""
        logits, slopes = oracle.slopes(state.point)
        rows = torch.arange(len(logits), device=logits.device)
        lead = logits - logits[rows, state.y][:, None]
        slopes = slopes - slopes[rows, state.y][:, None]
        distance = lead.abs() / (_dual_length(slopes.flatten(2), self.threat) + 1e-12)
        nearest = distance.scatter(1, state.y[:, None], torch.inf).argmin(1)
        return lead[rows, nearest], slopes[rows, nearest]

    def _moved(self, state: FABState, lead: Tensor, slope: Tensor) -> Tensor:
        """Go from point and image to the boundary and beyond, and mix the two ends."""
        normal, ends = slope.flatten(1), torch.stack((state.point.flatten(1), state.x.flatten(1)))
        gap = torch.stack((lead, lead + torch.linalg.vecdot(normal, ends[1] - ends[0])))
        way = onto_hyperplane(ends, normal, gap, self.threat)
        far, back = _length(way, self.threat).clamp(min=1e-8)
        lean = (far / (far + back)).clamp(max=self.alpha_max)
        ends = ends.add_(way, alpha=self.eta)
        moved = torch.lerp(ends[0], ends[1], lean[:, None]).clamp_(self.threat.low, self.threat.high)
        return moved.view_as(state.x)


def _towards(state: FABState, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """Linearise the lead of the target class over the label."""
    label, target = state.y[:, None], state.target[:, None]
    _, lead, slope = oracle.climb(
        state.point, lambda logits: (logits.gather(1, target) - logits.gather(1, label))[:, 0]
    )
    return lead, slope


def _length(vectors: Tensor, threat: ThreatModel) -> Tensor:
    """Measure the last dimension in the norm of ``threat``; on CPUs much faster than ``vector_norm`` for 1 and inf."""
    if threat.norm == "linf":
        return vectors.abs().amax(-1)
    return vectors.abs().sum(-1) if threat.norm == "l1" else torch.linalg.vector_norm(vectors, dim=-1)


def _dual_length(vectors: Tensor, threat: ThreatModel) -> Tensor:
    if threat.norm == "l2":
        return torch.linalg.vector_norm(vectors, dim=-1)
    return vectors.abs().sum(-1) if threat.norm == "linf" else vectors.abs().amax(-1)
