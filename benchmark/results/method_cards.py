"""Read every method's card as text: to import it would take PyTorch, to copy it here would make a second truth."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WrittenCard:
    """A method's ``methods.records.Card`` as it is written: the words between its brackets, and the file they stand in.

    Args:
        file: such as ``methods/regularization/trades.py``.
    """

    words: Mapping[str, Any]
    file: str


@cache
def method_cards() -> dict[str, WrittenCard]:
    """Return the card of every method by its key."""
    home = find_spec("methods")
    folders = [] if home is None else [Path(folder) for folder in home.submodule_search_locations or []]
    files = [(folder, file) for folder in folders for file in sorted(folder.glob("*/*.py"))]
    return {
        words["key"]: WrittenCard(words, f"methods/{file.relative_to(folder).as_posix()}")
        for folder, file in files
        for words in _cards(file.read_text("utf-8"))
    }


def _cards(source: str) -> Iterator[dict[str, Any]]:
    """Yield the words of each ``card = Card(key=...)`` that stands in a class of ``source``."""
    for kind in ast.walk(ast.parse(source)):
        for line in kind.body if isinstance(kind, ast.ClassDef) else []:
            made = line.value if isinstance(line, ast.Assign) else None
            if isinstance(made, ast.Call) and ast.unparse(made.func) == "Card":
                yield {str(word.arg): ast.literal_eval(word.value) for word in made.keywords}
