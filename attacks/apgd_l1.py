r"""Auto-PGD for L1: sparse steps that change ever fewer pixels, in balls that shrink to the radius asked for.

.. math:: x_{i+1} = \Pi(x_i + \eta\, u_i / \|u_i\|_1), \quad u_i = \mathrm{sign}(\nabla\ell(x_i)) \text{ on its } k
    \text{ largest entries, 0 elsewhere}

with the projection of :mod:`attacks.l1_ball`. At checkpoints k becomes the number of pixels that the best point
changes, over 1.5. Where that number fell by more than 5 % the search goes back to the best point with the full step,
the radius; elsewhere the step shrinks by 1.5, down to a tenth. Source: Croce and Hein, ICML 2021, arXiv:2103.01208,
algorithm 1, and section 3.3 for the stages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.apgd import Loss, target_classes
from attacks.engine import Found, Jobs
from attacks.errors import BadInput
from attacks.l1_ball import correction, tidied
from attacks.oracle import Oracle
from attacks.threat import ThreatModel, per_image

STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radius, in units of epsilon, and share of the iterations: the standard version's."""

ONE_STAGE = ((1.0, 1.0),)
"""The plain attack."""

SPARSER = 1.5  # of the pixels that the best point changes, one in so many is not climbed
FELL = 0.95  # a number of pixels below this share of the last one has fallen
SLOWER = 1.5  # divides the step
SHORTEST = 10.0  # the radius over the shortest step
FIRST_SHARE = 0.2  # of the pixels, climbed before the first checkpoint of an attack without stages


class APGDL1State(NamedTuple):
    """Slots of Auto-PGD for L1, one row each."""

    x: Tensor
    y: Tensor
    target: Tensor
    point: Tensor  # is evaluated next
    step_size: Tensor  # (b, 1, 1, 1)
    share: Tensor  # of the pixels that are climbed
    changed: Tensor  # pixels that the best point changed at the last checkpoint
    best: Tensor  # of the stage, like the next two
    best_gradient: Tensor
    best_value: Tensor
    stage: Tensor
    evaluations: Tensor  # of the objective in this stage so far, its start included


