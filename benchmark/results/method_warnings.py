"""What a reader must be warned of at a method's name and beside its row; known of methods that were never run too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.results.method_cards import method_cards
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
    card = method_cards().get(method_of(row))
    return Warned() if card is None else Warned(card.words.get("reconstruction", False), card.words.get("broken", ""))


def named(method: str, note: str) -> str:
    """Write a method's name for readers: ``fgsmr (reconstruction)``."""
    return f"{method} ({note})" if note else method
