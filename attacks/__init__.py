"""The instruments: threat model, objectives, PGD, Carlini-Wagner, AutoAttack, randomness, and the counting of passes.

Names load on first use, so that ``attacks.errors`` can be imported where PyTorch is not wanted. ``pgd`` and ``clip``
are modules that hold a function of the same name: ``from attacks.pgd import pgd``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.carlini_wagner import carlini_wagner_l2
    from attacks.checks import check_classifier, check_images
    from attacks.errors import BadInput
    from attacks.objectives import (
        cross_entropy_with,
        dlr_with,
        kl_divergence,
        kl_from,
        margin,
        margin_with,
        targeted_dlr_with,
    )
    from attacks.passes import Passes, counting
    from attacks.pgd import fgsm
    from attacks.pixels import Pixels
    from attacks.threat import ThreatModel

_HOME = {
    "BadInput": "errors",
    "Passes": "passes",
    "Pixels": "pixels",
    "ThreatModel": "threat",
    "carlini_wagner_l2": "carlini_wagner",
    "check_classifier": "checks",
    "check_images": "checks",
    "counting": "passes",
    "cross_entropy_with": "objectives",
    "dlr_with": "objectives",
    "fgsm": "pgd",
    "kl_divergence": "objectives",
    "kl_from": "objectives",
    "margin": "objectives",
    "margin_with": "objectives",
    "targeted_dlr_with": "objectives",
}

__all__ = [  # noqa: RUF022 - in the order a reader meets them
    "ThreatModel",
    "Pixels",
    "cross_entropy_with",
    "kl_from",
    "kl_divergence",
    "margin",
    "margin_with",
    "dlr_with",
    "targeted_dlr_with",
    "fgsm",
    "carlini_wagner_l2",
    "Passes",
    "counting",
    "check_classifier",
    "check_images",
    "BadInput",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attacks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attacks.{_HOME[name]}"), name)
