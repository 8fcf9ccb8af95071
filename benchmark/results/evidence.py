"""Keep one verdict per test image, in small Parquet files that survive a kill; read them back as one table.

``evidence/<experiment>/<checkpoint>/<attack>@<epsilon>/part-00000.parquet``: one part per finished batch. All tables,
figures and intervals are computed from these files alone.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import BadInput
from benchmark.storage import write_bytes

SCHEMA = pa.schema(
    [
        ("index", pa.int32()),  # of the image in the test set
        ("label", pa.int16()),
        ("clean_prediction", pa.int16()),
        ("prediction", pa.int16()),  # on the adversarial image
        ("fooled", pa.bool_()),  # prediction != label; an image misread when clean is fooled under every attack
        ("by", pa.string()),  # the part of the attack that fooled it; "" where it was not fooled
        ("attack", pa.string()),
        ("epsilon", pa.float64()),  # in pixel units of [0, 1]; 0.0 for clean
        ("margin", pa.float32()),
        ("confidence", pa.float32()),
        ("forward", pa.float32()),  # passes spent on this image
        ("backward", pa.float32()),
        ("seconds", pa.float32()),
        ("engine", pa.string()),  # "" or such as "official 0.2.0"
        ("carried", pa.bool_()),  # taken over from another epsilon of a sweep
    ]
)
KEYS = ["experiment", "checkpoint", "attack", "epsilon"]
_PART = re.compile(r"part-\d{5,}\.parquet")
_TEXT = ["experiment", "checkpoint", "by", "attack", "engine"]


def escaped(name: str) -> str:
    """Spell ``name`` as one path component that cannot leave its folder; plain names stay as they are."""
    spelled = quote(name, safe="=+,")
    if spelled.startswith("."):
        spelled = "%2E" + spelled[1:]  # "..", and hidden files
    if not spelled or len(spelled) > 200:  # file systems end at 255, and temporary names add to it
        raise BadInput(
            f"expected a name of 1 to 200 characters, found {name!r}; choose another name for the experiment"
        )
    return spelled


def evidence_folder(report: Path, experiment: str, checkpoint: str, attack: str, epsilon: float) -> Path:
    """Return the folder that holds the parts of one attack on one checkpoint; ``epsilon`` in pixel units."""
    place = report / "evidence" / escaped(experiment) / escaped(checkpoint)
    return place / f"{escaped(attack)}@{float(epsilon)!r}"


def card_path(report: Path, experiment: str) -> Path:
    """Return where the card of ``experiment`` stands: what identifies the run, and what it cost."""
    return report / "experiments" / f"{escaped(experiment)}.yaml"


def failure_path(report: Path, experiment: str) -> Path:
    """Return where the traceback of a failed ``experiment`` stands."""
    return report / "failures" / f"{escaped(experiment)}.txt"


def part_path(folder: Path, number: int) -> Path:
    """Return where the verdicts of batch ``number`` stand in ``folder``."""
    return folder / f"part-{number:05d}.parquet"


def write_part(folder: Path, frame: pd.DataFrame, number: int) -> Path:
    """Write the verdicts of batch ``number`` into ``folder``: equal frames give equal bytes, a kill leaves no half.

    Args:
        frame: the columns of ``SCHEMA``, one row per image, in any order of columns.
    Raises:
        BadInput: a column is missing or too many, or a value does not fit its type.
    """
    path = part_path(folder, number)
    _check_columns(list(frame.columns), path)
    try:
        table = pa.Table.from_pandas(frame[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BadInput(f"expected values that fit the evidence columns, found {_line(error)}, for {path}") from error
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")  # pandas would note its version
    return write_bytes(path, buffer.getvalue().to_pybytes())


def finished_parts(folder: Path) -> list[Path]:
    """Return the part files of ``folder`` in order; leftovers of a killed writer are not among them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))


class Part(NamedTuple):
    """Where a part file lies and what it is about."""

    path: Path
    experiment: str
    checkpoint: str
    attack: str
    epsilon: float


def parts(report: Path) -> list[Part]:
    """List all part files under ``report``, those of a network together."""
    return [
        Part(path, experiment, checkpoint, attack, epsilon)
        for folder, experiment, checkpoint, attack, epsilon in _attack_folders(report)
        for path in finished_parts(folder)
    ]


def parts_of(report: Path, experiment: str, checkpoint: str) -> list[Part]:
    """List the part files of one network."""
    of = f"{escaped(experiment)}/{escaped(checkpoint)}"
    return [
        Part(path, experiment, checkpoint, attack, epsilon)
        for folder, _, _, attack, epsilon in _attack_folders(report, of)
        for path in finished_parts(folder)
    ]


