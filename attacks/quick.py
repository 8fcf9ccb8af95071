"""A development attack: nearly what AutoAttack leaves, at a twentieth of its passes. Never printed as AutoAttack.

Plain margins in place of DLR, the likeliest targets first, and no more steps than it takes: 20 on each of three, then
100 on each of two for the images that hold. It has no attack without gradients, so that it sees less of gradients that
mislead.
"""

from typing import Any

from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.apgd_l1 import APGDL1
from attacks.engine import Attack
from attacks.staged import Stage, Staged, attack_in_stages
from attacks.starts import keyed_start
from attacks.threat import ThreatModel

PLAN = (("quick-20", 3, 20), ("quick-100", 2, 100))  # name, target classes, steps


def quick(network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, **how: Any) -> Staged:
    """Run targeted Auto-PGD on margins; arguments and errors as in :func:`attacks.autoattack.autoattack`."""

    def plan(classes: int) -> list[Stage]:
        return [
            Stage(name, _attack(name, threat, seed, steps), min(targets, classes - 1), 5 * steps // 2)
            for name, targets, steps in PLAN
        ]

    return attack_in_stages(network, x, y, threat, plan, **how)


def _attack(name: str, threat: ThreatModel, seed: int, steps: int) -> Attack[Any]:
    kind = APGDL1 if threat.norm == "l1" else APGD
    start = keyed_start(threat, seed, name)
    return kind(threat, targeted_margin, start, targeted=True, iterations=steps)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Give how far the target class is ahead of the label's, ``(n,)``."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
