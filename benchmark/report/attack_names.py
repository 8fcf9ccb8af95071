"""What readers call an attack; AutoAttack is the standard version alone."""

from typing import Any

from benchmark.results.cards import Suite
from benchmark.results.rejection import AT_THRESHOLD, CONFIDENCE
from benchmark.results.surrogate import SURROGATE

STANDARD = "autoattack"
SELDOM = (
    *("pgd20_any", "cw_l2", "autoattack_custom", "autoattack_rand", "autoattack_plus"),
    *(CONFIDENCE, AT_THRESHOLD, *SURROGATE),
)
"""Attacks that get a column only where they ran: each its own, for none of them is one of the usual."""
_NAMES = {
    **{"clean": "clean", "pgd20": "PGD-20", "pgd20_any": "PGD-20 any", "cw20": "CW-20", "cw_l2": "C&W L2"},
    **{"row": "row's attack", "autoattack": "AutoAttack", "worst_case": "worst case"},
    **{"autoattack_rand": "AutoAttack rand", "autoattack_plus": "AutoAttack plus"},
    **{CONFIDENCE: "attack on confidence", AT_THRESHOLD: "with rejection"},
    **{"surrogate_fgsm": "FGSM of a surrogate", "surrogate_pgd20": "PGD-20 of a surrogate"},
    **{"surrogate_pgd30": "PGD-30 of a surrogate"},
}


def readable(attack: str, suite: Suite) -> str:
    """Give the name of an attack of the evidence; that of chosen attacks says which: ``custom (apgd-ce, fab-t)``."""
    if attack == "autoattack_custom":
        chosen: Any = suite.content["evaluation"].get("custom") or []
        return f"custom ({', '.join(map(str, chosen))})" if chosen else "custom"
    return _NAMES.get(attack, attack)
