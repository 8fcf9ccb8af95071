"""AutoAttack, composed: which attacks run in which version, each on the survivors of those before it.

Source: Croce and Hein, ICML 2020, arXiv:2003.01690; L1: Croce and Hein, ICML 2021, arXiv:2103.01208; the versions as
the authors' package defines them (github.com/fra31/auto-attack).
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.apgd import APGD, Loss
from attacks.apgd_l1 import APGDL1, ONE_STAGE, STAGES
from attacks.checks import check_images, check_logits
from attacks.engine import Attack, Job, Outcome, run
from attacks.errors import BadInput
from attacks.fab import FAB
from attacks.modes import full_precision, without_parameter_gradients
from attacks.objectives import dlr_with, targeted_dlr_with
from attacks.oracle import Oracle, Precision
from attacks.passes import networks_in
from attacks.prepared import prepared
from attacks.square import Square
from attacks.starts import keyed_start
from attacks.tally import Progress, Tally
from attacks.threat import Norm, ThreatModel

Version = Literal["standard", "plus", "rand", "custom"]
SLOTS = 64  # on CPUs more is not faster: the images of a batch have to fit into the cache


class Step(NamedTuple):
    """One attack of a version: how many restarts or target classes each survivor is given."""

    name: str
    phases: int


_RANDOM_REPEATS = 20  # forward passes a gradient is averaged over in the version for random networks
_VERSIONS: dict[tuple[Version, bool], tuple[Step, ...]] = {  # whether the norm is L1
    ("standard", False): (Step("apgd-ce", 1), Step("apgd-t", 9), Step("fab-t", 9), Step("square", 1)),
    ("standard", True): (Step("apgd-ce", 5), Step("apgd-t", 5), Step("fab-t", 9), Step("square", 1)),
    ("rand", False): (Step("apgd-ce", 1), Step("apgd-dlr", 1)),
}
_CUSTOM = {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9}  # as the package's constructor
NAMES = tuple(_CUSTOM)
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # below them the loss is not defined
_WORK = {"apgd-ce": 250, "apgd-dlr": 250, "apgd-t": 250, "fab": 1500, "fab-t": 350, "square": 5000}  # forwards a phase


def steps(version: Version, norm: Norm, attacks: Sequence[str] | None = None) -> tuple[Step, ...]:
    """List the attacks of a version; ``custom`` takes the names in ``attacks``, with the package's budgets.

    Raises:
        BadInput: for an unknown attack, or attacks that a version other than ``custom`` cannot take.
    """
    if version == "custom":
        unknown = [name for name in attacks or () if name not in _CUSTOM]
        if unknown or not attacks:
            found = repr(unknown[0]) if unknown else "none"
            raise BadInput(f"AutoAttack custom takes attacks of {', '.join(NAMES)}, but found {found}")
        return tuple(Step(name, _CUSTOM[name]) for name in attacks)
    if attacks is not None:
        raise BadInput(f"AutoAttack {version} has its own attacks, but found {', '.join(attacks)}: use version custom")
    if version == "plus":
        return tuple(Step(name, phases) for name, phases in _CUSTOM.items())
    known = _VERSIONS.get((version, norm == "l1")) or _VERSIONS.get((version, False))
    if known is None:
        raise BadInput(f"AutoAttack has the versions standard, plus, rand and custom, but found {version!r}")
    return known


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found.

    Attributes:
        adversarial: images ``(n, c, h, w)``, the clean image where nothing was found.
        by: per image the attack that fooled the network: ``clean`` if it erred before, ``""`` if it held.
        survivors: images still classified correctly, keyed ``clean`` and then by attack, in order.
        forward: passes spent on each image ``(n,)``.
        backward: likewise.
        log: remarks on the network: of the package's own log every line, its warnings included.
    """

    adversarial: Tensor
    by: list[str]
    survivors: dict[str, int]
    forward: Tensor
    backward: Tensor
    log: list[str]


def version_of_engine() -> str:
    """Name the engine for tables: the project's version."""
    return f"fast {importlib.metadata.version('atbench')}"


