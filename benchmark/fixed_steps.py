"""Attacks of a fixed number of steps: PGD-20 and its kin of the protocol, and the attack of a row of Table 1."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attacks.objectives import Objective, cross_entropy_with, margin_with, towards
from attacks.passes import Passes, counting
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.randomness import uniform
from attacks.threat import ThreatModel
from benchmark.evaluation_settings import Evaluation
from benchmark.row_attack import RowAttack

Tell = Callable[[str, int, int], None]


class Attacked(NamedTuple):
    """What an attack made of a batch: images, and per image the part that fooled it and the passes it cost."""

    adversarial: Tensor
    by: list[str]
    forward: Tensor
    backward: Tensor
    log: list[str]


@dataclass(frozen=True)
class Subject:
    """What is attacked, within what: a network in eval mode, a norm, and the settings of the protocol.

    ``unfinished`` is the folder in which a long attack keeps what it has so far.
    """

    network: nn.Module
    threat: ThreatModel
    settings: Evaluation
    tell: Tell | None = None
    unfinished: Path | None = None


class Pace(Protocol):
    """How many steps of which length, how often: the protocol's settings, or those of a row."""

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def step_size(self) -> str | float: ...  # noqa: D102

    @property
    def restarts(self) -> int: ...  # noqa: D102


def pgd20(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """PGD on the cross-entropy: 20 steps of epsilon/4 from a uniform start; the LAST iterate counts."""
    return _by_protocol(subject, x, y, index, "pgd20", cross_entropy_with(y))


def pgd20_any(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """PGD-20 of which ANY iterate counts, a stronger attack than the survey's rows used."""
    return _by_protocol(subject, x, y, index, "pgd20_any", cross_entropy_with(y), any_iterate=True)


def cw20(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """PGD-20 on the margin loss of Carlini and Wagner, which does not saturate where the cross-entropy does."""
    return _by_protocol(subject, x, y, index, "cw20", margin_with(y))


def row(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Attack as the method's row of Table 1 did: ``evaluation.row``."""
    how = subject.settings.row
    assert how is not None  # benchmark.evaluation.jobs has checked it
    with counting(subject.network) as passes:
        adversarial = x
        for name, objective in _climbed(how, subject, x, y, index).items():
            attempt = _climb(
                subject,
                x,
                y,
                index,
                name,
                objective,
                how,
                random_start=how.random_start,
                any_iterate=how.iterate == "any",
            )
            adversarial = attempt if adversarial is x else first_success(subject.network, adversarial, attempt, y)
    return with_shared_cost(adversarial, "row", passes)


def with_shared_cost(adversarial: Tensor, name: str, passes: Passes) -> Attacked:
    """Share the passes of a batch equally: fixed-step attacks spend the same on every image."""
    images = len(adversarial)
    forward = torch.full((images,), passes.forward / images)
    backward = torch.full((images,), passes.backward / images)
    return Attacked(adversarial, [name] * images, forward, backward, [])


def _climbed(how: RowAttack, subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> dict[str, Objective]:
    """Give what a row's attack climbs, by the name that keys its draws; two objectives where it is ``both``."""
    label = y
    if how.target == "random":
        draw = uniform(x[:, 0, 0, 0], index.tolist(), subject.settings.seed, "row", "target")
        return _of_losses(how, _another_class(y, draw, _logits(subject.network, x[:1]).shape[1]), aim=True)
    if how.target == "least_likely":
        others = _logits(subject.network, x).scatter(1, y[:, None], torch.inf)
        return _of_losses(how, others.argmin(1), aim=True)
    if how.labels == "predicted":
        label = _logits(subject.network, x).argmax(1)
    return _of_losses(how, label, aim=False)


def _of_losses(how: RowAttack, label: Tensor, *, aim: bool) -> dict[str, Objective]:
    """Climb away from ``label`` ``(n,)``, or ``aim`` at it, in the losses of the row."""
    margins = margin_with(label)
    every: dict[str, Objective] = {
        "ce": towards(label) if aim else cross_entropy_with(label),
        "margin": (lambda logits: -margins(logits)) if aim else margins,
    }
    return {f"row {name}": every[name] for name in every if how.loss in (name, "both")}


def _another_class(y: Tensor, draw: Tensor, classes: int) -> Tensor:
    """Turn draws from [-1, 1) ``(n,)`` into classes other than ``y`` ``(n,)``, each as likely."""
    further = 1 + ((draw + 1) / 2 * (classes - 1)).long().clamp(max=classes - 2)
    return (y + further) % classes


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits


def _by_protocol(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    name: str,
    objective: Objective,
    *,
    any_iterate: bool = False,
) -> Attacked:
    with counting(subject.network) as passes:
        found = _climb(subject, x, y, index, name, objective, subject.settings, any_iterate=any_iterate)
    return with_shared_cost(found, name, passes)


def _climb(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    name: str,
    objective: Objective,
    pace: Pace,
    *,
    random_start: bool = True,
    any_iterate: bool = False,
) -> Tensor:
    """Climb from keyed uniform starts inside ball and range; of several restarts the first success counts."""
    threat, adversarial = subject.threat, x
    for restart in range(pace.restarts):
        start = x
        if random_start:
            noise = threat.epsilon * uniform(x, index.tolist(), subject.settings.seed, name, restart, "start")
            start = threat.project(x + noise, x)
        attempt = pgd(
            subject.network,
            x,
            objective,
            threat,
            start=start,
            steps=pace.steps,
            step_size=Pixels.read(pace.step_size).at(threat.epsilon),
            until=(lambda logits: logits.argmax(1) != y) if any_iterate else None,
            whole_batch=True,
        )
        adversarial = attempt if restart == 0 else first_success(subject.network, adversarial, attempt, y)
    return adversarial


def first_success(network: nn.Module, adversarial: Tensor, attempt: Tensor, y: Tensor) -> Tensor:
    """Keep the images that fool the network already, take the new attempt at the others."""
    holds = _logits(network, adversarial).argmax(1) == y
    return torch.where(holds[:, None, None, None], attempt, adversarial)
