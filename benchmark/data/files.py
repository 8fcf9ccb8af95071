"""The published files of a data set: fetched only where asked for, and each seen to be right before it is read."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmark.data.errors import corrupt, missing
from benchmark.errors import BadInput

_BLOCK = 2**20


def fetch(name: str, root: Path, files: Iterable[str], download: Callable[[], object]) -> None:
    """Call ``download`` where one of ``files`` is not under ``root``; whatever goes wrong becomes BadInput."""
    if all((root / file).is_file() for file in files):
        return
    try:
        download()
    except Exception as error:  # whatever the network, the mirror or the disk came up with
        raise BadInput(
            f"{name} could not be downloaded to {root.absolute()}: {error}\n"
            f"  without a network: fetch it elsewhere, then --data-root FOLDER"
        ) from error


def verify(name: str, root: Path, files: Mapping[str, str | None]) -> None:
    """Compare the MD5 of each file under ``root`` with the published one; the first that is absent or wrong raises.

    A file whose sum is None has none that is published; it must be there, and its reader checks it.
    """
    for file in files:
        if not (root / file).is_file():
            raise missing(name, root, file)
    for file, expected in files.items():
        if expected is not None:
            _compare(name, root / file, expected)


def verify_by_archive(name: str, file: Path, expected: str) -> None:
    """Hold an unpacked file to the ``.gz`` beside it, where that was kept and has the MD5 sum ``expected``.

    gzip ends with the CRC-32 of what it holds and its length modulo 2^32 (RFC 1952, section 2.3.1): the archive need
    not be unpacked again.
    """
    archive = file.with_name(f"{file.name}.gz")
    if not archive.is_file():
        return
    _compare(name, archive, expected)
    with archive.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)
        trailer = stream.read()
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found = zlib.crc32(block, found)
    if found.to_bytes(4, "little") + (file.stat().st_size % 2**32).to_bytes(4, "little") != trailer:
        raise corrupt(name, file, f"is not what {archive.name} holds")


def _compare(name: str, file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != expected:
        raise corrupt(name, file, f"has the MD5 sum {found}, the published file {expected}")
