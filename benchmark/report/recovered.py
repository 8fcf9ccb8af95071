"""How much of the worth of hidden labels a semi-supervised method wins back without them."""

import numpy as np
import pandas as pd

from benchmark.report.measure import cells_of, groups
from benchmark.results.cards import Cards, Suite
from benchmark.results.statistics import difference_interval

ATTACKS = ("clean", "pgd20", "autoattack")
LEAST_GAP = 0.05  # between oracle and lower end, in accuracy; the protocol's choice
RECOVERED = [
    *("method", "lower", "oracle", "checkpoint", "attack", "epsilon", "accuracy", "lower_accuracy", "oracle_accuracy"),
    *("gap", "gap_low", "gap_high", "effect", "effect_low", "effect_high", "recovered", "seeds", "images"),
]


def recovered(suite: Suite, cards: Cards, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return (method - lower) / (oracle - lower) per method, checkpoint, attack and ranking epsilon; columns RECOVERED.

    All three are counted on the images and seeds that they share. ``recovered`` is NaN where the bootstrap interval of
    ``gap`` = oracle - lower holds 0, or the gap is below 5 points; it may be negative or above 1. ``effect`` is method
    - lower. A method with two lower ends has lines for both.

    Args:
        verdicts: as ``measure.judged``, without failed experiments.
    """
    own = verdicts[
        verdicts.attack.isin(ATTACKS)
        & (verdicts.epsilon.isin(suite.ranked_at) | (verdicts.attack == "clean"))
        & ~verdicts.carried.astype(bool)
    ]
    lines = []
    ends = ("lower", "lower_too")
    for method, lower, oracle in sorted(
        (method, beside[end], beside["oracle"])
        for method, beside in cards.beside.items()
        for end in ends
        if end in beside
    ):
        trio = [method, lower, oracle]
        for place, rows in groups(own[own.method.isin(trio)], ["checkpoint", "attack", "epsilon"]):
            if set(trio) <= set(rows.method):
                what = dict(zip(("checkpoint", "attack", "epsilon"), place, strict=True))
                lines.append(dict(zip(("method", "lower", "oracle"), trio, strict=True)) | what | _share(rows, trio))
    table = pd.DataFrame(lines, columns=RECOVERED)
    order = table.attack.map({attack: place for place, attack in enumerate(ATTACKS)})
    keys = [table.method, table.lower, table.checkpoint != suite.ranked_checkpoint, order, table.epsilon]
    return table.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)


def _share(rows: pd.DataFrame, trio: list[str]) -> dict[str, float]:
    names, cells = cells_of(rows, ["method"])
    method, lower, oracle = (cells[names.index((name,))].astype(float) for name in trio)
    shared = ~(np.isnan(method) | np.isnan(lower) | np.isnan(oracle))
    method, lower, oracle = (np.where(shared, part, np.nan) for part in (method, lower, oracle))
    gap, effect = difference_interval(oracle, lower), difference_interval(method, lower)
    figures = [float(part[shared].mean()) if shared.any() else np.nan for part in (method, lower, oracle)]
    known = gap.low > 0 and gap.estimate >= LEAST_GAP
    return {
        **dict(zip(("accuracy", "lower_accuracy", "oracle_accuracy"), figures, strict=True)),
        **{"gap": gap.estimate, "gap_low": gap.low, "gap_high": gap.high},
        **{"effect": effect.estimate, "effect_low": effect.low, "effect_high": effect.high},
        "recovered": (figures[0] - figures[1]) / gap.estimate if known else np.nan,
        "seeds": int(shared.any(1).sum()),
        "images": int(shared.any(0).sum()),
    }
