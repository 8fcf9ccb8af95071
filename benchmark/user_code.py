"""Load what users wrote in Python files of their own, and name the line of theirs that a mistake is in.

``FILE:OBJECT`` names a class or a function. Only the file that the user named is run, with its folder importable, as
Python does for a script.
"""

import ast
import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.errors import BadInput

_FOLDERS: set[Path] = set()  # from which files of the user's were loaded in this process
_OURS = {"attacks", "methods", "benchmark"}  # never a user's neighbour: their file may lie beside these folders


@dataclass(frozen=True)
class UserCode:
    """An object in a file of the user's, as the file was when the command began.

    Args:
        path: absolute; it identifies nothing, so that a file may be moved.
        name: of the class or function.
        sha256: of the file and the neighbours that it imports, so that another content is another experiment.
    """

    path: str
    name: str
    sha256: str

    @property
    def label(self) -> str:
        """Name the object for tables: ``my.py:Mine``."""
        return f"{Path(self.path).name}:{self.name}"

    @property
    def key(self) -> str:
        """Spell the object's name as keys are spelled: ``MyData`` becomes ``my_data``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.name).lower()


def is_reference(text: str) -> bool:
    """Tell ``my.py:Mine``, and a ``my.py`` that lacks its object, from a name of the project's."""
    return ":" in text or text.endswith(".py")


def anchored(text: str, folder: Path) -> str:
    """Make the file of ``FILE:OBJECT`` absolute, looking from ``folder``; other texts stay as they are."""
    path, colon, name = text.rpartition(":")
    return f"{(folder / Path(path).expanduser()).absolute()}:{name}" if colon and path else text


def find(text: str, example: str) -> UserCode:
    """Read ``FILE:OBJECT`` and take the file's fingerprint; nothing is run yet. ``example`` is such an OBJECT.

    Raises:
        BadInput: for a text without an object, or a file that is not there.
    """
    file, colon, name = text.rpartition(":")
    if not (colon and file and name):
        whole = text.strip(":") if text.strip(":").endswith(".py") else "my.py"
        raise BadInput(f"a file of your own is named with what it holds, such as {whole}:{example}, but found {text}")
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise BadInput(f"there is no file {shown(path)} (named by {shown(path)}:{name})")
    return UserCode(str(path), name, _fingerprint(path))


def load(code: UserCode, kind: str = "function") -> Any:
    """Run the file, once per process, and give its object.

    Raises:
        BadInput: where the file fails, naming the line; where it has no such ``kind`` of object; where it is not the
            file any more that ``code`` was found in.
    """
    module = _module(Path(code.path), code.sha256)
    found = getattr(module, code.name, None)
    if not callable(found):
        own = [name for name, value in vars(module).items() if _is_own(value, module) and not name.startswith("_")]
        raise BadInput(f"{shown(code.path)} has no {kind} {code.name!r}: it has {', '.join(own) or 'none'}")
    return found


def call(code: UserCode, function: Any, **words: Any) -> Any:
    """Call the user's ``function``; what goes wrong in it is :class:`BadInput`, naming the line."""
    try:
        return function(**words)
    except (Exception, SystemExit) as error:
        where = place(error, code.path) or line_of(function, code)
        raise BadInput(f"{where}: {code.name}() failed with {described(error)}") from error


def place(error: BaseException, *paths: str) -> str:
    """Name the innermost line of the user's files that ``error`` went through, ``my.py, line 12``; "" where none."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{shown(error.filename)}, line {error.lineno}" if error.lineno else shown(error.filename)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in paths:
            return f"{shown(frame.filename)}, line {frame.lineno}"
    return place(error.__cause__, *paths) if error.__cause__ is not None else ""


def line_of(found: Any, code: UserCode) -> str:
    """Name the line where ``found`` is defined, or else the user's file."""
    try:
        whole = inspect.unwrap(found)
        file, (_, line) = inspect.getsourcefile(whole), inspect.getsourcelines(whole)
    except (OSError, TypeError):
        return shown(code.path)
    return f"{shown(file or code.path)}, line {line or 1}"


def described(error: BaseException) -> str:
    """Put an error into one line, its kind first."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def shown(path: str | Path) -> str:
    """Spell a path as the user would: from where they stand, if it lies below."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _module(path: Path, sha256: str) -> ModuleType:
    """Give the module of the file; kept among Python's, where dataclasses and type hints look for it."""
    name = f"{path.stem}@{hashlib.sha256(f'{path} {sha256}'.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file() or _fingerprint(path) != sha256:
        raise BadInput(f"{shown(path)} has changed since this command began: give the command again")
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    folder = str(path.parent)
    _make_way(path)
    sys.path.insert(0, folder)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))  # no bytecode of an older file is used
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadInput(f"{place(error, str(path)) or shown(path)}: {described(error)}") from error
    finally:
        sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)  # for what it imports later; last, so that it stands before nothing of ours
    return module


def _make_way(path: Path) -> None:
    """Forget neighbours of the same name that another file of the user's brought in from its own folder."""
    for neighbour in _with_neighbours(path)[1:]:
        name = ".".join(neighbour.relative_to(path.parent).with_suffix("").parts).removesuffix(".__init__")
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and str(neighbour) != file and any(Path(file).is_relative_to(one) for one in _FOLDERS):
            del sys.modules[name]
    _FOLDERS.add(path.parent)


def _is_own(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _with_neighbours(path):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path.parent) if file != path else ''} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _with_neighbours(path: Path) -> list[Path]:
    """List the file and, sorted, what it imports from its own folder, directly or not, told without running it."""
    found, waiting = {path}, [path]
    while waiting:
        for neighbour in _imported(waiting.pop(), path.parent):
            if neighbour not in found and neighbour.is_file():
                found.add(neighbour)
                waiting.append(neighbour)
    return [path, *sorted(found - {path})]


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """Yield the files that the imports in ``file`` would be found in, if they lay below ``folder``."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # told when it is run
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, start = [alias.name for alias in node.names], folder
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
            start = file.parents[node.level - 1] if node.level else folder
        else:
            continue
        if not start.is_relative_to(folder):
            continue
        for name in names:
            parts = name.split(".")
            if start == folder and parts[0] in _OURS:
                continue
            for count in range(1, len(parts) + 1):
                whole = start.joinpath(*parts[:count])
                yield from (whole.with_name(f"{whole.name}.py"), whole / "__init__.py")
