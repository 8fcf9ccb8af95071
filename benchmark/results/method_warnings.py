"""What a reader must be warned of at a method's name and beside its row; known of methods that were never run too."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmark.results.rows import method_of

RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True)
class Warned:
    """What a method's card (``methods.records.Card``) warns of.

    Args:
        reconstruction: built from a paper whose code is not public and whose formulas could not be checked.
        broken: what a strong attack is known to leave, one sentence with the figure; empty where nothing is known.
    """

    reconstruction: bool = False
    broken: str = ""

    @property
    def note(self) -> str:
        """The word that stands at the method's name, ``reconstruction``; empty for most."""
        return RECONSTRUCTION if self.reconstruction else ""

    @property
    def sentences(self) -> list[str]:
        """What a page about the method says, in full."""
        rebuilt = "a reconstruction: its authors' code is not public, and its formulas could not all be checked."
        return [rebuilt] * self.reconstruction + [f"{self.broken.rstrip('.')}."] * bool(self.broken)


def of_run(card: Mapping[str, Any]) -> Warned:
    """Give what the card of a run warns of; where it was written by an older version, what the catalogue does."""
    if card.get("reconstruction") is None:
        return of_method(str(card["method"]))
    return Warned(bool(card["reconstruction"]), str(card.get("broken") or ""))


def of_method(row: str) -> Warned:
    """Give what the catalogue's method of a ``row``, ``trades``, ``trades/beta_1`` or ``trades@200``, warns of."""
    return _catalogue().get(method_of(row), Warned())


def named(method: str, note: str) -> str:
    """Write a method's name for readers: ``fgsmr (reconstruction)``."""
    return f"{method} ({note})" if note else method


@cache
def _catalogue() -> dict[str, Warned]:
    """Read every method's card as text: to import it would take PyTorch, to copy it here would make a second truth."""
    home = find_spec("methods")
    folders = [] if home is None else list(home.submodule_search_locations or [])
    files = (file for folder in folders for file in sorted(Path(folder).glob("*/*.py")))
    found = (card for file in files for card in _cards(file.read_text("utf-8")))
    return {card["key"]: Warned(card.get("reconstruction", False), card.get("broken", "")) for card in found}


def _cards(source: str) -> Iterator[dict[str, Any]]:
    """Yield the words of each ``card = Card(key=...)`` that stands in a class of ``source``."""
    for kind in ast.walk(ast.parse(source)):
        for line in kind.body if isinstance(kind, ast.ClassDef) else []:
            made = line.value if isinstance(line, ast.Assign) else None
            if isinstance(made, ast.Call) and ast.unparse(made.func) == "Card":
                yield {str(word.arg): ast.literal_eval(word.value) for word in made.keywords}
