"""A development attack: nearly what AutoAttack leaves, at a fifteenth of its passes. Never printed as AutoAttack.

Plain margins in place of DLR, the likeliest targets first, and no more steps than it takes: 20 on each of three; 60 on
the cross-entropy, which goes where no single target leads; and 70 on each of two for the images that still hold. It has
no attack without gradients, so that it sees less of gradients that mislead.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from attacks.apgd import APGD, Loss
from attacks.apgd_l1 import APGDL1
from attacks.autoattack import LOSSES
from attacks.staged import Stage, Staged, attack_in_stages
from attacks.starts import keyed_start
from attacks.threat import ThreatModel


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Give how far the target class is ahead of the label's, ``(n,)``."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


class Part(NamedTuple):
    """Climb ``loss`` for so many ``steps``, towards each of the likeliest ``targets``; 0: away from the label."""

    name: str
    loss: Loss
    targets: int
    steps: int


# At most 263 gradients an image. The cross-entropy and the shares were chosen on the first 500 CIFAR-10 test images of
# the CNN of two convolutions at 8/255, among eleven plans of this cost.
PLAN = (
    Part("quick-first", targeted_margin, 3, 20),
    Part("quick-ce", LOSSES["apgd-ce"], 0, 60),
    Part("quick-last", targeted_margin, 2, 70),
)


def quick(network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, **how: Any) -> Staged:
    """Run the plan of Auto-PGD; arguments and errors as in :func:`attacks.autoattack.autoattack`."""
    kind = APGDL1 if threat.norm == "l1" else APGD

    def plan(classes: int) -> list[Stage]:
        return [
            Stage(
                part.name,
                kind(
                    threat,
                    part.loss,
                    keyed_start(threat, seed, part.name),
                    targeted=part.targets > 0,
                    iterations=part.steps,
                ),
                min(part.targets, classes - 1) or 1,
                2 * part.steps,
            )
            for part in PLAN
        ]

    return attack_in_stages(network, x, y, threat, plan, **how)
