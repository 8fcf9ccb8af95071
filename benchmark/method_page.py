"""Write what is known of one method as a page of text for a terminal: paper, formula, steps, settings, figures.

Nothing of it is written here: the method's docstring, the bibliography and the survey's tables hold it.
"""

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from benchmark import own_method, user_code
from benchmark.docstrings import describe
from benchmark.results import survey
from benchmark.results.method_warnings import Warned, named
from benchmark.results.references import citation
from benchmark.settings import resolve

_WIDEST = 110  # longer lines are hard to follow with the eye


def page(key: str, width: int | None = None) -> str:
    """Describe a method, the project's or a user's FILE:CLASS.

    Args:
        width: of the lines in characters; by default the terminal's, or 80 where there is none, as in a pipe.

    Raises:
        BadInput: for an unknown key, with the nearest.
    """
    code = user_code.find(key, "Mine") if user_code.is_reference(key) else None
    found = own_method.find(key, code)
    said, card, key = describe(found), found.card, found.card.key
    lines = _Lines(max(40, min(width or shutil.get_terminal_size().columns, _WIDEST)))
    warned = Warned(card.reconstruction, card.broken)
    lines.say(
        f"{named(key, warned.note)}: {found.__name__}, category {card.category}, ranked in class {card.comparison}"
    )
    lines.gap()
    lines.say(said.summary)
    lines.section("Paper", [citation(card.citation), f"Source: {said.source}" if said.source else ""])
    lines.section("Objective", [*said.equations, *said.text], capitals=False)
    lines.section("One training step", said.steps, marks="{}. ")
    lines.section("Reading chosen", said.readings)
    lines.section("Warnings", [*warned.sentences, *said.warnings], marks="- ")
    lines.section("Noted in its history, epoch by epoch", said.notes, capitals=False)
    lines.gap()
    lines.say("Settings and their defaults (a suite sets inner.steps)")
    _settings(lines, resolve(key, {}, 10, code), said.settings)
    _published(lines, key)
    _third_parties(lines, key)
    return "\n".join(lines.written)


class _Lines:
    """Text wrapped to a width, as it grows."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.written: list[str] = []

    def say(self, text: str, first: str = "", after: str = "") -> None:
        """Add a paragraph: ``first`` stands before its first line, ``after`` before the others."""
        wrapped = textwrap.wrap(
            text, self.width, initial_indent=first, subsequent_indent=after, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        self.written += wrapped

    def gap(self) -> None:
        self.written.append("")

    def section(self, heading: str, paragraphs: list[str], *, marks: str = "", capitals: bool = True) -> None:
        """Add a heading and its paragraphs, each behind a mark with its number; nothing where there are none."""
        paragraphs = [text for text in paragraphs if text]
        if not paragraphs:
            return
        self.gap()
        self.say(heading)
        for number, text in enumerate(paragraphs, 1):
            mark = marks.format(number)
            self.say(text[:1].upper() + text[1:] if capitals else text, f"  {mark}", "  " + " " * len(mark))

    def pairs(self, pairs: Mapping[str, str], indent: str = "  ") -> None:
        """Add names with what is said of them in a second column; a name of which nothing is said is left out."""
        known = {name: text for name, text in pairs.items() if text}
        column = max((len(name) for name in known), default=0) + 2
        for name, text in known.items():
            self.say(text, f"{indent}{name:<{column}}", indent + " " * column)


def _settings(lines: _Lines, settings: Mapping[str, Any], said: Mapping[str, str]) -> None:
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found[name] = said.get(name, "")
            found |= {f"{name}.{part}": _shown(one) for part, one in value.items()}
        else:
            found[name] = f"{_shown(value)}: {said[name]}" if name in said else _shown(value)
    lines.pairs(found or {"none": "it has no settings of its own"})


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _published(lines: _Lines, key: str) -> None:
    table = survey.table1()
    rows = table[table.method_key == key].to_dict("records")
    lines.gap()
    lines.say("Published: the survey's Table 1 (nothing of it was measured here)")
    if not rows:
        lines.say("none: the survey's table has no row of it", "  ", "  ")
    for row in rows:
        lines.pairs(_row({str(name): str(cell) for name, cell in row.items()}))


def _row(row: Mapping[str, str]) -> dict[str, str]:
    """Give a row of Table 1 as it is printed, and as it should be read; cells that nobody knows are left out."""
    accuracy = f"{row['accuracy_percent']} %" if row["accuracy_percent"] else "accuracy missing in our copy"
    attack = {
        "": {"ce": "cross-entropy", "margin": "margin loss"}.get(row["eval_loss"], row["eval_loss"]),
        "steps": row["eval_steps"],
        "of": row["eval_step_size"],
        "random start": row["eval_random_start"],
        "starts": row["eval_restarts"],
        "iterate that counts:": row["eval_iterate"],
        "targeted:": row["eval_targeted"],
        "made on": row["transfer_source"],
    }
    words = {
        "steps": f"{attack['steps']} steps" + (f" of {attack['of']}" if attack["of"] else ""),
        "random start": {"yes": "random start", "no": "no random start"}.get(attack["random start"], ""),
        "starts": f"{attack['starts']} start" + ("s" if attack["starts"] != "1" else ""),
        "targeted:": {"yes": "targeted", "no": "untargeted"}.get(attack["targeted:"], ""),
    }
    parts = [words.get(name, f"{name} {value}".strip()) for name, value in attack.items() if value and name != "of"]
    elsewhere = row["accuracy_other_source"]
    return {
        "as printed": f"row {row['order']}: {row['architecture']}, {row['attack']}, epsilon {row['epsilon']}, "
        f"{row['dataset']}: {accuracy}",
        "from elsewhere": f"{elsewhere}; not the survey's figure, though it would fit the row" if elsewhere else "",
        "to be read as": f"{row['network_read']} on {row['dataset_read']}, "
        f"trained at epsilon {row['train_epsilon'] or 'unknown'}, attacked at {row['eval_epsilon'] or 'unknown'}",
        "attack": ", ".join(parts),
        "variant": row["variant"],
        "checkpoint": row["checkpoint"],
        "extra data": row["extra_data"],
        "sure of that": row["reading_confidence"],
        "comparable": row["comparable_with_standard"],
        "note": row["note"],
    }


def _third_parties(lines: _Lines, key: str) -> None:
    table = survey.external_autoattack()
    rows = table[table.method_key == key].to_dict("records")
    lines.gap()
    lines.say("AutoAttack by third parties, accuracies in percent")
    if not rows:
        lines.say("none that we know of", "  ", "  ")
    for row in rows:
        if not row["autoattack_acc"]:
            lines.say(f"none: {row['note']}", "  ", "    ")
            continue
        data = " with extra data" if row["extra_data"] == "True" else ""
        setting = [row["architecture"], row["dataset"] + data, f"epsilon {row['epsilon']}" if row["epsilon"] else ""]
        source = f"{row['source']} {row['model_id']}".strip()
        clean = f", clean {row['clean_acc']}" if row["clean_acc"] else ""
        text = f"{row['autoattack_acc']}{clean}: {', '.join(filter(None, setting))}; {source}"
        lines.say(text + (f"; {row['note']}" if row["note"] else ""), "  ", "    ")
