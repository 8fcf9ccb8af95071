r"""Auto-PGD: projected gradient ascent with momentum that halves its own step when the objective stops rising.

.. math:: z = \Pi(x_i + \eta\, s(\nabla\ell(x_i))), \quad x_{i+1} = \Pi(x_i + 0.75\, (z - x_i) + 0.25\, (x_i - x_{i-1}))

At checkpoints, which come closer together (0.22 of the steps, then 0.03 less each time, at least 0.06), the step is
halved and the search goes back to the best point, if fewer than three quarters of the steps raised the objective or if
neither the best value nor the step changed since the checkpoint before. Source: Croce and Hein, ICML 2020,
arXiv:2003.01690, section 3 and algorithm 1. Linf and L2; for L1 see :mod:`attacks.apgd_l1`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.engine import Found, Jobs
from attacks.oracle import Oracle
from attacks.threat import ThreatModel, per_image

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits ``(b, k)``, labels and target classes ``(b,)`` to one value per image, higher being worse for the network."""

MOMENTUM = 0.75  # the share of the new step
RISING = 0.75  # rho: a window in which fewer steps rise is one of oscillation


class APGDState(NamedTuple):
    """Slots of Auto-PGD, one row each."""

    x: Tensor
    low: Tensor  # Linf: the least and the largest pixels that ball and range allow; else x
    high: Tensor
    y: Tensor
    target: Tensor
    point: Tensor  # is evaluated next
    before: Tensor  # where the last step began
    step_size: Tensor  # (b, 1, 1, 1)
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    last_value: Tensor
    evaluations: Tensor  # of the objective so far, the start included
    rises: Tensor  # steps that raised the objective since the last checkpoint
    since: Tensor  # steps since the last checkpoint
    window: Tensor  # steps between the last checkpoint and the next
    best_at_check: Tensor
    halved_at_check: Tensor


