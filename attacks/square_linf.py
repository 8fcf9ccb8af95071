r"""Square Attack in Linf: each pixel as bright or as dark as it may be, and squares of pixels switched at random.

It starts with vertical stripes. A proposal takes a square window and sends it, in each channel, to the upper or to the
lower end of what is allowed; it is kept if the margin falls. Source: Andriushchenko et al., ECCV 2020,
arXiv:1912.00049, algorithms 1 and 2.

As a pixel has two values, a proposal of a given size is one of few: a place, and a sign per channel. So the attack
knows of many proposals what would come of them, and asks nothing: those that change no pixel, and those that were
refused since one was last accepted. On 8x8 images that is most of 5,000 queries. A deterministic network gets the same
verdict and the same picture with and without.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.engine import Found, Jobs
from attacks.objectives import margin
from attacks.oracle import Oracle
from attacks.square_script import draws, places, window_sizes
from attacks.threat import ThreatModel

_LOOK_AHEAD = 64  # proposals of the script among which a slot looks for one whose outcome is not known
_LARGEST_TABLE = 2**16  # proposals of one size; where there are more, 5,000 queries hardly meet one twice


class LinfState(NamedTuple):
    """Slots of Square Attack in Linf, one row each. A step works on the images in place."""

    y: Tensor
    best: Tensor
    ends: Tensor  # (b, 2, c, h, w): the least and the largest pixels that ball and range allow
    value: Tensor  # of the best point, how far the network is from right
    wrong: Tensor  # the best point is misclassified
    query: Tensor  # of the script, evaluated next: 0 is the start, and one above the last means that nothing is left
    script: Tensor  # (b, queries + 2): of each query its place and its signs, as one number
    known: Tensor  # (b, proposals): proposals of size known_size that would be refused
    known_size: Tensor
    unknown: Tensor  # how many proposals of that size are not known


@dataclass(frozen=True)
class SquareLinf:
    """Square Attack within a Linf ``threat``; for its settings see :class:`attacks.square.Square`."""

    threat: ThreatModel
    seed: int
    queries: int = 5000
    skip_known: bool = True

    def begin(self, jobs: Jobs) -> LinfState:
        """Start with stripes, and draw the whole script."""
        x, threat, plan = jobs.x.contiguous(), self.threat, self._plan(jobs.x)
        ends = torch.stack([(x - threat.epsilon).clamp(min=threat.low), (x + threat.epsilon).clamp(max=threat.high)], 1)
        stripes = draws(jobs, (x.shape[1], 1, x.shape[3]), self.seed, "start") >= 0.5
        proposals = plan.proposals if self._skips(plan) else 0
        return LinfState(
            y=jobs.y.clone(),
            best=torch.where(stripes, ends[:, 1], ends[:, 0]).contiguous(),
            ends=ends,
            value=torch.full_like(x[:, 0, 0, 0], -torch.inf),
            wrong=torch.zeros_like(jobs.y, dtype=torch.bool),
            query=torch.zeros_like(jobs.y),
            script=self._script(jobs, plan, stripes[:, :, 0, 0]),
            known=torch.zeros((len(x), proposals), dtype=torch.bool, device=x.device),
            known_size=torch.zeros_like(jobs.y),
            unknown=torch.zeros_like(jobs.y),
        )

    def step(self, state: LinfState, oracle: Oracle) -> tuple[LinfState, Found]:
        """Evaluate each slot's proposal, keep it if the margin fell, and choose the next."""
        plan = self._plan(state.best)
        number = state.script.gather(1, state.query[:, None]).long()
        pixels, signed = _window(state.best, plan, state.query, number)
        best = state.best.flatten(1)
        before, after = best.gather(1, pixels), state.ends.flatten(1).gather(1, signed)
        best.scatter_(1, pixels, after)
        logits = oracle.logits(state.best, exact=True)
        value, wrong = margin(logits, state.y), logits.argmax(1) != state.y
        accepted = ((value > state.value) | (wrong & ~state.wrong)) & (state.query <= self.queries)
        best.scatter_(1, pixels, torch.where(accepted[:, None], after, before))
        state = state._replace(
            value=torch.where(accepted, value, state.value), wrong=torch.where(accepted, wrong, state.wrong)
        )
        query = self._next(state, plan, number, accepted) if self._skips(plan) else state.query + 1
        state = state._replace(query=query.clamp(max=self.queries + 1))
        # After a claim that was not confirmed the search goes on from its point, and only a worse one is claimed again.
        return state, Found(state.best.clone(), accepted & wrong, state.query > self.queries)

    def _next(self, state: LinfState, plan: "_Plan", number: Tensor, accepted: Tensor) -> Tensor:
        """Choose the next query of the script that might be accepted."""
        state.unknown.sub_((~state.known.gather(1, number)).squeeze(1).long())
        state.known.scatter_(1, number, True)  # after an acceptance all of it is forgotten below
        # A slot whose size is new has a table of the size before, which says nothing.
        exhausted = (state.unknown <= 0) & (plan.size[state.query] == state.known_size) & ~accepted
        query = torch.where(exhausted, plan.end[state.query], state.query + 1).clamp(max=self.queries + 1)
        size = plan.size[query]
        _renew(state, plan, accepted | (size != state.known_size), size)
        ahead = (query[:, None] + plan.ahead).clamp(max=self.queries + 1)
        entries = state.script.gather(1, ahead).long()
        closed = state.known.gather(1, entries)
        closed[:, -1] = False  # look no further
        return torch.minimum(query + closed.to(torch.uint8).argmin(1), plan.end[query])

    def _script(self, jobs: Jobs, plan: "_Plan", corner: Tensor) -> Tensor:
        """Number each query: the place of its window, row by row, and the highest bit for the last channel.

        The start is told as a window that changes nothing: the first pixel, with the signs ``corner`` it has already.
        """
        channels, height, width = jobs.x.shape[1:]
        drawn = draws(jobs, (2 + channels, self.queries), self.seed, "script")
        rows, columns = (places(plan.size[1:-1], length) for length in (height, width))
        place = (drawn[:, 0] * rows).long() * columns + (drawn[:, 1] * columns).long()
        bits = torch.arange(channels, device=place.device)
        signs = ((drawn[:, 2:] >= 0.5).long() << bits[:, None]).sum(1)
        start = (corner.long() << bits).sum(1, keepdim=True)
        numbers = torch.cat([start, (place << channels) + signs, torch.zeros_like(start)], 1)
        return numbers.to(torch.int16 if plan.proposals <= 2**15 else torch.int32)

    def _plan(self, images: Tensor) -> "_Plan":
        return _plan(self.queries, tuple(images.shape[1:]), images.device)

    def _skips(self, plan: "_Plan") -> bool:
        return self.skip_known and plan.proposals <= _LARGEST_TABLE


