"""Figures with rejection, of methods that are judged at a confidence threshold: errors among what they accept."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark.report.measure import groups
from benchmark.results import evidence
from benchmark.results.rejection import AT_THRESHOLD, CONFIDENCE, Threshold, read_thresholds
from methods.rejection import Answers, Judged, accepted_share, area_under_curve, false_positive_rate, judge

REJECTION = [
    *("method", "seed", "fold", "checkpoint", "epsilon", "tau", "tau_images", "tau_right", "true_positives"),
    *("true_positive_rate", "clean_error", "robust_error", "false_positive_rate", "auc", "accepted", "images"),
    *("no_reject_pgd20", "no_reject_cw20", "no_reject_autoattack", "mark"),
]
_PLAIN = ("pgd20", "cw20", "autoattack")


class Rejecting:
    """What the networks of a report that have a threshold say of each image, clean and at its worst.

    Attributes:
        verdicts: one line per accepted image, as those of an attack called ``at_threshold``: ``fooled`` where an
            accepted prediction is wrong. table: one line per network and epsilon, columns REJECTION without the names
            that stand on a card, but ``experiment``.
    """

    def __init__(self, report: Path) -> None:
        verdicts, lines = [], []
        for line, judged, index in _measured(report):
            lines.append(line)
            what = {name: line[name] for name in ("experiment", "checkpoint", "epsilon")}
            fooled = judged.wrong[judged.accepted]
            rows = pd.DataFrame({"index": index[judged.accepted], "fooled": fooled}).assign(
                **what, attack=AT_THRESHOLD, by="", engine="", carried=False
            )
            verdicts.append(rows)
        self.verdicts = pd.concat(verdicts, ignore_index=True) if verdicts else pd.DataFrame()
        self.table = pd.DataFrame(lines)

    def beside(self, verdicts: pd.DataFrame, cards: pd.DataFrame) -> pd.DataFrame:
        """Add the verdicts with rejection to plain ones, as ``measure.judged`` gives them."""
        if self.verdicts.empty:
            return verdicts
        own = self.verdicts.merge(cards[["experiment", "method", "seed", "fold", "status"]], on="experiment")
        return pd.concat([verdicts, own[[name for name in own if name in verdicts]]], ignore_index=True)

    def of_cards(self, cards: pd.DataFrame) -> pd.DataFrame:
        """Give the table of networks that have a card, columns REJECTION."""
        if self.table.empty:
            return pd.DataFrame(columns=REJECTION)
        named = self.table.merge(cards[["experiment", "method", "seed", "fold"]], on="experiment")
        return named[REJECTION].sort_values(REJECTION[:5], ignore_index=True)


def _measured(report: Path) -> Iterator[tuple[dict, Judged, np.ndarray]]:
    thresholds = read_thresholds(report)
    if not thresholds:
        return
    found = evidence.read(report, ["fooled", "confidence", "carried"])
    for key, rows in groups(found, ["experiment", "checkpoint"]):
        if key in thresholds:
            yield from _of_network(dict(zip(("experiment", "checkpoint"), key, strict=True)), rows, thresholds[key])


def _of_network(what: dict, rows: pd.DataFrame, threshold: Threshold) -> Iterator[tuple[dict, Judged, np.ndarray]]:
    """Judge one network at each epsilon at which its confidence was attacked, on the images that were."""
    rows = rows[~rows.carried.astype(bool)].astype({"attack": "str"})
    clean = rows[rows.attack == "clean"].set_index("index")
    for epsilon, own in groups(rows[rows.attack == CONFIDENCE], "epsilon"):
        index = np.intersect1d(own["index"], clean.index)
        if not len(index):
            continue
        within = rows[(rows.epsilon > 0) & (rows.epsilon <= epsilon)]
        plain, attacked = _answers(clean.loc[index]), _worst(within, index)
        judged = judge(plain, attacked, threshold.tau)
        here = within[within.epsilon == epsilon]
        figures = {
            "true_positive_rate": accepted_share(plain, threshold.tau),
            "clean_error": judge(plain, plain, threshold.tau).error,
            "robust_error": judged.error,
            "false_positive_rate": false_positive_rate(plain, attacked, threshold.tau),
            "auc": area_under_curve(plain, attacked),
            "accepted": int(judged.accepted.sum()),
            "images": len(index),
            **{f"no_reject_{attack}": 1 - here.fooled[here.attack == attack].mean() for attack in _PLAIN},
        }
        of_tau = {"tau": threshold.tau, "tau_images": threshold.images, "tau_right": threshold.right}
        told = {"true_positives": threshold.true_positives, "mark": threshold.mark}
        yield what | {"epsilon": epsilon} | of_tau | told | figures, judged, index


def _answers(rows: pd.DataFrame) -> Answers:
    return Answers(rows.fooled.to_numpy(dtype=bool), rows.confidence.to_numpy(dtype=float))


def _worst(rows: pd.DataFrame, index: np.ndarray) -> Answers:
    """Take each image's most confident error under any attack, or where there is none its most confident answer."""
    errors = rows[rows.fooled].groupby("index").confidence.max().reindex(index)
    others = rows.groupby("index").confidence.max().reindex(index)
    return Answers(errors.notna().to_numpy(dtype=bool), errors.fillna(others).to_numpy(dtype=float))
