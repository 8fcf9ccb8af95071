"""A network being probed: its images, and gradient attacks that several checks share and that run once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.objectives import Objective, cross_entropy_with, margin_with
from attacks.pgd import pgd
from attacks.randomness import uniform
from attacks.threat import ThreatModel
from benchmark.credibility.record import Setting

Loss = Literal["cross-entropy", "margin"]


@dataclass(frozen=True)
class Climb:
    """One gradient attack.

    Args:
        step: in units of the radius.
        scale: what the logits are multiplied by before the loss sees them.
        start: number of the random start that keys its draws; None for the image itself.
        whole_range: whether a picture may become any other, whatever the threat.
    """

    steps: int = 20
    step: float = 0.25
    loss: Loss = "cross-entropy"
    scale: float = 1.0
    start: int | None = 0
    whole_range: bool = False


PGD20 = Climb()
MARGIN20 = Climb(loss="margin")


@dataclass(frozen=True, eq=False)
class Probed:
    """A network in eval mode on some test images.

    Args:
        network: images to logits ``(n, k)``.
        x, y, index: images ``(n, c, h, w)`` in the threat's range, labels ``(n,)``, sample indices ``(n,)``.
        dataset: its name, to which thresholds belong.
        thorough: whether checks that have a longer form take it.
        batch_size: images at once.
        attacks: what the evaluation runs, by the names of ``benchmark.evaluation.ATTACKS``.
        seed: of all draws.
    """

    network: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    threat: ThreatModel
    dataset: str
    thorough: bool = False
    batch_size: int = 200
    attacks: tuple[str, ...] = ()
    seed: int = 0
    _ends: dict[Climb, Tensor] = field(default_factory=dict)

    @property
    def setting(self) -> Setting:
        """What thresholds have to be set for."""
        return Setting(self.dataset, self.threat.norm, self.threat.epsilon)

    @property
    def unbounded(self) -> ThreatModel:
        """The whole pixel range as a ball; in Linf, because steps along few pixels at a time do not get far in it."""
        return ThreatModel("linf", self.threat.high - self.threat.low, self.threat.low, self.threat.high)

    @torch.no_grad()
    def logits_of(self, x: Tensor) -> Tensor:
        """Run the network on images ``(m, c, h, w)``; ``(m, k)``, without a graph."""
        return torch.cat([self.network(part) for part in x.split(self.batch_size)])

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the clean images, ``(n, k)``."""
        return self.logits_of(self.x)

    @cached_property
    def right(self) -> Tensor:
        """Which clean images the network gets right, ``(n,)``."""
        return self.logits.argmax(1) == self.y

    @cached_property
    def constant(self) -> bool:
        """Whether the network answers every image tried, noise included, with the same logits."""
        every = torch.cat([self.logits, self.logits_of(self.noise("constant", of_range=True))])
        return bool((every - every[0]).abs().max() <= 1e-6 * every.abs().max())

    @cached_property
    def one_class(self) -> bool:
        """Whether every image tried, noise included, gets the same class."""
        every = torch.cat([self.logits, self.logits_of(self.noise("constant", of_range=True))]).argmax(1)
        return bool((every == every[0]).all())

    def noise(self, *names: str | int, rows: Tensor | slice = slice(None), of_range: bool = False) -> Tensor:
        """Draw, by key, uniform noise like the images, or those of ``rows``: in [-1, 1), or over the pixel range."""
        drawn = uniform(self.x[rows], self.index[rows].tolist(), self.seed, "credibility", *names)
        return self.threat.low + (drawn + 1) / 2 * (self.threat.high - self.threat.low) if of_range else drawn

    def started(self, start: int | None, threat: ThreatModel) -> Tensor:
        """Give the first iterate of an attack: the images, or a random point of the ball around each."""
        if start is None:
            return self.x
        return threat.project(self.x + threat.epsilon * self.noise("start", start), self.x)

    def attacked(self, climb: Climb) -> Tensor:
        """Give the last iterate of an attack; a shorter one that has run is gone on with, which changes nothing."""
        if climb not in self._ends:
            shorter = [
                done for done in self._ends if done.steps < climb.steps and done == replace(climb, steps=done.steps)
            ]
            known = max(shorter, key=lambda done: done.steps, default=None)
            threat = self.unbounded if climb.whole_range else self.threat
            start = self.started(climb.start, threat) if known is None else self._ends[known]
            steps = climb.steps if known is None else climb.steps - known.steps
            self._ends[climb] = torch.cat(
                [
                    pgd(
                        self.network,
                        self.x[rows],
                        _objective(climb, self.y[rows]),
                        threat,
                        start=start[rows],
                        steps=steps,
                        step_size=climb.step * threat.epsilon,
                    )
                    for rows in torch.arange(len(self.x), device=self.x.device).split(self.batch_size)
                ]
            )
        return self._ends[climb]

    def holds(self, *climbs: Climb) -> Tensor:
        """Tell which images are right when clean and under each of the attacks, ``(n,)``."""
        held = self.right
        for climb in climbs:
            held = held & (self.logits_of(self.attacked(climb)).argmax(1) == self.y)
        return held

    def accuracy(self, *climbs: Climb) -> float:
        """Give the share of images that hold under all of the attacks."""
        return self.holds(*climbs).float().mean().item()

    @property
    def white_box(self) -> tuple[Climb, ...]:
        """The gradient attacks that those without gradients are compared with."""
        longer = (replace(PGD20, steps=100), replace(MARGIN20, steps=100)) if self.thorough else ()
        return (PGD20, MARGIN20, *longer)


def _objective(climb: Climb, y: Tensor) -> Objective:
    plain: Callable[[Tensor], Objective] = cross_entropy_with if climb.loss == "cross-entropy" else margin_with
    climbed = plain(y)
    return climbed if climb.scale == 1 else lambda logits: climbed(climb.scale * logits)
