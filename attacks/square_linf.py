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
from attacks.oracle import Oracle
from attacks.screen import judged
from attacks.square_script import draws, places, window_sizes
from attacks.threat import ThreatModel

_LOOK_AHEAD = 32  # proposals of the script among which a slot looks for one whose outcome is not known
_PATIENCE = 4  # steps that a slot's table of what is known may wait until more are due
_NONE = -1  # no size: the table is out of date
_LARGEST_TABLE = 2**16  # proposals of one size; where there are more, 5,000 queries hardly meet one twice


class LinfState(NamedTuple):
    """Slots of Square Attack in Linf, one row each. A step works on the images in place."""

    y: Tensor
    best: Tensor
    ends: Tensor  # (b, 2, c, h, w): the least and the largest pixels that ball and range allow
    value: Tensor  # of the best point, how far the network is from right
    rough: Tensor  # the same, in the precision of the search
    wrong: Tensor  # the best point is misclassified
    query: Tensor  # of the script, evaluated next: 0 is the start, and one above the last means that nothing is left
    script: Tensor  # (b, queries + 2 and some): of each query the window's first pixel and its signs, as one number
    known: Tensor  # (b, proposals): those that would be refused, of the size whose place among all is known_size
    known_size: Tensor
    unknown: Tensor  # how many proposals of that size are not known
    waiting: Tensor  # for how many steps the table has been out of date


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
            rough=torch.full_like(x[:, 0, 0, 0], -torch.inf),
            wrong=torch.zeros_like(jobs.y, dtype=torch.bool),
            query=torch.zeros_like(jobs.y),
            script=self._script(jobs, plan, stripes[:, :, 0, 0]),
            known=torch.zeros((len(x), proposals), dtype=torch.bool, device=x.device),
            known_size=torch.full_like(jobs.y, _NONE),
            unknown=torch.zeros_like(jobs.y),
            waiting=torch.zeros_like(jobs.y),
        )

    def step(self, state: LinfState, oracle: Oracle) -> tuple[LinfState, Found]:
        """Evaluate each slot's proposal, keep it if the margin fell, and choose the next."""
        plan = self._plan(state.best)
        size = plan.queries[state.query, 0]
        number = state.script.gather(1, state.query[:, None]).long()
        pixels, signed = _window(state.best, plan, size, number)
        best = state.best.flatten(1)
        before, after = best.gather(1, pixels), state.ends.flatten(1).gather(1, signed)
        best.scatter_(1, pixels, after)
        value, wrong, rough = judged(oracle, state.best, state.y, state.rough)
        accepted = ((value > state.value) | (wrong & ~state.wrong)) & (state.query <= self.queries)
        best.scatter_(1, pixels, torch.where(accepted[:, None], after, before))
        state = state._replace(
            value=torch.where(accepted, value, state.value),
            rough=torch.where(accepted, rough, state.rough),
            wrong=torch.where(accepted, wrong, state.wrong),
        )
        query = state.query + 1
        if self._skips(plan):
            query = self._next_open(state, plan, number, accepted)
        state = state._replace(query=query.clamp(max=self.queries + 1))
        # After a claim that was not confirmed the search goes on from its point, and only a worse one is claimed again.
        return state, Found(state.best.clone(), accepted & wrong, state.query > self.queries)

    def _next_open(self, state: LinfState, plan: "_Plan", number: Tensor, accepted: Tensor) -> Tensor:
        """Choose the next query of the script that might be accepted, as far as one looks ahead."""
        state.unknown.sub_(state.known.gather(1, number).logical_not_().squeeze(1).long())
        state.known.scatter_(1, number, True)  # of a table that is out of date nothing is kept
        state.known_size.masked_fill_(accepted, _NONE)
        size, end = plan.queries[state.query].unbind(1)
        exhausted = (state.unknown <= 0) & (size == state.known_size)
        query = torch.where(exhausted, end, state.query + 1).clamp(max=self.queries + 1)
        size, end = plan.queries[query].unbind(1)
        old = size != state.known_size
        state.waiting.add_(1).mul_(old)
        _renew(state, plan, old, size)
        closed = state.known.gather(1, state.script.gather(1, query[:, None] + plan.ahead).long())
        closed &= (size == state.known_size)[:, None]
        closed[:, -1] = False  # look no further
        return torch.minimum(query + closed.to(torch.uint8).argmin(1), end)

    def _script(self, jobs: Jobs, plan: "_Plan", corner: Tensor) -> Tensor:
        """Number each query: first pixel of the window, times two for each channel, plus the channels' signs as bits.

        The start is told as a window that changes nothing: one pixel, with the signs ``corner`` that it has already.
        """
        channels, height, width = jobs.x.shape[1:]
        drawn = draws(jobs, (2 + channels, self.queries), self.seed, "script")
        sizes = plan.sizes[plan.queries[1:-1, 0]]
        rows, columns = ((drawn[:, side] * places(sizes, (height, width)[side])).long() for side in (0, 1))
        signs = ((drawn[:, 2:] >= 0.5).long() << plan.bits[:, None]).sum(1)
        start = (corner.long() << plan.bits).sum(1, keepdim=True)
        numbers = torch.cat([start, ((rows * width + columns) << channels) + signs], 1)
        compact = numbers.to(torch.int16 if plan.proposals <= 2**15 else torch.int32)
        return F.pad(compact, (0, 1 + _LOOK_AHEAD))

    def _plan(self, images: Tensor) -> "_Plan":
        return _plan(self.queries, tuple(images.shape[1:]), images.device)

    def _skips(self, plan: "_Plan") -> bool:
        return self.skip_known and plan.proposals <= _LARGEST_TABLE


