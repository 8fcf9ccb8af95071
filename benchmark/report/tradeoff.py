"""What robustness costs in clean accuracy: every method against natural training, image by image."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd

from benchmark.report.measure import cells_of
from benchmark.report.style import epsilon_text
from benchmark.results.cards import Suite
from benchmark.results.statistics import INTERVAL_RESAMPLES, paired_difference
from benchmark.results.worst_case import WORST_CASE

NATURAL = "natural"
TRADEOFF = [
    *("class", "method", "checkpoint", "epsilon", "clean", "natural_clean", "clean_lost", "clean_lost_low"),
    *("clean_lost_high", "robust", "natural_robust", "robust_won", "robust_won_low", "robust_won_high"),
    *("seeds", "images", "credibility"),
]


def tradeoff(suite: Suite, board: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the clean accuracy that each method loses against natural training and the robust accuracy it wins.

    At the ranked checkpoint and each ranking epsilon, robust meaning the worst case over attacks; on the images and
    seeds that both have, with the intervals of paired comparisons. Methods not fully attacked are left out, and all
    where natural training is not there: it is the reference. Columns TRADEOFF.

    Args:
        board: as ``leaderboard``; ``verdicts``: as ``measure.judged``, without failed experiments.
    """
    lines: list[dict[str, object]] = []
    own = verdicts[(verdicts.checkpoint == suite.ranked_checkpoint) & ~verdicts.carried.astype(bool)]
    clean = _cells(own[own.attack == "clean"])
    for epsilon in suite.ranked_at:
        rows = board[(board.checkpoint == suite.ranked_checkpoint) & (board.epsilon == epsilon)]
        rows = rows[(rows.status == "done") & rows[WORST_CASE].notna()]
        robust = _cells(own[(own.attack == WORST_CASE) & (own.epsilon == epsilon)])
        if NATURAL not in set(rows.method) & clean.keys() & robust.keys():
            continue
        for line in rows.to_dict("records"):
            method = line["method"]
            if method not in clean or method not in robust:
                continue
            lost, won = _difference(clean, NATURAL, method), _difference(robust, method, NATURAL)
            pairs = [(table, *pair) for table in (clean, robust) for pair in ((method, NATURAL), (NATURAL, method))]
            of_both = [_shared(*pair) for pair in pairs]
            names = ("clean", "natural_clean", "robust", "natural_robust")
            lines.append(
                {
                    **{name: line[name] for name in ("class", "method", "checkpoint", "epsilon", "credibility")},
                    **dict(zip(names, of_both, strict=True)),
                    **dict(zip(("clean_lost", "clean_lost_low", "clean_lost_high"), lost[:3], strict=True)),
                    **dict(zip(("robust_won", "robust_won_low", "robust_won_high"), won[:3], strict=True)),
                    **{"seeds": won[3], "images": won[4]},
                }
            )
    table = pd.DataFrame(lines, columns=TRADEOFF)
    return table.sort_values(["epsilon", "robust_won"], ascending=[True, False], kind="stable").reset_index(drop=True)


def _cells(verdicts: pd.DataFrame) -> dict[str, np.ndarray]:
    names, cells = cells_of(verdicts, ["method"])
    return {name: rows.astype(float) for (name,), rows in zip(names, cells, strict=True)}


def _shared(cells: dict[str, np.ndarray], method: str, other: str) -> float:
    """Give the accuracy of ``method`` on what both were judged on."""
    judged = ~np.isnan(cells[method]) & ~np.isnan(cells[other])
    return float(cells[method][judged].mean()) if judged.any() else float("nan")


def _difference(cells: dict[str, np.ndarray], first: str, second: str) -> tuple[float, float, float, int, int]:
    found = paired_difference(cells[first], cells[second], resamples=INTERVAL_RESAMPLES)
    return found.interval.estimate, found.interval.low, found.interval.high, found.runs, found.images


def readable_tradeoff(table: pd.DataFrame, name: Callable[[str, float], str]) -> pd.DataFrame:
    """Return the trade-off as strings: accuracies in percent, differences in points; ``name`` writes a name."""
    lines = [
        {
            "class": line["class"],
            "method": name(line["method"], line["epsilon"]),
            "epsilon": epsilon_text(line["epsilon"]),
            "clean": f"{100 * line['clean']:.1f}",
            "clean accuracy lost": _points(line, "clean_lost"),
            "worst case": f"{100 * line['robust']:.1f}",
            "robust accuracy won": _points(line, "robust_won"),
            "seeds": str(line["seeds"]),
            "images": str(line["images"]),
        }
        for line in table.to_dict("records")
    ]
    return pd.DataFrame(lines, dtype=object)


def _points(line: dict[Hashable, Any], column: str) -> str:
    if line["method"] == NATURAL:
        return "reference"
    figure, low, high = (100 * line[f"{column}{end}"] for end in ("", "_low", "_high"))
    return f"{figure:+.1f} [{low:+.1f}, {high:+.1f}]"
