"""Read a method's docstring: its facts live there once, under fixed lead words, and ``atbench show`` finds them.

A paragraph may open with, or go over after a full stop into, one of these::

    Source: the paper, and where in it.
    Steps: 1. What one training step does first. 2. What it does next.
    Reading: what was chosen where paper and code differ or say nothing.
    Warning: what the literature found; the word may stand several times.
    History: the notes that the method leaves in its history.

The formula stands under ``.. math::``, the settings under ``Args:``.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from benchmark.unicode_math import readable

LEADS = ("Source", "Steps", "Reading", "Warning", "History")
_LEAD = re.compile(rf"(?:^|(?<=[.;] ))({'|'.join(LEADS)}): ")
_BLOCK = re.compile(r"^(Args|Attributes|Raises|Returns|Example):{1,2}$")


@dataclass(frozen=True)
class Description:
    """What a docstring says, as plain text in Unicode, a string for each paragraph, step, reading or warning."""

    summary: str
    equations: list[str]
    text: list[str]
    source: str
    steps: list[str]
    readings: list[str]
    warnings: list[str]
    notes: list[str]
    settings: dict[str, str]


def describe(documented: Any) -> Description:
    """Read the docstring of a class."""
    body, blocks = _blocks(inspect.cleandoc(documented.__doc__ or ""))
    body, equations = _equations(body)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", body) if part.strip()]
    found: dict[str, list[str]] = {lead: [] for lead in LEADS}
    text = []
    for paragraph in paragraphs:
        before, *led = _LEAD.split(paragraph)
        text += [plain(before)] if before.strip() else []
        for lead, said in zip(led[::2], led[1::2], strict=True):
            found[lead].append(plain(said))
    return Description(
        summary=text[0] if text else "",
        equations=[readable(equation) for equation in equations],
        text=text[1:],
        source=" ".join(found["Source"]),
        steps=[step for said in found["Steps"] for step in numbered(said)],
        readings=found["Reading"],
        warnings=found["Warning"],
        notes=found["History"],
        settings=_settings(blocks.get("Args", "")),
    )


def plain(text: str) -> str:
    """Take reStructuredText's marks off a paragraph."""
    text = re.sub(r":math:`([^`]*)`", lambda m: readable(m[1]), text)
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    return re.sub(r"``([^`]*)``", r"\1", text).strip()


def numbered(text: str) -> list[str]:
    """Split ``1. First. 2. Second.`` at the numbers that follow one another and a full stop; others stay inside."""
    steps: list[str] = []
    rest = text.strip()
    while rest:
        step, *left = re.split(rf"(?<=\.) (?={len(steps) + 2}\. )", rest, maxsplit=1)
        steps.append(step.removeprefix(f"{len(steps) + 1}. "))
        rest = left[0] if left else ""
    return steps


def _blocks(text: str) -> tuple[str, dict[str, str]]:
    """Part ``Args:`` and its like, indented below their heading, from the running text."""
    running: list[str] = []
    blocks: dict[str, list[str]] = {}
    inside: list[str] | None = None
    for line in text.splitlines():
        heading = _BLOCK.match(line)
        if heading:
            inside = blocks.setdefault(heading[1], [])
        elif inside is not None and (not line.strip() or line.startswith(" ")):
            inside.append(line)
        else:
            inside = None
            running.append(line)
    return "\n".join(running), {name: inspect.cleandoc("\n".join(lines)) for name, lines in blocks.items()}


def _equations(text: str) -> tuple[str, list[str]]:
    pattern = re.compile(r"^\.\. math::(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
    return pattern.sub("", text), [" ".join(found.split()) for found in pattern.findall(text)]


def _settings(block: str) -> dict[str, str]:
    """Read ``name: what it is``, with lines that go on indented; ``a, b: ...`` describes both."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", block):
        names, colon, said = entry.partition(":")
        if colon and re.fullmatch(r"[\w, ]+", names):
            found |= dict.fromkeys((name.strip() for name in names.split(",")), plain(" ".join(said.split())))
    return found
