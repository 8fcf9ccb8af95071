r"""Square Attack in L2 and L1: mass, the size of the change in its norm, is moved from one window to another.

It starts with tiles of a fixed pattern, half of it brighter and half darker. A proposal takes what was spent in two
windows and what has not been spent yet, and spends it all in the first of them, on a mixture of the pattern with what
was there; it is kept if the margin falls. Source: L2: Andriushchenko et al., ECCV 2020, arXiv:1912.00049, algorithm 3;
L1: Croce and Hein, ICML 2021, arXiv:2103.01208, appendix.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.engine import Found, Jobs
from attacks.l1_ball import correction, project
from attacks.oracle import Oracle
from attacks.screen import judged
from attacks.square_script import draws, places, window_sizes
from attacks.threat import ThreatModel, per_image

_TILES = 5  # along a side, in the start
_TINY = 1e-12  # keeps the authors' divisions finite


class MassState(NamedTuple):
    """Slots of Square Attack in L2 or L1, one row each."""

    y: Tensor
    x: Tensor
    point: Tensor  # is evaluated next
    best: Tensor
    value: Tensor  # of the best point, how far the network is from right
    rough: Tensor  # the same, in the precision of the search
    wrong: Tensor  # the best point is misclassified
    query: Tensor  # of the script, whose proposal is the point; 0 is the start
    script: Tensor  # (b, queries + 1, 3): the first pixels of both windows, and the signs and the direction as bits


@dataclass(frozen=True)
class SquareMass:
    """Square Attack within an L2 or L1 ``threat``; for its settings see :class:`attacks.square.Square`."""

    threat: ThreatModel
    seed: int
    queries: int = 5000

    def begin(self, jobs: Jobs) -> MassState:
        """Start with tiles, and draw the whole script."""
        start = self._within(self._tiles(jobs), jobs.x)
        if self.threat.norm == "l1":  # tiles weigh so much more than a small radius that rounding may leave the ball
            start = project(start, jobs.x, self.threat)
        return MassState(
            y=jobs.y.clone(),
            x=jobs.x.contiguous(),
            point=start,
            best=start.clone(),
            value=torch.full_like(jobs.x[:, 0, 0, 0], -torch.inf),
            rough=torch.full_like(jobs.x[:, 0, 0, 0], -torch.inf),
            wrong=torch.zeros_like(jobs.y, dtype=torch.bool),
            query=torch.zeros_like(jobs.y),
            script=self._script(jobs),
        )

    def step(self, state: MassState, oracle: Oracle) -> tuple[MassState, Found]:
        """Evaluate each slot's point, keep it if the margin fell, and propose the next."""
        value, wrong, rough = judged(oracle, state.point, state.y, state.rough)
        accepted = (value > state.value) | (wrong & ~state.wrong)
        found = Found(state.point, accepted & wrong, state.query >= self.queries)
        best = torch.where(accepted[:, None, None, None], state.point, state.best)
        query = (state.query + 1).clamp(max=self.queries)
        return state._replace(
            point=self._proposal(state.x, best, query, state.script),
            best=best,
            value=torch.where(accepted, value, state.value),
            rough=torch.where(accepted, rough, state.rough),
            wrong=torch.where(accepted, wrong, state.wrong),
            query=query,
        ), found

    def _proposal(self, x: Tensor, best: Tensor, query: Tensor, script: Tensor) -> Tensor:
        """Move the mass in two windows of ``best``, and what is left to spend, into the first."""
        plan = self._plan(x)
        channels, _, width = x.shape[1:]
        size = plan.size_of[query]
        first, second, bits = script.gather(1, query[:, None, None].expand(-1, 1, 3)).long().unbind(2)
        # On another device than the CPU to ask for the largest now would wait for the device.
        area = plan.areas[int(size.max()) if x.device.type == "cpu" else -1]
        offsets, real = plan.offsets[size, :area], plan.real[size, None, :area]
        here, there = first + offsets, second + offsets
        side = plan.sides[size, None]
        down, right = there // width - first // width, there % width - first % width
        outside = (down < 0) | (down >= side) | (right < 0) | (right >= side)
        here, there = (part[:, None].expand(-1, channels, -1) for part in (here, there))

        delta = (best - x).flatten(2)
        old = delta.gather(2, here)
        spent_here = self._mass(old * real)
        spent = spent_here + self._mass(delta.gather(2, there) * (real * outside[:, None]))
        left = (self.threat.epsilon**self._power - self._mass(delta.flatten(1))[:, None]).clamp(min=0)
        signs = 2 * ((bits >> (1 + plan.channels)) & 1) - 1
        pattern = plan.patterns[size, bits.squeeze(1) & 1, :area]
        mixed = pattern[:, None] * signs[:, :, None] + old / (_TINY + self._length(spent_here))
        given = self._length(left / channels + spent) * (1 if self.threat.norm == "l2" else channels)
        mixed = mixed / (_TINY + self._length(self._mass(mixed * real))) * given
        delta.scatter_(2, there, 0.0).scatter_(2, here, mixed)
        return self._within(delta.view_as(x), x)

    def _within(self, delta: Tensor, x: Tensor) -> Tensor:
        """Spend all that ball and range allow along ``delta`` (L2), or project onto both (L1)."""
        threat = self.threat
        if threat.norm == "l1":
            radius = torch.full_like(x[:, 0, 0, 0], threat.epsilon * (1 - 1e-6))  # the authors'
            return (x + delta + correction(x, delta, radius, threat)).clamp(threat.low, threat.high)
        length = per_image(torch.linalg.vector_norm(delta.flatten(1), dim=1), x)
        return (x + delta * (threat.epsilon / (length + _TINY))).clamp(threat.low, threat.high)

    @property
    def _power(self) -> int:
        return 2 if self.threat.norm == "l2" else 1

    def _mass(self, part: Tensor) -> Tensor:
        """Sum the squares, or the absolute values, over the last dimension, which is kept."""
        return (part.square() if self._power == 2 else part.abs()).sum(-1, keepdim=True)

    def _length(self, mass: Tensor) -> Tensor:
        return mass.sqrt() if self._power == 2 else mass

    def _tiles(self, jobs: Jobs) -> Tensor:
        """Cover the images with tiles, each with a direction, and a sign in each channel, of its own.

        Tiles that reach over the border are cut off; the authors' code stops with an error on images that have such.
        """
        channels, height, width = jobs.x.shape[1:]
        side = max(height // _TILES, 1)
        shape = height // side, width // side
        margin_ = max((height - side * _TILES) // 2, 0)
        drawn = draws(jobs, (1 + channels, *shape), self.seed, "start")
        upright = _pattern(side, self._power).to(jobs.x)
        turned = (drawn[:, :1] > 0.5)[..., None, None]
        signs = torch.where(drawn[:, 1:] >= 0.5, 1, -1)[..., None, None]
        tiles = torch.where(turned, upright.T, upright) * signs  # (n, c, rows, columns, side, side)
        image = tiles.transpose(3, 4).reshape(len(drawn), channels, shape[0] * side, shape[1] * side)
        padded = F.pad(image, (margin_, width, margin_, height))
        return padded[:, :, :height, :width].contiguous()

    def _script(self, jobs: Jobs) -> Tensor:
        channels, height, width = jobs.x.shape[1:]
        plan = self._plan(jobs.x)
        drawn = draws(jobs, (5 + channels, self.queries), self.seed, "script")
        sides = plan.sides[plan.size_of[1:]]
        top, left = places(sides, height), places(sides, width)
        windows = [(drawn[:, i] * top).long() * width + (drawn[:, i + 1] * left).long() for i in (0, 2)]
        weights = 2 ** torch.arange(1 + channels, device=drawn.device)
        bits = ((drawn[:, 4:] > 0.5).long() * weights[:, None]).sum(1)
        compact = torch.int16 if height * width < 2**15 and channels < 14 else torch.int32
        return F.pad(torch.stack([*windows, bits], 2), (0, 0, 1, 0)).to(compact)

    def _plan(self, images: Tensor) -> "_Plan":
        return _plan(self.queries, tuple(images.shape[1:]), self._power, images.device, images.dtype)


class _Plan(NamedTuple):
    """What is the same for all images of a shape; ``m`` is the area of the largest window."""

    size_of: Tensor  # (queries + 1,): of each query the place of its size in ``sides``
    sides: Tensor  # that occur, ascending
    areas: list[int]
    offsets: Tensor  # (sizes, m): the pixels of a window from its first; smaller windows repeat their last pixel
    real: Tensor  # (sizes, m): 0 where a pixel is repeated, else 1
    patterns: Tensor  # (sizes, 2, m): upright and turned
    channels: Tensor


@lru_cache(maxsize=8)
def _plan(queries: int, shape: tuple[int, ...], power: int, device: torch.device, dtype: torch.dtype) -> _Plan:
    channels, height, width = shape
    listed = window_sizes(queries, height, width, odd=True) or [1]
    sides = sorted(set(listed))
    areas = [side**2 for side in sides]
    pixel = torch.arange(height * width).view(height, width)

    def rows(of_side: list[Tensor]) -> Tensor:
        """Fill up to the longest with the last value."""
        return torch.stack([torch.cat([one, one[-1:].expand(areas[-1] - len(one))]) for one in of_side]).to(device)

    patterns = [_pattern(side, power) for side in sides]
    return _Plan(
        size_of=torch.tensor([sides.index(size) for size in [listed[0], *listed[:queries]]], device=device),
        sides=torch.tensor(sides, device=device),
        areas=areas,
        offsets=rows([pixel[:side, :side].flatten() for side in sides]),
        real=(torch.arange(areas[-1]) < torch.tensor(areas)[:, None]).to(device, dtype),
        patterns=torch.stack(
            [rows([one.flatten() for one in patterns]), rows([one.T.flatten() for one in patterns])], 1
        ).to(dtype),
        channels=torch.arange(channels, device=device),
    )


def _pattern(side: int, power: int) -> Tensor:
    """Make the pattern of a window ``(side, side)``, of length one: a bright half above a dark one."""
    halves = [_peak(side // 2, side, power), -_peak(side - side // 2, side, power)]
    whole = torch.cat([half / torch.linalg.vector_norm(half, power).clamp(min=_TINY) for half in halves if len(half)])
    return whole / torch.linalg.vector_norm(whole, power)


def _peak(height: int, width: int, power: int) -> Tensor:
    """Pile up squares around the middle ``(height // 2, width // 2)``; the k-th adds 1 / k^2 (L2) or 1 / k^4 (L1)."""
    middle = height // 2, width // 2
    steps = torch.arange(1, max(middle) + 2, dtype=torch.float64) ** (-2.0 if power == 2 else -4.0)
    from_outside = steps.flip(0).cumsum(0).flip(0)  # a pixel at distance d lies in all squares but the first d
    down, right = ((torch.arange(size) - at).abs() for size, at in zip((height, width), middle, strict=True))
    return from_outside[torch.maximum(down[:, None], right)]
