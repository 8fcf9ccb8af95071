"""Turn verdicts into accuracies: one line per trained network, and one per method over its seeds and folds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmark.results.statistics import Array, accuracies, wilson
from benchmark.results.worst_case import with_worst_case

RUN = ["seed", "fold"]  # together they name one trained network of a method
FIGURE = ["method", "checkpoint", "attack", "epsilon"]
_BATCH = 200  # series resampled together; bounds memory


def groups(table: pd.DataFrame, keys: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Yield each key (a value, or a tuple for a list of keys) with its rows, sorted; pandas types keys too widely."""
    yield from table.groupby(keys, sort=True, observed=True)


def judged(evidence: pd.DataFrame, cards: pd.DataFrame) -> pd.DataFrame:
    """Return evidence with its worst case and each row's method, seed, fold and status; without card, without row.

    Args:
        evidence: as ``benchmark.results.evidence.read`` gives.
        cards: as ``benchmark.results.cards.Cards.table``.
    """
    known = evidence[evidence.experiment.isin(cards.experiment)]
    verdicts = with_worst_case(known)
    verdicts["experiment"] = verdicts.experiment.astype("str")
    verdicts["checkpoint"] = verdicts.checkpoint.astype("str")
    return verdicts.merge(cards[["experiment", "method", "seed", "fold", "status"]], on="experiment")


def per_network(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one line per trained network, checkpoint, attack and epsilon, with Wilson's interval; all in [0, 1].

    Columns method, seed, checkpoint, attack, epsilon, accuracy, low, high, images, carried (any of them), carried_share
    (of the images), fold.
    """
    keys = ["method", "seed", "fold", "checkpoint", "attack", "epsilon"]
    counts = _counts(verdicts, keys)
    found = [wilson(right, images) for right, images in zip(counts.right, counts.images, strict=True)]
    counts["accuracy"] = [interval.estimate for interval in found]
    counts["low"] = [interval.low for interval in found]
    counts["high"] = [interval.high for interval in found]
    order = [
        "method",
        "seed",
        "checkpoint",
        "attack",
        "epsilon",
        "accuracy",
        "low",
        "high",
        "images",
        "carried",
        "carried_share",
        "fold",
    ]
    return counts[order]


def pooled(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, checkpoint, attack and epsilon over all its networks; accuracies in [0, 1].

    Columns method, checkpoint, attack, epsilon, accuracy, low, high, images (verdicts per network), seeds, networks,
    carried. One network gives Wilson's interval, several the bootstrap over images and networks together.
    """
    runs = _counts(verdicts, [*FIGURE, *RUN])
    lines = runs.groupby(FIGURE, sort=True).agg(
        right=("right", "sum"),
        total=("images", "sum"),
        images=("images", "max"),
        seeds=("seed", "nunique"),
        networks=("images", "size"),
        carried=("carried", "any"),
    )
    found = {key: wilson(int(line.right), int(line.total)) for key, line in lines.iterrows() if line.networks == 1}
    several = lines.index[lines.networks > 1]
    for start in range(0, len(several), _BATCH):
        batch = several[start : start + _BATCH]
        chosen = verdicts[pd.MultiIndex.from_frame(verdicts[FIGURE]).isin(batch)]
        names, cells = cells_of(chosen, FIGURE)
        found.update(zip(names, accuracies(cells), strict=True))
    lines["accuracy"] = [found[key].estimate for key in lines.index]
    lines["low"] = [found[key].low for key in lines.index]
    lines["high"] = [found[key].high for key in lines.index]
    columns = ["accuracy", "low", "high", "images", "seeds", "networks", "carried"]
    return lines[columns].reset_index()


def cells_of(verdicts: pd.DataFrame, series: Sequence[str]) -> tuple[list[tuple], Array]:
    """Lay verdicts out for the statistics: names of the series, and the array ``(series, runs, images)`` of 1, 0, NaN.

    An image is identified by fold and index, because folds test on different images.
    """
    kinds = verdicts.groupby(list(series), sort=True)
    row = kinds.ngroup().to_numpy()
    run = verdicts.groupby(RUN, sort=True).ngroup().to_numpy()
    image = verdicts.groupby(["fold", "index"], sort=True).ngroup().to_numpy()
    shape = tuple(int(codes.max()) + 1 if len(codes) else 0 for codes in (row, run, image))
    cells = np.full(shape, np.nan, dtype=np.float32)
    cells[row, run, image] = ~verdicts.fooled.to_numpy(dtype=bool)
    names = [name if isinstance(name, tuple) else (name,) for name, _ in kinds]
    return names, cells


def _counts(verdicts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    counts = verdicts.groupby(keys, sort=True).agg(
        fooled=("fooled", "sum"),
        images=("fooled", "size"),
        carried=("carried", "any"),
        carried_share=("carried", "mean"),
    )
    counts["right"] = counts.images - counts.fooled.astype(int)
    return counts.drop(columns="fooled").reset_index()
