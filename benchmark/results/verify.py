"""Recheck what a report says without asking a network: verdicts agree with themselves, tables follow from verdicts."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from benchmark.errors import BadInput
from benchmark.results.finding import Finding, place
from benchmark.results.rejection import CONFIDENCE

_NAMES = ("class", "method", "against", "seed", "fold", "checkpoint", "attack", "epsilon", "stage")  # of a line
_CLOSE = 1e-7  # relative; tables have ten digits, and another version of a library turns the last of them


def contradictions(verdicts: pd.DataFrame) -> Iterator[Finding]:
    """Yield each verdict that cannot be true whatever the network says; ``verdicts`` as ``evidence.read`` gives."""
    misread = verdicts.clean_prediction != verdicts.label
    told = [
        (
            verdicts.fooled != (verdicts.prediction != verdicts.label),
            "fooled where prediction and label differ, and only there",
        ),
        ((verdicts.by != "") != verdicts.fooled, "a name in `by` where the image is fooled, and only there"),
        ((verdicts.by == "clean") != misread, "`by` clean where the clean image is misread, and only there"),
        (
            misread & (verdicts.attack != CONFIDENCE) & (verdicts.prediction != verdicts.clean_prediction),
            "the clean prediction where the clean image is misread",
        ),
        (
            (verdicts.attack == "clean") & (verdicts.prediction != verdicts.clean_prediction),
            "the clean prediction where nothing attacks",
        ),
        (~((verdicts.margin >= 0) | ~verdicts.fooled), "a margin of at least 0 where the image is fooled"),
        (~((verdicts.margin <= 0) | verdicts.fooled), "a margin of at most 0 where the image holds"),
        (_odd_labels(verdicts), "the label that the image has under other attacks"),
    ]
    wrong = [(row, expected) for mask, expected in told for row in verdicts.index[mask].tolist()]
    for row, expected in sorted(wrong, key=lambda one: one[0]):
        line = verdicts.loc[row]
        what = ", ".join(
            f"{name} {line[name]}" for name in ("label", "clean_prediction", "prediction", "fooled", "by", "margin")
        )
        yield Finding(
            place(line.experiment, line.checkpoint, line.attack, line.epsilon, int(line["index"])), expected, what
        )


def _odd_labels(verdicts: pd.DataFrame) -> pd.Series:
    """Tell where an image's label is not the one that most of the experiment's verdicts give it."""
    images = verdicts.groupby(["experiment", "index"], observed=True).label
    disputed = verdicts[images.transform("nunique") > 1]
    usual = disputed.groupby(["experiment", "index"], observed=True).label.transform(lambda some: some.mode().iloc[0])
    return (disputed.label != usual).reindex(verdicts.index, fill_value=False)


def differences(report: Path, name: str, expected: str) -> Iterator[Finding]:
    """Yield each cell of the CSV file ``name`` of ``report`` that is not as in ``expected``, the text made anew.

    Numbers may differ in their last digits. Columns that only one of the two has are of another version: they are
    told by :func:`other_columns`.
    """
    found, wanted = _table((report / name).read_bytes(), report / name), _table(expected.encode(), report / name)
    shared = [column for column in wanted.columns if column in found.columns]
    for number, (line, right) in enumerate(zip(found.to_dict("records"), wanted.to_dict("records"), strict=False)):
        for column in shared:
            if not _same(line[column], right[column]):
                named = " ".join(right[key] for key in _NAMES if key in shared and key != column and right[key])
                yield Finding(f"{name}, line {number + 2} ({named}), {column}", repr(right[column]), repr(line[column]))
    if len(found) != len(wanted):
        yield Finding(name, f"{len(wanted)} lines below the heading", str(len(found)))


def other_columns(report: Path, name: str, expected: str) -> list[str]:
    """List the columns that a CSV file of the report and ``expected`` do not share: they were not compared."""
    found, wanted = _table((report / name).read_bytes(), report / name), _table(expected.encode(), report / name)
    return sorted(set(found.columns) ^ set(wanted.columns))


def _table(content: bytes, path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"expected a CSV table, found {reason}: {path}; `atbench report {path.parent}` makes it anew"
        ) from None


def _same(found: str, expected: str) -> bool:
    if found == expected:
        return True
    try:
        return math.isclose(float(found), float(expected), rel_tol=_CLOSE)
    except ValueError:
        return False
