"""Files that are whole or not there: everything is written to a temporary name and renamed."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmark.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on leaving the block it is flushed to disk and takes ``path``'s name.

    Raises:
        BadInput: when the disk is full, naming the file; what stood at ``path`` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"no space left for {path}: free some and start the same command again, it goes on where it stopped"
            ) from error
        raise
    finally:
        with suppress(OSError):  # its folder may be what failed
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content``, whole or not at all, and give the path."""
    with atomically(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` as UTF-8, whole or not at all, and give the path."""
    return write_bytes(path, text.encode("utf-8"))


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write plain values in the given order."""
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of plain values.

    Raises:
        BadInput: when the file is missing, is no YAML, or holds something else than a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise BadInput(f"{path}{line} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds key: value pairs, but found {type(values).__name__}")
    return values


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process alone; the lock goes with the process, however it ends.

    Raises:
        BadInput: when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another atbench is writing to {folder}: wait for it, or choose another folder") from None
        yield


@contextmanager
def not_being_written(folder: Path) -> Iterator[None]:
    """Keep other processes from locking ``folder`` while it is read; nothing is written.

    Raises:
        BadInput: when another process holds it.
    """
    try:
        file = (folder / ".lock").open("rb")
    except FileNotFoundError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another atbench is writing to {folder}: wait for it") from None
        yield


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(path: Path, weights: "dict[str, Tensor]") -> str:
    """Write weights as safetensors and give the file's SHA-256."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    return sha256(write_bytes(path, save(plain)))  # not save_file, whose error does not tell that the disk is full


def load_weights(path: Path) -> "dict[str, Tensor]":
    """Read weights from safetensors, or from a PyTorch file without executing anything in it.

    A PyTorch file may hold the state dict itself or keep it under ``state_dict``; DataParallel's prefix goes.

    Raises:
        BadInput: when the file is missing, truncated, or holds something else than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadInput(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            weights: Any = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, _unpickling_error()) as error:
        if "Weights only load failed" in str(error):  # nothing in the file was executed
            raise BadInput(
                f"{path} holds Python objects, not only tensors, or is no PyTorch file at all: "
                "save the state dict alone, torch.save(network.state_dict(), path)"
            ) from None
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise BadInput(f"{path} is no readable weights file, it may be truncated ({reason}): copy it again") from None
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise BadInput(f"a weights file holds a state dict, names to tensors, but {path} holds {_content(weights)}")
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _content(found: Any) -> str:
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    name, value = next((name, value) for name, value in found.items() if not hasattr(value, "shape"))
    return f"a {type(value).__name__} under {str(name)!r}"


def _unpickling_error() -> type[Exception]:
    import pickle

    return pickle.UnpicklingError
