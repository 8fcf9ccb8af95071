"""What each method's training costs beside natural training: a file that ``atbench speed`` alone writes."""

from pathlib import Path

import pandas as pd

from benchmark.errors import BadInput
from benchmark.storage import write_text

STORED = Path(__file__).with_name("speed.csv")  # what `atbench list methods` shows
FIGURES = [
    *("method", "ratio", "ratio_low", "ratio_high", "repeats", "seconds", "natural_seconds"),
    *("forward_passes", "backward_passes", "peak_memory_mib", "memory_growth_mib", "peak_memory_of"),
]
SETTING = [  # of one file, all alike
    *("suite", "dataset", "network", "device", "processor", "images", "batch_size", "epochs"),
]
COLUMNS = [*FIGURES, *SETTING, "date", "versions", "command", "experiment"]
_WORDS = ["method", "suite", "dataset", "network", "device", "processor", "date", "versions", "command", "experiment"]


def read(path: Path = STORED) -> pd.DataFrame:
    """Return the measurements in ``path``, a line per method, columns COLUMNS; none where there is no file.

    ``ratio`` is the median of training seconds over those of natural training, ``ratio_low`` and ``ratio_high`` the
    least and the most of ``repeats``. Passes are those per training image and epoch, averaged over the schedule.

    Raises:
        BadInput: when the file is none of ours.
    """
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_WORDS, str))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{path} is no CSV of atbench speed ({error}): delete it, or choose another --output") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise BadInput(f"{path} has no column {missing[0]}: delete it, or choose another --output")
    return table[COLUMNS]


def keep(path: Path, line: dict[str, object]) -> None:
    """Write one method's ``line`` into ``path``, in place of an older one of the method; the others stay."""
    before = read(path)
    now = pd.DataFrame([line], columns=COLUMNS)
    others = before[before.method != line["method"]]
    table = pd.concat([others, now], ignore_index=True) if len(others) else now
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def setting_differs(table: pd.DataFrame, setting: dict[str, object]) -> str | None:
    """Name the first of SETTING in which measurements differ from ``setting``, None where they can stand together."""
    return next((name for name in SETTING if (table[name] != setting[name]).any()), None)
