"""A development attack: nearly what AutoAttack leaves, at an eighteenth of its passes. Never printed as AutoAttack.

Plain margins in place of DLR, the likeliest targets first, and many short climbs in place of few long ones: where a
first try does not fool an image that AutoAttack fools, another start or target helped more often than more steps. There
is no attack without gradients, so that it sees less of gradients that mislead.

The plan was chosen among some twenty of its cost on the first 500 CIFAR-10 test images of ``cifar_cnn_a_adv4`` at
8/255, on images 100-199 and 400-499 of ``trades_mnist_smallcnn`` at 0.3, and on PGD-AT on digits at 0.2. Elsewhere it
and AutoAttack left, in percent: of the next 500 of that CNN 20.4 and 20.4; of ``cifar_resnet4b`` at 2/255 (300 images)
61.7 and 61.7; of ``kw_mnist_01`` at 0.1 (200) 96.5 and 96.5; of TRADES on digits (400) 82.75 and 82.75 at 0.15, 63.5
and 63.0 at 0.2; of the first 100 of ``trades_mnist_smallcnn`` 93 and 92, where Square alone found the one.
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
    """Climb ``loss`` for ``steps``: towards each of so many likeliest classes, or else from so many starts."""

    name: str
    loss: Loss
    targeted: bool
    phases: int
    steps: int


PLAN = (  # 266 gradients for an image that holds
    Part("quick-first", targeted_margin, True, 3, 20),
    Part("quick-ce", LOSSES["apgd-ce"], False, 2, 48),
    Part("quick-last", targeted_margin, True, 5, 20),
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
                    targeted=part.targeted,
                    iterations=part.steps,
                ),
                min(part.phases, classes - 1) if part.targeted else part.phases,
                2 * part.steps,
            )
            for part in PLAN
        ]

    return attack_in_stages(network, x, y, threat, plan, **how)
