"""What the cards of single-step methods say of catastrophic overfitting, for tables, page and console.

The rule itself is applied where a method is trained; cards keep what it found.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

EPOCHS = ["method", "seed", "fold", "epoch", "held_out_clean", "held_out_fgsm", "held_out_pgd10", "mark"]
_COLLAPSE, _LEAKING = "catastrophic overfitting", "label leaking"


def epochs(cards: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one line per epoch of each experiment that was watched, accuracies as fractions; columns EPOCHS."""
    lines = []
    for card in cards:
        for line in card.get("history") or []:
            if "held_out_fgsm" in line:
                run = {"method": card["method"], "seed": card["seed"], "fold": card.get("fold") or 0}
                lines.append({**run, **line, "mark": "; ".join(_marks(card, int(line["epoch"])))})
    return pd.DataFrame(lines, columns=EPOCHS)


def _marks(card: Mapping[str, Any], epoch: int) -> list[str]:
    found = [_COLLAPSE] if card.get("catastrophic_overfitting") == epoch else []
    return [*found, _LEAKING] if epoch in (card.get("label_leaking") or []) else found


def of_checkpoint(cards: Iterable[Mapping[str, Any]], checkpoint: str) -> tuple[int | None, str]:
    """Return the earliest epoch of a collapse before or at which a checkpoint was taken, and the row's mark in words.

    Args:
        cards: of one method, one per trained network; the mark says how many of several it holds for.
    """
    cards = list(cards)
    collapses, leaking = [], 0
    for card in cards:
        taken = dict(dict(card.get("weights") or {}).get(checkpoint) or {}).get("epoch")
        collapse = card.get("catastrophic_overfitting")
        if collapse is not None and (taken is None or taken >= collapse):
            collapses.append(int(collapse))
        leaking += taken is not None and taken in (card.get("label_leaking") or [])
    words = [f"{_COLLAPSE} in epoch {min(collapses)}{_share(len(collapses), len(cards))}"] if collapses else []
    words += [f"{_LEAKING}{_share(leaking, len(cards))}"] if leaking else []
    return (min(collapses) if collapses else None), "; ".join(words)


def _share(count: int, of: int) -> str:
    return f" ({count} of {of} networks)" if of > 1 else ""


def sentences(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each experiment that collapsed, with the epochs of its checkpoints."""
    return [_sentence(card) for card in cards if card.get("catastrophic_overfitting") is not None]


def _sentence(card: Mapping[str, Any]) -> str:
    epoch = int(card["catastrophic_overfitting"])
    curve = {int(line["epoch"]): line for line in card.get("history") or [] if "held_out_pgd10" in line}
    fall = ""
    if epoch in curve:
        highest = max(line["held_out_pgd10"] for at, line in curve.items() if at < epoch)
        figures = (highest, curve[epoch]["held_out_pgd10"], curve[epoch]["held_out_fgsm"])
        before, now, fgsm = (f"{100 * figure:.1f}" for figure in figures)
        fall = f", PGD-10 on held-out images fell from {before} to {now} %, FGSM is {fgsm} %"
    kept = {name: dict(dict(card.get("weights") or {}).get(name) or {}).get("epoch") for name in ("last", "best")}
    taken = [f"`{name}` is of epoch {taken_in}" for name, taken_in in kept.items() if taken_in is not None]
    who = f"{card['method']} seed {card['seed']}" + (f" fold {card['fold']}" if card.get("fold") else "")
    return f"{who}: {_COLLAPSE} in epoch {epoch} (from 0){fall}" + (f"; {', '.join(taken)}" if taken else "")