class _Plan(NamedTuple):
    """What is the same for all images of a shape."""

    queries: Tensor  # (queries + 2, 2): of each query the place of its size in ``sizes``, and the next of another size
    sizes: Tensor  # that occur, ascending; 1, that of the start and of what comes after the end, is among them
    sides: list[int]  # the same
    offsets: Tensor  # (sizes, m): the pixels of a window from its first; smaller windows repeat their last pixel
    corners: Tensor  # (sizes, 4 h w): of a window at each first pixel its corners in an integral image
    beyond: Tensor  # (sizes, h w): no window of the size begins there
    full: Tensor  # (sizes, 2): pixels at their upper end in a window that is all low, or all high
    proposals: int  # numbers that a query may have
    bits: Tensor
    ahead: Tensor


@lru_cache(maxsize=8)
def _plan(queries: int, shape: tuple[int, ...], device: torch.device) -> _Plan:
    channels, height, width = shape
    listed = [1, *window_sizes(queries, height, width), 1]
    ends = list(range(1, queries + 3))
    for query in reversed(range(1, queries)):
        if listed[query] == listed[query + 1]:
            ends[query] = ends[query + 1]
    sides = sorted(set(listed))
    sizes, pixel = torch.tensor(sides), torch.arange(height * width)
    row, column = pixel // width, pixel % width
    beyond = (row >= places(sizes, height)[:, None]) | (column >= places(sizes, width)[:, None])
    above = row * (width + 1) + column
    corners = [above + down * (width + 1) + right for down in (0, sizes[:, None]) for right in (0, sizes[:, None])]
    within = [pixel.view(height, width)[:side, :side].flatten() for side in sides]
    return _Plan(
        queries=torch.tensor([[sides.index(size), end] for size, end in zip(listed, ends, strict=True)], device=device),
        sizes=sizes.to(device),
        sides=sides,
        offsets=torch.stack([F.pad(one, (0, sides[-1] ** 2 - len(one)), value=int(one[-1])) for one in within]).to(
            device
        ),
        corners=torch.stack([part.expand(len(sides), -1).masked_fill(beyond, 0) for part in corners], 1)
        .flatten(1)
        .to(device),
        beyond=beyond.to(device),
        full=torch.stack([0 * sizes, sizes**2], 1).to(device),
        proposals=height * width << channels,
        bits=torch.arange(channels, device=device),
        ahead=torch.arange(_LOOK_AHEAD, device=device),
    )


def _window(images: Tensor, plan: _Plan, size: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Give the pixels that proposals set ``(b, m)``, as places in an image and in ``ends``."""
    channels, plane = images.shape[1], images.shape[2] * images.shape[3]
    # On another device than the CPU to ask for the largest now would wait for the device.
    largest = plan.sides[int(size.max()) if images.device.type == "cpu" else -1]
    pixels = (number >> channels) + plan.offsets[size, : largest**2]
    pixels = pixels[:, None] + plan.bits[:, None] * plane
    high = (number >> plan.bits & 1) * (channels * plane)
    return pixels.flatten(1), (pixels + high[:, :, None]).flatten(1)


def _renew(state: LinfState, plan: _Plan, old: Tensor, size: Tensor) -> None:
    """Bring the tables that are ``old`` ``(b,)`` up to date: only the proposals that change nothing are known.

    Several at once cost little more than one, and a table that is out of date costs questions, but no verdict.
    """
    if state.best.device.type != "cpu":  # to look which they are would wait for the device
        idle = _idle(state.best == state.ends[:, 1], plan, size)
        state.known.copy_(torch.where(old[:, None], idle, state.known))
        state.unknown.copy_(torch.where(old, idle.logical_not().sum(1), state.unknown))
        state.known_size.copy_(size)
    elif int(state.waiting.max()) >= _PATIENCE:
        rows = old.nonzero().flatten()
        size = size[rows]
        idle = _idle(state.best[rows] == state.ends[rows, 1], plan, size)
        state.known.index_copy_(0, rows, idle)
        state.unknown.index_copy_(0, rows, idle.logical_not().sum(1))
        state.known_size.index_copy_(0, rows, size)


def _idle(high: Tensor, plan: _Plan, size: Tensor) -> Tensor:
    """Tell of each proposal ``(r, proposals)`` of a ``size`` ``(r,)`` whether it changes no pixel, or does not exist.

    ``high`` ``(r, c, h, w)`` are the pixels at their upper end.
    """
    integral = F.pad(high.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32), (1, 0, 1, 0)).flatten(2)
    corners = integral.gather(2, plan.corners[size][:, None].expand(-1, high.shape[1], -1))
    a, b, c, d = corners.chunk(4, 2)
    same = (a - b - c + d)[:, :, :, None] == plan.full[size][:, None, None]
    idle = same[:, 0]
    for channel in range(1, high.shape[1]):
        idle = (same[:, channel, :, :, None] & idle[:, :, None, :]).flatten(2)  # its bit is the highest so far
    return (idle | plan.beyond[size][:, :, None]).flatten(1)
