"""Keep the SHA-256 of every file of a report, so that one byte altered anywhere is found.

``manifest.json`` is written when the report is built, behind all other files. Evidence once recorded keeps its hash
through later builds: tables may be made anew from a part that was altered, but not pass for those of the part that was
measured. A batch that was deleted is forgotten, and recorded anew once it has been repeated; so are the findings of
probes, from which the marks of credibility follow. A README.md is the reader's own and not recorded.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmark.errors import BadInput
from benchmark.results.finding import Finding
from benchmark.storage import sha256, write_text

NAME = "manifest.json"
_NOT_RECORDED = {NAME, "README.md"}
_MAY_BE_LEFT_OUT = {"index.html"}  # megabytes that `atbench report` makes anew: committed reports go without it
_BATCH = re.compile(r"(evidence/.+/part-\d{5,})\..+")  # verdicts, pictures and log of one batch
_PROBES = re.compile(r"credibility/.+\.json")


def write(report: Path) -> Path:
    """Record every file of ``report``; evidence and probes that are recorded already are not looked at again."""
    before = _recorded(report) or {}
    kept = {name: digest for name, digest in before.items() if _BATCH.fullmatch(name) or _PROBES.fullmatch(name)}
    return _write(report, {name: kept.get(name) or sha256(report / name) for name in _present(report)})


def forget_missing(report: Path) -> None:
    """Forget batches whose verdicts are gone, before they are repeated: their new files are no alteration."""
    before = _recorded(report)
    if before is None:
        return
    kept = {name: digest for name, digest in before.items() if _verdicts_are_there(report, name)}
    if kept != before:
        _write(report, kept)


def forget(report: Path, paths: Iterable[Path]) -> None:
    """Forget files of the report that are about to be made anew: what they will say is no alteration."""
    before, names = _recorded(report), {path.relative_to(report).as_posix() for path in paths}
    if before is not None and names & before.keys():
        _write(report, {name: digest for name, digest in before.items() if name not in names})


def exists(report: Path) -> bool:
    """Whether the report has a manifest; those of older versions have none."""
    return (report / NAME).is_file()


def altered(report: Path) -> Iterator[Finding]:
    """Yield each file that is not as it was recorded: another content, gone (but the page), or not recorded."""
    try:
        recorded = _recorded(report) or {}
    except BadInput as error:
        yield Finding(NAME, "the manifest as atbench wrote it", str(error))
        return
    if (report / NAME).read_bytes() != _text(recorded).encode():
        yield Finding(NAME, "the manifest as atbench wrote it", "other bytes")
    present = set(_present(report))
    for name in sorted(recorded):
        if name not in present:
            if name in _MAY_BE_LEFT_OUT:
                continue
            yield Finding(name, f"a file with SHA-256 {_shown(recorded[name])}", "none")
        elif (found := sha256(report / name)) != recorded[name]:
            yield Finding(name, f"SHA-256 {_shown(recorded[name])}", _shown(found))
    for name in sorted(present - set(recorded)):
        if name.startswith(("evidence/", "experiments/", "credibility/", "curves/")):  # what the tables rest on
            yield Finding(
                name, f"a file that {NAME} records", "one that it does not (`atbench report` records what a kill left)"
            )


def _present(report: Path) -> list[str]:
    """List the files of a report that are recorded: not hidden ones, nor what an unfinished attack has so far."""
    paths = (path.relative_to(report) for path in report.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.as_posix() not in _NOT_RECORDED
        and not any(part.startswith(".") or part.endswith(".unfinished") for part in path.parts)
    )


def _verdicts_are_there(report: Path, name: str) -> bool:
    batch = _BATCH.fullmatch(name)
    return batch is None or (report / f"{batch[1]}.parquet").is_file()


def _recorded(report: Path) -> dict[str, str] | None:
    path = report / NAME
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, " ".join(str(error).split())) from None
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise _unreadable(path, "no list of files and their SHA-256")
    return files


def _unreadable(path: Path, reason: str) -> BadInput:
    return BadInput(
        f"{path} is damaged ({reason}): take it from a copy, or delete it and `atbench report` writes it anew"
    )


def _write(report: Path, files: dict[str, str]) -> Path:
    return write_text(report / NAME, _text(files))


def _text(files: dict[str, str]) -> str:
    return json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n"


def _shown(digest: str) -> str:
    return digest[:12]
