"""Continuous batching: a queue of jobs feeds the slots of a batch, so that it stays full and keeps its shape.

An attack on many images wastes most of its batch when images that are fooled or finished stay in it. Here each slot
works on one job, an image and a phase (a restart, or a target class), and is given the next when it is done. Slots keep
their own iteration counters, so that jobs of different age and phase share one pass through the network.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from attacks.oracle import Oracle
from attacks.threat import per_image


class Job(NamedTuple):
    """Attack image ``row`` in a phase: a restart, or the rank of a target class."""

    row: int
    phase: int


class Jobs(NamedTuple):
    """What an attack is told of the jobs that begin, ``(n, ...)`` each.

    Attributes:
        x: clean images.
        y: labels.
        indices: of the images in their data set, which key the draws.
        phase: of each job.
        ranking: classes of each image from the least to the most likely ``(n, k)``, of the clean image.
    """

    x: Tensor
    y: Tensor
    indices: list[int]
    phase: list[int]
    ranking: Tensor


class Found(NamedTuple):
    """What one step made of each slot: ``points`` ``(b, c, h, w)``, and masks ``(b,)``.

    Attributes:
        fooled: the point is within the threat model and misclassified, as far as the attack can tell.
        finished: the job has spent its budget.
    """

    points: Tensor
    fooled: Tensor
    finished: Tensor


State = TypeVar("State", bound=tuple[Tensor, ...])


class Attack(Protocol[State]):
    """An attack as the engine sees it; settings live in it, all that changes lives in the state.

    ``State`` is a NamedTuple of tensors with one row per slot.
    """

    def begin(self, jobs: Jobs) -> State:
        """Give the rows of jobs that begin."""

    def step(self, state: State, oracle: Oracle) -> tuple[State, Found]:
        """Advance every slot by one iteration."""


class Outcome(NamedTuple):
    """What became of a job: the picture ``(c, h, w)`` if it fooled the network, and the passes it cost."""

    job: Job
    picture: Tensor | None
    forward: int
    backward: int


def run(
    attack: Attack[State],
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    index: Iterable[int],
    ranking: Tensor,
    jobs: Iterable[Job],
    *,
    slots: int,
    done: Callable[[Outcome], None],
    beat: Callable[[], None] = lambda: None,
    look_every: int = 1,
) -> None:
    """Work off ``jobs`` in order. An image that is fooled drops out of the phases still to come.

    No image is in two slots at once, so that what is found does not depend on the number of slots. The batch keeps its
    shape to the end, because logits depend on it in the last bits: slots without a job carry on with what they had, and
    nobody listens.

    Args:
        x: clean images ``(n, c, h, w)``; ``y`` labels ``(n,)``, ``index`` sample indices, ``ranking`` classes
            ``(n, k)``, as in :class:`Jobs`.
        slots: of the batch.
        done: told of every job that ended. A success has been confirmed by ``oracle.confirms``; a claim that was not
            confirmed is ignored, and its job goes on.
        beat: called after every step.
        look_every: steps between looks at the masks; on a GPU each look waits for the device.
    """
    queue, indices = list(jobs), list(index)
    fooled: set[int] = set()
    at_work: dict[int, _Work] = {}  # by slot
    state: State | None = None
    seen: Found | None = None
    count, changed = 0, True
    while True:
        free = [slot for slot in range(slots) if slot not in at_work]
        taken: list[Job] = []
        if changed:  # else those that wait, wait for images that are still at work
            changed = False
            taken, queue = _next(queue, len(free), fooled, {work.job.row for work in at_work.values()})
        if taken:
            rows = torch.tensor([job.row for job in taken], device=x.device)
            names = [indices[job.row] for job in taken]
            fresh = attack.begin(Jobs(x[rows], y[rows], names, [job.phase for job in taken], ranking[rows]))
            state = _filled(fresh, slots) if state is None else _placed(state, free[: len(taken)], fresh)
            at_work |= {
                slot: _Work(job, oracle.forward, oracle.backward) for slot, job in zip(free, taken, strict=False)
            }
        if state is None or not at_work:
            return
        state, found = attack.step(state, oracle)
        count += 1
        beat()
        seen = found if seen is None else _both(seen, found)
        if count % look_every:
            continue
        over = {slot for slot in seen.finished.nonzero().flatten().tolist() if slot in at_work}
        hits = [slot for slot in seen.fooled.nonzero().flatten().tolist() if slot in at_work]
        if hits:
            pictures = seen.points[hits]
            holds = oracle.confirms(pictures, y[[at_work[slot].job.row for slot in hits]])
            for place, slot in enumerate(hits):
                at_work[slot] = work = at_work[slot].asked(oracle.cost)
                if holds[place]:
                    fooled.add(work.job.row)
                    at_work[slot] = work._replace(picture=pictures[place].clone())
                    over.add(slot)
        changed = bool(over)
        for slot in sorted(over):
            work = at_work.pop(slot)
            forward, backward = oracle.forward - work.forward, oracle.backward - work.backward
            done(Outcome(work.job, work.picture, round(forward), round(backward)))
        seen = None


class _Work(NamedTuple):
    """What a slot is at: its job, and the oracle's counters when it began."""

    job: Job
    forward: float
    backward: float
    picture: Tensor | None = None

    def asked(self, passes: int) -> "_Work":
        """Note that the plain network was asked, too."""
        return self._replace(forward=self.forward - passes)


def _both(before: Found, now: Found) -> Found:
    """Join what was found since the last look: of each slot the first success, if it came within the budget."""
    new = now.fooled & ~before.fooled & ~before.finished
    points = torch.where(per_image(new, now.points).bool(), now.points, before.points)
    return Found(points, before.fooled | new, before.finished | now.finished)


def _next(queue: list[Job], wanted: int, fooled: set[int], busy: set[int]) -> tuple[list[Job], list[Job]]:
    """Take up to ``wanted`` jobs whose images are neither fooled nor in another slot; those that wait keep order."""
    taken: list[Job] = []
    waiting: list[Job] = []
    for place, job in enumerate(queue):
        if len(taken) == wanted:
            return taken, waiting + queue[place:]
        if job.row in fooled:
            continue
        if job.row in busy:
            waiting.append(job)
        else:
            taken.append(job)
            busy = busy | {job.row}
    return taken, waiting


def _filled(fresh: State, slots: int) -> State:
    """Make a state of ``slots`` rows out of the first jobs, repeated; the copies are at nobody's work."""
    rows = torch.arange(slots, device=fresh[0].device) % len(fresh[0])
    return _of(fresh, (part[rows] for part in fresh))


def _placed(state: State, rows: list[int], fresh: State) -> State:
    where = torch.tensor(rows, device=state[0].device)
    return _of(fresh, (part.index_copy(0, where, new) for part, new in zip(state, fresh, strict=True)))


def _of(like: State, parts: Iterable[Tensor]) -> State:
    made: State = type(like)(*parts)
    return made