def read_part(part: Part) -> pd.DataFrame:
    """Read the verdicts of one batch, all columns of ``SCHEMA``; raises BadInput as :func:`read`."""
    return _read_part(part.path, part.attack, part.epsilon, SCHEMA.names).to_pandas()


def read(report: Path, columns: Sequence[str] | None = None, *, may_be_empty: bool = False) -> pd.DataFrame:
    """Read all verdicts under ``report`` as one table: ``SCHEMA`` and, from the path, experiment and checkpoint.

    Text columns are categorical, because a large suite has tens of millions of rows.

    Args:
        columns: keep these of ``SCHEMA`` only, beside ``index``, ``attack``, ``epsilon`` and the two from the path.
        may_be_empty: return an empty table where there is no evidence yet.
    Raises:
        BadInput: no such folder, no evidence, a damaged part, a foreign column, or one image judged twice.
    """
    if not report.is_dir():
        raise BadInput(f"expected a report folder, found nothing at {report}; run `atbench run SUITE` first")
    wanted = [name for name in SCHEMA.names if columns is None or name in {"index", "attack", "epsilon", *columns}]
    groups = [_read_group(*place, wanted) for place in _attack_folders(report)]
    groups = [group for group in groups if len(group)]
    if not groups:
        if may_be_empty:
            return _empty(wanted)
        raise BadInput(f"expected evidence, found no finished part under {report / 'evidence'}; evaluate a model first")
    together = pa.concat_tables(groups).unify_dictionaries().to_pandas()
    return together.sort_values([*KEYS, "index"], ignore_index=True)


def _attack_folders(report: Path, of: str = "*/*") -> Iterator[tuple[Path, str, str, str, float]]:
    """Yield folder, experiment, checkpoint, attack and epsilon of everything attacked."""
    for folder in sorted((report / "evidence").glob(f"{of}/*@*")):
        attack, _, epsilon = folder.name.rpartition("@")
        try:
            value = float(epsilon)
        except ValueError:
            raise BadInput(f"expected a folder named ATTACK@EPSILON, found {folder}; remove or rename it") from None
        yield folder, unquote(folder.parent.parent.name), unquote(folder.parent.name), unquote(attack), value


def _read_group(
    folder: Path, experiment: str, checkpoint: str, attack: str, epsilon: float, wanted: list[str]
) -> pa.Table:
    parts = [_read_part(path, attack, epsilon, wanted) for path in finished_parts(folder)]
    if not parts:
        return _empty_table(wanted)
    table = pa.concat_tables(parts)
    judged = table.column("index").to_pandas()
    if judged.duplicated().any():
        twice = int(judged[judged.duplicated()].iloc[0])
        raise BadInput(
            f"expected one verdict per image, found image {twice} more than once in {folder}; "
            f"remove that folder and evaluate it again"
        )
    for name, value in (("experiment", experiment), ("checkpoint", checkpoint)):
        table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    for name in _TEXT:
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table.column(name).dictionary_encode())
    return table


def _read_part(path: Path, attack: str, epsilon: float, wanted: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path)
            table = file.read(columns=wanted).select(wanted).cast(pa.schema([SCHEMA.field(name) for name in wanted]))
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"expected a whole Parquet file, found a damaged one ({_line(error)}): {path}; "
            f"delete it and run again, only its batch is repeated"
        ) from error
    found = {
        (row["attack"], row["epsilon"])
        for row in table.select(["attack", "epsilon"]).group_by(["attack", "epsilon"]).aggregate([]).to_pylist()
    }
    if found - {(attack, epsilon)}:
        raise BadInput(
            f"expected verdicts of {attack} at {epsilon!r}, found those of {sorted(found)}: {path}; "
            f"move the file to the folder it belongs to, or delete it and run again"
        )
    return table


def _check_columns(found: list[str], path: Path) -> None:
    missing, foreign = sorted(set(SCHEMA.names) - set(found)), sorted(set(found) - set(SCHEMA.names))
    if missing or foreign:
        raise BadInput(
            f"expected the evidence columns {', '.join(SCHEMA.names)}, found {missing or 'none'} missing and "
            f"{foreign or 'none'} unknown: {path}; it was written by another version, evaluate again"
        )


def _empty_table(wanted: list[str]) -> pa.Table:
    fields = [SCHEMA.field(name) for name in wanted]
    return pa.schema([*fields, ("experiment", pa.string()), ("checkpoint", pa.string())]).empty_table()


def _empty(wanted: list[str]) -> pd.DataFrame:
    frame = _empty_table(wanted).to_pandas()
    return frame.astype({name: "category" for name in _TEXT if name in frame})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
