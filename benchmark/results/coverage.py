"""Hold the survey's methods against what is here: a file, golden values, a published recipe, a row in a report.

All of it is looked up, in the methods' cards, the recipes and the list of golden cases, so that nothing has to be kept
up with them by hand.
"""

from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

import pandas as pd

from benchmark.results import survey
from benchmark.results.method_cards import method_cards

COVERAGE = ["survey", "method_key", "method_name", "citation", "section", "file", "golden", "recipe", "row"]
GOLDEN = "golden.txt"  # written by .ci/readme_table.py: an installed package has no tests


def coverage(measured: Collection[str]) -> pd.DataFrame:
    """Return a line per method of the survey, the rows of Table 1 first, columns COVERAGE; all cells are words.

    ``file`` is "" where the method is not there yet; ``golden``, ``recipe`` and ``row`` are yes or no. Methods
    that the survey does not name stand at the end.

    Args:
        measured: the keys of the methods with a row in the report.
    """
    cards, golden, recipes = method_cards(), golden_keys(), recipe_keys()
    printed, named = survey.table1(), survey.text_only()
    rows = [
        {**_names(row), "survey": f"Table 1, row {row['order']}", "section": str(row["category_text"])}
        for row in printed.to_dict("records")
    ]
    rows += [{**_names(row), "survey": "text", "section": str(row["section"])} for row in named.to_dict("records")]
    known = {row["method_key"] for row in rows}
    rows += [{"survey": "not named", "method_key": key} for key in cards if key not in known]
    for row in rows:
        key = row["method_key"]
        row["file"] = cards[key].file if key in cards else ""
        for name, keys in {"golden": golden, "recipe": recipes, "row": measured}.items():
            row[name] = "yes" if key in keys else "no"
    return pd.DataFrame(rows, columns=COVERAGE).fillna("")


def golden_keys() -> set[str]:
    """Return the methods that are held to values of their authors' code."""
    return set((resources.files("benchmark.results") / GOLDEN).read_text("utf-8").split())


def recipe_keys() -> set[str]:
    """Return the methods that have a published recipe."""
    folder = resources.files("benchmark") / "suites" / "published"
    return {file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")}


def summed_up(table: pd.DataFrame) -> str:
    """Say in a sentence how much of the survey is covered."""
    there = table[table.file != ""]
    rows = table.survey.str.startswith("Table 1")
    counts = ", ".join(
        f"{int((table[name] == 'yes').sum())} with {words}"
        for name, words in (
            ("golden", "golden values"),
            ("recipe", "a published recipe"),
            ("row", "a row in the report"),
        )
    )
    return (
        f"{int((rows & (table.file != '')).sum())} of the {int(rows.sum())} rows of Table 1 and "
        f"{int(((table.survey == 'text') & (table.file != '')).sum())} of the {int((table.survey == 'text').sum())} "
        f"methods named only in the text have a method here ({len(there)} methods); {counts}."
    )


def _names(row: Mapping[Any, Any]) -> dict[str, str]:
    return {name: str(row[name]) for name in ("method_key", "method_name", "citation")}
