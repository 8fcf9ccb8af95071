"""Put into words how much of the survey is here, for the report and for the README."""

from collections.abc import Callable

import pandas as pd

from benchmark.results.rows import method_of


def measured_in(board: pd.DataFrame) -> set[str]:
    """Return the keys of the methods that a leaderboard has a finished row of, variants and references among them."""
    return {method_of(str(row)) for row in board[board.status == "done"].method}


def readable_coverage(table: pd.DataFrame, name: Callable[[str], str] = str) -> pd.DataFrame:
    """Return the table for readers; ``name`` writes a method's name."""
    shown = table.assign(method_key=[name(key) for key in table.method_key], file=table.file.replace("", "missing"))
    headings = {"method_key": "key", "method_name": "method", "recipe": "published recipe", "row": "row in the report"}
    return shown.rename(columns=headings).astype(object)