@dataclass(frozen=True)
class APGD:
    """Auto-PGD within ``threat`` on ``loss``.

    Args:
        threat: norm linf or l2.
        loss: what is climbed.
        start: noise that begins each job, like its images; scaled to the radius here. See :func:`keyed_start`.
        targeted: whether a phase is the rank of a target class, from the likeliest wrong one; else a restart.
        iterations: steps of a job.
    """

    threat: ThreatModel
    loss: Loss
    start: Callable[[Jobs], Tensor]
    targeted: bool = False
    iterations: int = 100

    def compiled(self) -> "APGD":
        """Give the same attack with its update compiled.

        On two CPU cores that makes a quarter of an update that is a twentieth of a step on the smallest networks, and
        takes ten seconds. On GPUs it makes one kernel of forty.
        """
        twin = copy.copy(self)
        object.__setattr__(twin, "_moved", torch.compile(self._moved, dynamic=False))
        return twin

    def begin(self, jobs: Jobs) -> APGDState:
        """Start within the ball, as far out as the noise allows."""
        x, threat = jobs.x, self.threat
        images, zeros = len(x), torch.zeros_like(x[:, 0, 0, 0])
        start = (x + threat.epsilon * _unit(self.start(jobs), threat)).clamp(threat.low, threat.high)
        ends = [x, x]
        if threat.norm == "linf":
            ends = [(x + side * threat.epsilon).clamp(threat.low, threat.high) for side in (-1, 1)]
        whole = torch.zeros(images, dtype=torch.int64, device=x.device)
        return APGDState(
            x=x,
            low=ends[0],
            high=ends[1],
            y=jobs.y,
            target=target_classes(jobs) if self.targeted else jobs.y,
            point=start,
            before=start,
            step_size=per_image(zeros + 2 * threat.epsilon, x),
            best=start,
            best_gradient=torch.zeros_like(x),
            best_value=zeros - torch.inf,
            last_value=zeros,  # not of the start: the authors' first comparison is with 0
            evaluations=whole,
            rises=whole,
            since=whole,
            window=whole + max(int(0.22 * self.iterations), 1),
            best_at_check=zeros,
            halved_at_check=torch.ones_like(whole, dtype=torch.bool),
        )

    def step(self, state: APGDState, oracle: Oracle) -> tuple[APGDState, Found]:
        """Evaluate each slot's point, take its checkpoint if one is due, and move on."""
        logits, value, gradient = oracle.climb(state.point, lambda logits: self.loss(logits, state.y, state.target))
        found = Found(state.point, logits.argmax(1) != state.y, state.evaluations >= self.iterations)
        return self._moved(state, value, gradient), found

    def _moved(self, state: APGDState, value: Tensor, gradient: Tensor) -> APGDState:
        first = state.evaluations == 0
        better = value > state.best_value
        best = _taken(better, state.point, state.best)
        best_gradient = _taken(better, gradient, state.best_gradient)
        best_value = torch.where(better, value, state.best_value)
        rises = state.rises + (~first & (value > state.last_value))
        since = state.since + ~first
        due = since == state.window
        stuck = ~state.halved_at_check & (state.best_at_check >= best_value)
        halve = due & ((rises <= RISING * state.window) | stuck)
        step_size = torch.where(halve.view_as(state.step_size), state.step_size / 2, state.step_size)
        point = _taken(halve, best, state.point)
        gradient = _taken(halve, best_gradient, gradient)
        keep = torch.where(first, 1.0, MOMENTUM).to(value).view_as(state.step_size)
        return state._replace(
            point=self._next_point(state, point, step_size, gradient, keep),
            before=point,
            step_size=step_size,
            best=best,
            best_gradient=best_gradient,
            best_value=best_value,
            last_value=torch.where(first, state.last_value, value),
            evaluations=state.evaluations + 1,
            rises=torch.where(due, 0, rises),
            since=torch.where(due, 0, since),
            window=torch.where(due, self._shorter(state.window), state.window),
            best_at_check=torch.where(due | first, best_value, state.best_at_check),
            halved_at_check=torch.where(due, halve, state.halved_at_check),
        )

    def _shorter(self, window: Tensor) -> Tensor:
        return (window - max(int(0.03 * self.iterations), 1)).clamp(min=max(int(0.06 * self.iterations), 1))

    def _next_point(self, state: APGDState, point: Tensor, step_size: Tensor, gradient: Tensor, keep: Tensor) -> Tensor:
        """Step along the gradient, then mix in the step before; into ball and range after each."""
        plain = self._project(state, (step_size * self._direction(gradient)).add_(point))
        mixed = plain.sub_(point).mul_(keep).add_(point)
        return self._project(state, mixed.add_((point - state.before).mul_(1 - keep)))

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.threat.norm == "linf" else _unit(gradient, self.threat)

    def _project(self, state: APGDState, moved: Tensor) -> Tensor:
        """As the authors do, in their order of operations, so that pictures are theirs bit by bit; in place."""
        threat = self.threat
        if threat.norm == "linf":
            return moved.clamp_(state.low, state.high)
        delta = moved - state.x
        length = _length(delta)
        return (state.x + delta / (length + 1e-12) * length.clamp(max=threat.epsilon)).clamp_(threat.low, threat.high)


def _taken(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Take the ``rows`` ``(b,)`` of new images in place of old ones; on a CPU it costs nothing where there are none."""
    if rows.device.type == "cpu" and not torch.compiler.is_compiling() and not rows.any():
        return old
    return torch.where(per_image(rows, new).bool(), new, old)


def target_classes(jobs: Jobs) -> Tensor:
    """Give each job its target ``(n,)``: phase 0 is the likeliest class but one of the clean image, and so on."""
    rank = torch.tensor(jobs.phase, device=jobs.x.device) + 2
    return jobs.ranking.gather(1, (jobs.ranking.shape[1] - rank)[:, None]).squeeze(1)


def _unit(noise: Tensor, threat: ThreatModel) -> Tensor:
    """Scale to length one in the norm of ``threat``."""
    if threat.norm == "linf":
        return noise / (per_image(noise.abs().flatten(1).amax(1), noise) + 1e-12)
    return noise / (_length(noise) + 1e-12)


def _length(images: Tensor) -> Tensor:
    return per_image((images**2).flatten(1).sum(1).sqrt(), images)
