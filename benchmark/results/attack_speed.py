"""What AutoAttack costs on its two engines: a CSV that ``atbench speed attack`` writes, and a page for people."""

from pathlib import Path

import pandas as pd

from benchmark.errors import BadInput
from benchmark.storage import write_text

FIGURES = [
    *("repeat", "variant", "cpu_seconds", "wall_seconds", "ratio", "forward", "backward", "memory_mib", "robust"),
    *("fooled_here_only", "fooled_officially_only", "closest_here", "closest_officially"),
]
SETTING = [  # of one file, all alike
    *("model", "weights", "dataset", "norm", "epsilon", "images", "batch_size", "attacks", "compiled", "seed"),
    *("device", "processor", "threads", "ratio_of", "memory_of"),
]
COLUMNS = [*FIGURES, *SETTING, "date", "versions", "command"]
_WORDS = [
    *("variant", "fooled_here_only", "fooled_officially_only", "model", "weights", "dataset", "norm", "epsilon"),
    *("attacks", "device", "processor", "ratio_of", "memory_of", "date", "versions", "command"),
]

ONE, SWEEP = "fast-fp32", "fast-fp32-sweep"


def read(path: Path) -> pd.DataFrame:
    """Return the measurements in ``path``, a line per repeat and variant, columns COLUMNS; none where there is no file.

    ``ratio`` is the seconds of the official engine in the same repeat over those of the line, ``forward`` and
    ``backward`` are passes per image, ``robust`` is the number of images that held. Images whose verdicts differ are
    listed by their numbers in the data set, with the smallest margin of the pictures that fooled there alone.

    Raises:
        BadInput: when the file is none of ours.
    """
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_WORDS, str), keep_default_na=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(
            f"{path} is no CSV of atbench speed attack ({error}): delete it, or choose another --output"
        ) from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise BadInput(f"{path} has no column {missing[0]}: delete it, or choose another --output")
    return table[COLUMNS].fillna(dict.fromkeys(_WORDS, ""))


def write(path: Path, table: pd.DataFrame) -> None:
    """Write measurements to ``path``, and beside it the page, ``.md``."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text(path.with_suffix(".md"), "\n".join(page(table)) + "\n")


def setting_differs(table: pd.DataFrame, setting: dict[str, object]) -> str | None:
    """Name the first of SETTING in which measurements differ from ``setting``, None where they can stand together."""
    return next((name for name in SETTING if any(str(found) != str(setting[name]) for found in table[name])), None)


def page(table: pd.DataFrame) -> list[str]:
    """Say in lines of Markdown what was measured: medians, and the least and the most where they differ."""
    first = table.iloc[0]
    repeats = table["repeat"].nunique()
    lines = [
        f"# AutoAttack on {first['model']}",
        "",
        f"{first['images']} images of {first['dataset']}, {first['norm']}, epsilon {first['epsilon']}, batches of "
        f"{first['batch_size']}, {first['attacks']}{', compiled' if first['compiled'] else ''}, seed {first['seed']}; "
        f"{first['device']} ({first['processor']}, {first['threads']} threads), {first['versions']}, {first['date']}.",
        f"The engines took turns in one process, in slices of about a second, {repeats} times; given are medians "
        f"(least to most). Ratios are of {first['ratio_of']}, official over the line's.",
        f"Memory: {first['memory_of']}.",
        "",
        "| variant | ratio | CPU seconds | wall seconds | forward per image | backward per image | memory MiB | hold |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for variant, rows in table.groupby("variant", sort=False):
        cells = [_spread(rows[name], form) for name, form in (("ratio", ".2f"), ("cpu_seconds", ".1f"))]
        cells += [f"{rows[name].median():.{digits}f}" for name, digits in _MEDIANS]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    if {ONE, SWEEP} <= set(table["variant"]):
        one, five = (table[table["variant"] == name].sort_values("repeat")["cpu_seconds"] for name in (ONE, SWEEP))
        times = pd.Series(five.to_numpy() / one.to_numpy())
        lines += ["", f"Five epsilons in descending order cost {_spread(times, '.2f')} times one, in CPU seconds."]
    lines += ["", "Verdicts that differ from the official engine's, over all repeats:", ""]
    return [*lines, *(_differing(str(variant), rows) for variant, rows in table.groupby("variant", sort=False))]


_MEDIANS = (("wall_seconds", 1), ("forward", 0), ("backward", 0), ("memory_mib", 0), ("robust", 0))


def _spread(figures: "pd.Series[float]", form: str) -> str:
    middle, least, most = (format(value, form) for value in (figures.median(), figures.min(), figures.max()))
    return middle if least == most else f"{middle} ({least} to {most})"


def _differing(variant: str, rows: pd.DataFrame) -> str:
    parts = []
    for name, margin, said in (
        ("fooled_here_only", "closest_here", "fooled here and not there"),
        ("fooled_officially_only", "closest_officially", "fooled there and not here"),
    ):
        images = sorted({int(image) for listed in rows[name] for image in str(listed).split()})
        closest = f", closest margin {rows[margin].min():.2g}" if images else ""
        listed = f" (images {' '.join(map(str, images))}{closest})" if images else ""
        parts.append(f"{len(images)} {said}{listed}")
    return f"- {variant}: {'; '.join(parts)}"
