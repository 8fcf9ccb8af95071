"""Write a file so that it is either whole or absent, whatever moment the process dies."""

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> Path:
    """Put ``content`` at ``path`` through a temporary name in the same folder; missing folders are made.

    The temporary name starts with a dot and ends in ``.tmp``, so no reader of ours takes a leftover for a result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the bytes do, and leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Put ``text`` at ``path`` as UTF-8, the same way."""
    return write_bytes(path, text.encode("utf-8"))
