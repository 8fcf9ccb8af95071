"""AutoAttack, composed: which attacks run in which version, each on the survivors of those before it.

Source: Croce and Hein, ICML 2020, arXiv:2003.01690; L1: Croce and Hein, ICML 2021, arXiv:2103.01208; the versions as
the authors' package defines them (github.com/fra31/auto-attack).
"""

import importlib.metadata
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from attacks.apgd import APGD, Loss
from attacks.apgd_l1 import APGDL1, STAGES
from attacks.engine import Attack
from attacks.errors import BadInput
from attacks.fab import FAB
from attacks.objectives import dlr_with, targeted_dlr_with
from attacks.square import Square
from attacks.staged import Stage, Staged, attack_in_stages
from attacks.starts import keyed_start
from attacks.threat import Norm, ThreatModel

Version = Literal["standard", "plus", "rand", "custom"]

# Restarts, or target classes, of each attack. Custom and plus have the budgets of the package's constructor.
_CUSTOM = {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9}
_STANDARD = {"apgd-ce": 1, "apgd-t": 9, "fab-t": 9, "square": 1}
_STANDARD_L1 = {"apgd-ce": 5, "apgd-t": 5, "fab-t": 9, "square": 1}
_RAND = {"apgd-ce": 1, "apgd-dlr": 1}
_RAND_REPEATS = 20  # forward passes over which a gradient is averaged

NAMES = tuple(_CUSTOM)
_WORK = {"apgd-ce": 250, "apgd-dlr": 250, "apgd-t": 250, "fab": 1500, "fab-t": 350, "square": 5000}
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # with fewer the loss is not defined
LOSSES: dict[str, Loss] = {
    "apgd-ce": lambda logits, y, target: F.cross_entropy(logits, y, reduction="none"),
    "apgd-dlr": lambda logits, y, target: dlr_with(y)(logits),
    "apgd-t": lambda logits, y, target: targeted_dlr_with(y, target)(logits),
}


def engine_version() -> str:
    """Name the engine for tables: the project's version."""
    return f"fast {importlib.metadata.version('atbench')}"


def autoattack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    version: Version = "standard",
    attacks: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    **how: Any,
) -> Staged:
    """Run a version of AutoAttack on ``network``.

    Args:
        network: images in the range of ``threat`` to logits ``(n, k)``, in eval mode.
        x: clean images ``(n, c, h, w)``; ``y`` their labels.
        seed: keys all draws, with sample index, attack and restart.
        version: ``standard``; ``plus``; ``rand``, for networks that answer at random; or ``custom``.
        attacks: of :data:`NAMES`, for ``custom`` alone.
        only: these of the version's attacks, in its order; for measurements.
        how: ``index``, ``slots``, ``precision``, ``compiled``, ``finished``, ``keep``, ``progress``, as in
            :func:`attacks.staged.attack_in_stages`.

    Raises:
        BadInput: for what :mod:`attacks.checks` refuses, an unknown version or attack, or fewer classes than an attack
            needs: four for apgd-t, three for apgd-dlr.
    """
    budgets = phases(version, threat.norm, attacks)

    def plan(classes: int) -> list[Stage]:
        check_classes([name for name in budgets if only is None or name in only], classes)
        repeats = _RAND_REPEATS if version == "rand" else 1
        return [
            Stage(
                name,
                _attack(name, threat, seed, from_afar=version == "standard"),
                min(count, classes - 1) if name in ("apgd-t", "fab-t") else count,
                _WORK[name] * repeats,
                repeats,
            )
            for name, count in budgets.items()
            if only is None or name in only
        ]

    return attack_in_stages(network, x, y, threat, plan, **how)


def phases(version: Version, norm: Norm, attacks: Sequence[str] | None = None) -> dict[str, int]:
    """Give the attacks of a version in order, with the restarts or target classes of each.

    Raises:
        BadInput: for an unknown version or attack, or ``attacks`` with a version other than ``custom``.
    """
    if version == "custom":
        unknown = [name for name in attacks or () if name not in NAMES]
        if unknown or not attacks:
            found = repr(unknown[0]) if unknown else "none"
            raise BadInput(f"AutoAttack custom takes attacks of {', '.join(NAMES)}, but found {found}")
        return {name: _CUSTOM[name] for name in attacks}
    if attacks is not None:
        raise BadInput(f"AutoAttack {version} has its own attacks, but found {', '.join(attacks)}: use version custom")
    standard = _STANDARD_L1 if norm == "l1" else _STANDARD
    known = {"standard": standard, "plus": _CUSTOM, "rand": _RAND}
    if version not in known:
        raise BadInput(f"AutoAttack has the versions standard, plus, rand and custom, but found {version!r}")
    return known[version]


def _attack(name: str, threat: ThreatModel, seed: int, *, from_afar: bool) -> Attack[Any]:
    """Give one of the six attacks, with its draws; in L1 the standard version alone comes ``from_afar``."""
    if name == "square":
        return Square(threat, seed)
    start = keyed_start(threat, seed, name)
    if name.startswith("fab"):
        return FAB(threat, start, targeted=name == "fab-t")
    targeted = name == "apgd-t"
    if threat.norm == "l1":
        stages = STAGES if from_afar else ((1.0, 1.0),)
        return APGDL1(threat, LOSSES[name], start, targeted=targeted, stages=stages)
    return APGD(threat, LOSSES[name], start, targeted=targeted)


def check_classes(names: Iterable[str], classes: int) -> None:
    """Accept attacks that are defined for so many classes.

    Raises:
        BadInput: naming the attack, and those that would do.
    """
    for name in names:
        least = _LEAST_CLASSES.get(name, 2)
        if classes < least:
            others = ", ".join(fitting(classes))
            raise BadInput(
                f"{name} needs at least {least} classes, but found {classes}: use version custom with attacks {others}"
            )


def fitting(classes: int) -> list[str]:
    """List the attacks of :data:`NAMES` that are defined for so many classes."""
    return [name for name in NAMES if classes >= _LEAST_CLASSES.get(name, 2)]
