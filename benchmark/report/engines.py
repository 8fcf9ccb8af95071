"""Say which engine made each figure of the attacks that have engines: AutoAttack, its kin, and ``quick``."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmark.report.attack_names import readable
from benchmark.report.measure import groups
from benchmark.results.cards import Suite
from benchmark.results.worst_case import DEVELOPMENT


def with_engine(accuracy: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``engine`` to accuracies, from the verdicts they are made of; ``""`` where an attack has none."""
    keys = ["method", "seed", "fold", "checkpoint", "attack", "epsilon"]
    found = {key: _together(rows) for key, rows in groups(_with_engines(verdicts), keys)}
    names = [found.get(key, "") for key in accuracy[keys].itertuples(index=False, name=None)]
    told = accuracy.copy()
    told.insert(list(accuracy.columns).index("fold"), "engine", names)
    return told


def of_rows(suite: Suite, verdicts: pd.DataFrame) -> dict[tuple[str, str, float], str]:
    """Give the engines of each method, checkpoint and epsilon: one name, or one for each attack where they differ.

    Of development attacks, which are always ours, where nothing else ran.
    """
    found = {}
    for key, rows in groups(_with_engines(verdicts), ["method", "checkpoint", "epsilon"]):
        others = rows[~rows.attack.isin(DEVELOPMENT)]
        of_attacks = groups(others if len(others) else rows, "attack")
        each = {readable(attack, suite): _together(own) for attack, own in of_attacks}
        same = len(set(each.values())) == 1
        found[key] = next(iter(each.values())) if same else "; ".join(f"{name}: {of}" for name, of in each.items())
    return found


def sentence(table: pd.DataFrame, method: str = "method", engine: str = "engine") -> str:
    """Tell under a table which engine made its figures; of several, whose: they are not to be mixed up.

    Args:
        method, engine: columns of names and engines. ``""`` where no figure has an engine.
    """
    whose: dict[str, list[str]] = {}
    rows: Sequence[Mapping[Any, Any]] = table[table[engine].fillna("").astype(str).ne("")].to_dict("records")
    for row in rows:
        whose.setdefault(row[engine], []).append(row[method])
    if not whose:
        return ""
    if len(whose) == 1:
        return f"Engine of AutoAttack and its kin: {next(iter(whose))}."
    told = "; ".join(f"{name} ({', '.join(dict.fromkeys(rows))})" for name, rows in sorted(whose.items()))
    return f"Figures of different engines stand in this table: {told}."


def _with_engines(verdicts: pd.DataFrame) -> pd.DataFrame:
    return verdicts[verdicts.engine.notna() & (verdicts.engine.astype("str") != "")]


def _together(rows: pd.DataFrame) -> str:
    return ", ".join(sorted({str(name) for name in rows.engine.unique()}))