class _Plan(NamedTuple):
    """What is the same for all images of a shape. Of each query, ``(queries + 2,)``, its size, columns, and end."""

    size: Tensor  # of the window; that of the start, and of what comes after the end, is 1
    columns: Tensor  # places of the window in a row
    end: Tensor  # the first query of another size
    sizes: Tensor  # that occur, ascending
    corners: Tensor  # (sizes, 4, places): of a window its corners in an integral image
    beyond: Tensor  # (sizes, places): the size has no such place
    proposals: int  # of the size that has the most
    ahead: Tensor
    largest: int


@lru_cache(maxsize=8)
def _plan(queries: int, shape: tuple[int, ...], device: torch.device) -> _Plan:
    channels, height, width = shape
    listed = [1, *window_sizes(queries, height, width), 1]
    ends = list(range(1, queries + 3))
    for query in reversed(range(1, queries)):
        if listed[query] == listed[query + 1]:
            ends[query] = ends[query + 1]
    size, sizes = torch.tensor(listed), torch.tensor(sorted(set(listed)))
    rows, columns = places(sizes, height)[:, None], places(sizes, width)[:, None]
    place = torch.arange(int((rows * columns).max()))
    beyond = place >= rows * columns
    top, left = (part.masked_fill(beyond, 0) for part in (place // columns, place % columns))
    bottom, right = top + sizes[:, None], left + sizes[:, None]
    corners = torch.stack([row * (width + 1) + column for row in (top, bottom) for column in (left, right)], 1)
    return _Plan(
        size=size.to(device),
        columns=places(size, width).to(device),
        end=torch.tensor(ends, device=device),
        sizes=sizes.to(device),
        corners=corners.to(device),
        beyond=beyond.to(device),
        proposals=len(place) << channels,
        ahead=torch.arange(_LOOK_AHEAD, device=device),
        largest=max(listed),
    )


def _window(images: Tensor, plan: _Plan, query: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Give the pixels that a proposal sets ``(b, m)``, as places in an image and in ``ends``.

    Smaller windows than the largest name their last row and column again and again.
    """
    channels, height, width = images.shape[1:]
    size, columns, place = plan.size[query, None], plan.columns[query, None], number >> channels
    # On another device than the CPU to ask for the largest now would wait for the device.
    largest = int(size.max()) if images.device.type == "cpu" else plan.largest
    side = torch.minimum(torch.arange(largest, device=images.device), size - 1)
    rows, cols = (place // columns + side) * width, place % columns + side
    plane = (rows[:, :, None] + cols[:, None, :]).flatten(1)
    channel = torch.arange(channels, device=images.device)
    shift = channel * (height * width)
    high = (number >> channel & 1) * (channels * height * width) + shift
    return (plane[:, None] + shift[:, None]).flatten(1), (plane[:, None] + high[:, :, None]).flatten(1)


def _renew(state: LinfState, plan: _Plan, which: Tensor, size: Tensor) -> None:
    """Forget what was refused in slots ``which`` ``(b,)``: there only the proposals that change nothing are known."""
    if state.best.device.type == "cpu":
        rows = which.nonzero().flatten()
        if not len(rows):
            return
    else:  # to look which they are would wait for the device
        rows = torch.arange(len(which), device=which.device)
    fresh, size = which[rows], size[rows]
    idle = _idle(state.best[rows] == state.ends[rows, 1], plan, size)
    state.known[rows] = torch.where(fresh[:, None], idle, state.known[rows])
    state.unknown[rows] = torch.where(fresh, (~idle).sum(1), state.unknown[rows])
    state.known_size[rows] = torch.where(fresh, size, state.known_size[rows])


def _idle(high: Tensor, plan: _Plan, size: Tensor) -> Tensor:
    """Tell of each proposal ``(r, proposals)`` of a ``size`` ``(r,)`` whether it changes no pixel, or does not exist.

    ``high`` ``(r, c, h, w)`` are the pixels at their upper end.
    """
    which = torch.searchsorted(plan.sizes, size)
    integral = F.pad(high.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32), (1, 0, 1, 0)).flatten(2)
    corners = plan.corners[which].flatten(1)[:, None].expand(-1, high.shape[1], -1)
    a, b, c, d = integral.gather(2, corners).chunk(4, 2)
    count = a - b - c + d
    idle = plan.beyond[which][:, :, None].logical_not()
    for channel in range(high.shape[1]):
        same = torch.stack([count[:, channel] == 0, count[:, channel] == (size**2)[:, None]], -1)
        idle = (same[:, :, :, None] & idle[:, :, None, :]).flatten(2)  # the bit of this channel is the highest so far
    return (idle | plan.beyond[which][:, :, None]).flatten(1)