@dataclass(frozen=True)
class APGDL1:
    """Auto-PGD within the L1 ball of ``threat`` on ``loss``; only points of the last stage count as found.

    Args:
        threat: norm l1.
        loss: what is climbed.
        start: normal noise that begins each job, like its images; projected here.
        targeted: whether a phase is the rank of a target class, from the likeliest wrong one; else a restart.
        iterations: steps of a job, over all stages; each stage evaluates its start besides.
        stages: radii, in units of epsilon, that end with 1, and the share of the iterations in each; each stage starts
            from the best point of the one before. One stage alone is the plain attack.

    Raises:
        BadInput: for another norm, or stages that do not end with the radius itself.
    """

    threat: ThreatModel
    loss: Loss
    start: Callable[[Jobs], Tensor]
    targeted: bool = False
    iterations: int = 100
    stages: tuple[tuple[float, float], ...] = STAGES

    def __post_init__(self) -> None:
        if self.threat.norm != "l1":
            raise BadInput(f"APGDL1 attacks within l1, but found {self.threat.norm!r}; for linf and l2 use APGD")
        if not self.stages or self.stages[-1][0] != 1:
            raise BadInput(f"the last stage has the factor 1, the radius itself, but found {self.stages}")

    @property
    def steps(self) -> tuple[int, ...]:
        """Iterations of each stage; the last gets what the others, rounded up, left."""
        early = [math.ceil(share * self.iterations) for _, share in self.stages[:-1]]
        return (*early, max(self.iterations - sum(early), 0))

    def begin(self, jobs: Jobs) -> APGDL1State:
        """Start from the noise, projected onto the first stage's ball."""
        x, noise, threat = jobs.x, self.start(jobs), self.threat
        whole = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        radius = self._radius(whole, x)
        if len(self.stages) == 1:
            start = (x + noise + correction(x, noise, radius, threat)).clamp(threat.low, threat.high)
            changed = torch.full_like(radius, x[0].numel())
            share = torch.full_like(radius, FIRST_SHARE)
        else:
            start = x + noise
            for _ in range(2):  # the authors project twice, which moves the last bits
                start = start + correction(x, start - x, radius, threat)
            start = start.clamp(threat.low, threat.high)
            changed = _changed(start, x)
            share = _share(changed, x)
        return APGDL1State(
            x=x,
            y=jobs.y,
            target=target_classes(jobs) if self.targeted else jobs.y,
            point=start,
            step_size=per_image(radius, x),
            share=share,
            changed=changed,
            best=start,
            best_gradient=torch.zeros_like(x),
            best_value=torch.zeros_like(radius),
            stage=whole,
            evaluations=whole,
        )

    def step(self, state: APGDL1State, oracle: Oracle) -> tuple[APGDL1State, Found]:
        """Evaluate each slot's point, take its checkpoint if one is due, and move on in its stage or to the next."""
        logits, value, gradient = oracle.climb(state.point, lambda logits: self.loss(logits, state.y, state.target))
        last = state.stage == len(self.stages) - 1
        over = state.evaluations >= _of_stage(self.steps, state.stage)
        fooled = last & (logits.argmax(1) != state.y)
        # A point may lie outside ball or range by its last bits, as in the authors' code; no picture does.
        wanted = state.point.is_cuda or bool(fooled.any())  # on a GPU, asking would wait for the device
        picture = tidied(state.point, state.x, self.threat) if wanted else state.point
        found = Found(picture, fooled, last & over)
        return self._moved(*self._checked(state, value, gradient), over & ~last), found

    def _checked(self, state: APGDL1State, value: Tensor, gradient: Tensor) -> tuple[APGDL1State, Tensor, Tensor]:
        """Keep the best point; at checkpoints choose pixels and step anew. Give where to climb from, and along what."""
        x, first, like = state.x, state.evaluations == 0, state.step_size
        better = first | (value > state.best_value)
        best = torch.where(better.view_as(like), state.point, state.best)
        best_gradient = torch.where(better.view_as(like), gradient, state.best_gradient)
        periods = [max(int(0.04 * steps), 1) for steps in self.steps]
        due = ~first & (state.evaluations % _of_stage(periods, state.stage) == 0)
        changed = torch.where(due, _changed(best, x), state.changed)
        back = (due & (changed / state.changed < FELL)).view_as(like)
        longest = per_image(self._radius(state.stage, x), x)
        shortest = per_image(self._radius(state.stage, x, over=SHORTEST), x)
        shorter = torch.minimum(torch.maximum(like / SLOWER, shortest), longest)
        checked = state._replace(
            step_size=torch.where(back, longest, torch.where(due.view_as(like), shorter, like)),
            share=torch.where(due, _share(changed, x), state.share),
            changed=changed,
            best=best,
            best_gradient=best_gradient,
            best_value=torch.where(better, value, state.best_value),
            evaluations=state.evaluations + 1,
        )
        return checked, torch.where(back, best, state.point), torch.where(back, best_gradient, gradient)

    def _moved(self, state: APGDL1State, point: Tensor, gradient: Tensor, rises: Tensor) -> APGDL1State:
        """Step from ``point`` along ``gradient``; slots in ``rises`` ``(b,)`` begin their next stage instead."""
        x, threat, fresh = state.x, self.threat, rises.view_as(state.step_size)
        stage = state.stage + rises
        radius = self._radius(stage, x)
        stepped = point + _sparse_step(gradient, state.share, state.step_size)
        delta = torch.where(fresh, state.best, stepped) - x
        moved = torch.where(fresh, state.best, x + delta) + correction(x, delta, radius, threat)
        moved = torch.where(fresh, moved.clamp(threat.low, threat.high), moved)
        changed = torch.where(rises, _changed(moved, x), state.changed)
        return state._replace(
            point=moved,
            step_size=torch.where(fresh, per_image(radius, x), state.step_size),
            share=torch.where(rises, _share(changed, x), state.share),
            changed=changed,
            stage=stage,
            evaluations=torch.where(rises, 0, state.evaluations),
        )

    def _radius(self, stage: Tensor, like: Tensor, over: float = 1.0) -> Tensor:
        return _of_stage([factor * self.threat.epsilon / over for factor, _ in self.stages], stage, like.dtype)


def _sparse_step(gradient: Tensor, share: Tensor, length: Tensor) -> Tensor:
    """Divide ``length`` ``(b, 1, 1, 1)`` among the signs of the largest ``share`` ``(b,)`` of entries; ties join in."""
    size = gradient.abs().flatten(1)
    entries = size.shape[1]
    place = entries - 1 - ((1 - share) * entries).clamp(0, entries - 1).long()
    most = entries if size.is_cuda else int(place.max()) + 1  # on a GPU, asking would wait for the device
    floor = size.topk(most, dim=1).values.gather(1, place[:, None])
    signs = torch.where(size >= floor, gradient.flatten(1).sign(), 0.0).view_as(gradient)
    return length * signs / (per_image(signs.flatten(1).abs().sum(1), gradient) + 1e-10)


def _changed(points: Tensor, x: Tensor) -> Tensor:
    """Count the pixels ``(b,)`` in which two sets of images differ."""
    return (points != x).flatten(1).sum(1).to(x)


def _share(changed: Tensor, x: Tensor) -> Tensor:
    """Give the share of the pixels to climb, from the number that was ``changed`` ``(b,)``."""
    return changed / x[0].numel() / SPARSER


def _of_stage(values: Sequence[float], stage: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """Look up what belongs to each slot's stage, without a copy from the host."""
    chosen = torch.full_like(stage, values[0], dtype=dtype)
    for number, value in enumerate(values[1:], start=1):
        chosen = torch.where(stage == number, value, chosen)
    return chosen