@torch.inference_mode(mode=False)  # as in pgd: in inference mode nothing has a gradient
def autoattack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    index: Tensor | None = None,
    version: Version = "standard",
    attacks: Sequence[str] | None = None,
    slots: int | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
    finished: Mapping[str, Sequence[Outcome]] | None = None,
    keep: Callable[[str, Sequence[Outcome]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> AutoAttackResult:
    """Attack with one attack after the other, each on the images that held so far, on slots (:mod:`attacks.engine`).

    An image is fooled when the network as it was given, in full precision, misclassifies its picture. The caller's
    random state, gradients and parameter flags are as before when it returns.

    Args:
        network: images in the range of ``threat`` to logits ``(n, k)``, in eval mode.
        x: clean images ``(n, c, h, w)``; ``y`` their labels.
        seed: keys all draws, with the sample ``index`` ``(n,)`` (default: 0 to n - 1), the attack and the restart: what
            is found depends on neither slots nor order, but for the last bits of logits.
        version: ``standard``; ``plus``; ``rand``, for networks that answer at random; or ``custom``, with ``attacks``
            of :data:`NAMES`.
        slots: images in a batch, default :data:`SLOTS`, eight times that on a GPU; halved where memory is too small.
        precision: of the search: ``fp32`` is strict; ``tf32`` and ``bf16`` are faster and find nearly the same. Square
            is always in full precision.
        compiled: the network, through ``torch.compile``.
        finished: outcomes of an earlier, interrupted call with the same arguments, by attack; they are not repeated.
        keep: given outcomes as they arrive, every few seconds, for the next call's ``finished``.
        progress: told how it goes, at most twice a second.

    Raises:
        BadInput: for images, labels or a network that :mod:`attacks.checks` refuses, or fewer classes than an attack
            needs: four for apgd-t, three for apgd-dlr.
    """
    check_images(x, y, threat.low, threat.high)
    if any(module.training for module in network.modules()):
        raise BadInput("the network is attacked as it will be used, but found it in train mode: call network.eval()")
    x = x.contiguous().clone()
    y = y.clone()
    plan = steps(version, threat.norm, attacks)
    slots = slots or SLOTS * (1 if x.device.type == "cpu" else 8)
    indices = list(range(len(x))) if index is None else index.tolist()
    with torch.random.fork_rng(devices=[]), full_precision(x), without_parameter_gradients(network):
        with torch.no_grad():
            logits = torch.cat([network(part) for part in x.split(slots)])
        classes = check_logits(logits, x, y)
        _check_classes(plan, classes)
        twin = prepared(network, x[:slots], compiled=compiled)
        repeats = _RANDOM_REPEATS if version == "rand" else 1
        tally = Tally(
            logits.argmax(1) == y, {step.name: _WORK[step.name] * step.phases for step in plan}, progress, keep
        )
        tally.forward += len(networks_in(network))
        for name, phases in plan:
            phases = min(phases, classes - 1) if name in ("apgd-t", "fab-t") else phases
            alive = tally.alive()
            left = tally.begin(name, [Job(row, phase) for phase in range(phases) for row in alive], finished or {})
            oracle = Oracle(network, twin, precision=precision, repeats=repeats)
            attack = _attack(name, threat, seed, version)
            while left:
                size = min(slots, len(alive))
                try:
                    run(
                        attack,
                        oracle,
                        x,
                        y,
                        indices,
                        logits.sort(dim=1)[1],
                        left,
                        slots=size,
                        done=tally.done,
                        beat=partial(tally.beat, oracle, size),
                        look_every=1 if x.device.type == "cpu" else 8,
                    )
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    slots = max(1, size // 2)
                    tally.log.append(f"{name}: out of memory with {size} slots, goes on with {slots}")
                left = tally.left()
            tally.end(name)
    return AutoAttackResult(tally.pictures(x), tally.by, tally.survivors, tally.forward, tally.backward, tally.log)


def _attack(name: str, threat: ThreatModel, seed: int, version: Version) -> Attack[Any]:
    """Give one attack of the six, with its draws."""
    start = keyed_start(threat, seed, name)
    if name.startswith("fab"):
        return FAB(threat, start, targeted=name == "fab-t")
    if name == "square":
        return Square(threat, seed)
    targeted = name == "apgd-t"
    if threat.norm == "l1":  # the standard version alone comes from larger radii
        stages = STAGES if version == "standard" else ((1.0, 1.0),)
        return APGDL1(threat, _LOSSES[name], start, targeted=targeted, stages=stages)
    return APGD(threat, _LOSSES[name], start, targeted=targeted)


_LOSSES: dict[str, Loss] = {
    "apgd-ce": lambda logits, y, target: F.cross_entropy(logits, y, reduction="none"),
    "apgd-dlr": lambda logits, y, target: dlr_with(y)(logits),
    "apgd-t": lambda logits, y, target: targeted_dlr_with(y, target)(logits),
}


def _check_classes(plan: Iterable[Step], classes: int) -> None:
    for name, _ in plan:
        if classes < _LEAST_CLASSES.get(name, 2):
            fitting = [
                other for other in ("apgd-ce", "apgd-dlr", "fab-t", "square") if classes >= _LEAST_CLASSES.get(other, 2)
            ]
            raise BadInput(
                f"{name} needs at least {_LEAST_CLASSES.get(name, 2)} classes, but found {classes}: "
                f"use version custom with attacks {', '.join(fitting)}"
            )
