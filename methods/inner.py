"""The inner maximisation as a value: how many steps, how long, from where, in which mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.modes import Mode, full_precision, in_mode
from attacks.objectives import Objective
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.threat import ThreatModel, l2_length
from methods.draws import Draws

Start = Literal["none", "uniform", "gaussian", "sphere", "ball"]
Centre = Literal["image", "start"]


@dataclass(frozen=True)
class Inner:
    """Settings of projected gradient ascent during training.

    Args:
        steps: gradient steps, 0 or more.
        step_size: in pixel units (``8/255``) or relative (``epsilon/4``), so that it follows a ramp or another preset.
        start: added to the image, all scaled by ``scale``: ``uniform`` per pixel in [-1, 1], ``gaussian`` per pixel,
            ``sphere`` a Gaussian direction of L2 length one, ``ball`` the same of a length drawn from [0, 1].
        scale: in pixel units or relative.
        boxed: whether the start is clipped to the pixel range before the first gradient.
        mode: of the network while it is attacked; a part of the method's definition. ``batch`` is train mode without
            a trace in BatchNorm's running statistics.
        keep: the last iterate, or per image the one with the highest objective.
        scored: run one forward more on the result, as the code of Rice et al. does to score a restart; in train mode it
            moves BatchNorm's statistics.
        patience: freeze an image once it was misclassified before this many steps; None never does.
        full_precision: switch mixed precision off during the attack.
    """

    steps: int = 10
    step_size: str | float = "epsilon/4"
    start: Start = "uniform"
    scale: str | float = "epsilon"
    boxed: bool = True
    mode: Mode = "eval"
    keep: Literal["last", "best"] = "last"
    scored: bool = False
    patience: int | None = None
    full_precision: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise BadInput(f"inner.steps is 0 or more, but found {self.steps}")
        for name, choices in (("start", get_args(Start)), ("mode", get_args(Mode)), ("keep", ("last", "best"))):
            if getattr(self, name) not in choices:
                raise BadInput(f"inner.{name} is one of {', '.join(choices)}, but found {getattr(self, name)!r}")
        Pixels.read(self.step_size, "inner.step_size")
        Pixels.read(self.scale, "inner.scale")

    def begin(self, x: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """Draw the first iterate for images ``x`` ``(n, c, h, w)``."""
        length = Pixels.read(self.scale).at(threat.epsilon)
        if self.start == "none":
            return x
        if self.start == "uniform":
            noise = length * draws.uniform(x)
        elif self.start == "gaussian":
            noise = length * draws.normal(x)
        else:
            direction = draws.normal(x)
            noise = length * direction / l2_length(direction)
            if self.start == "ball":
                noise = noise * (draws.uniform(x, shape=(len(x), 1, 1, 1)) + 1) / 2
        return clip(x + noise, threat.low, threat.high) if self.boxed else x + noise

    def maximise(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Objective,
        threat: ThreatModel,
        draws: Draws,
        *,
        centre: Centre = "image",
    ) -> Tensor:
        """Attack images ``x`` ``(n, c, h, w)``; the network comes back in the mode it was in.

        ``y`` ``(n,)`` is looked at only for ``patience``. The ball is around the image; around the ``start`` in codes
        that add their noise in place, by mistake, so that images move by up to twice the radius.
        """
        start = self.begin(x, threat, draws)
        return self.climb(network, start if centre == "start" else x, y, objective, threat, start=start)

    def climb(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Objective,
        threat: ThreatModel,
        *,
        start: Tensor,
        radius: Tensor | None = None,
        step_size: Tensor | None = None,
        stationary: Callable[[Tensor, Tensor], Tensor] | None = None,
        jitter: Callable[[Tensor], Tensor] | None = None,
        move: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Attack as :meth:`maximise` does, from a ``start`` and with a ``jitter`` that the method drew itself.

        ``radius`` and ``step_size`` ``(n,)`` give each image its own, in pixel units; ``stationary`` and ``move`` are
        those of :func:`attacks.pgd.pgd`.
        """
        with self.conditions(network, x):
            attacked = pgd(
                network,
                x,
                objective,
                threat,
                start=start,
                steps=self.steps,
                step_size=Pixels.read(self.step_size).at(threat.epsilon) if step_size is None else step_size,
                radius=radius,
                keep=self.keep,
                until=None if self.patience is None else lambda logits: logits.argmax(1) != y,
                patience=1 if self.patience is None else self.patience,
                stationary=stationary,
                jitter=jitter,
                move=move,
            )
            attacked = attacked.clamp(threat.low, threat.high)  # a start outside is an iterate too
            if self.scored:
                with torch.no_grad():
                    network(attacked)
        return attacked

    @contextmanager
    def conditions(self, network: nn.Module, x: Tensor) -> Iterator[None]:
        """Put ``network`` into the attack's mode and precision for what happens inside the block."""
        full = full_precision(x) if self.full_precision else nullcontext()
        with in_mode(network, self.mode), full:
            yield


def check_centre(centre: str) -> None:
    """Accept a setting ``centre``; raises :class:`BadInput` for anything but the two."""
    if centre not in get_args(Centre):
        raise BadInput(f"centre is one of {', '.join(get_args(Centre))}, but found {centre!r}")


def one_step(
    attack_mode: Mode = "eval",
    *,
    step_size: str | float = "epsilon",
    start: Literal["none", "uniform"] = "none",
    boxed: bool = True,
) -> Inner:
    """Give the attack of methods that are one step by definition, whose setting ``attack_mode`` is the network's mode.

    By default it is FGSM: as long as epsilon, from the image itself.
    """
    if attack_mode not in get_args(Mode):
        raise BadInput(f"attack_mode is one of {', '.join(get_args(Mode))}, but found {attack_mode!r}")
    return Inner(steps=1, step_size=step_size, start=start, boxed=boxed, mode=attack_mode)
