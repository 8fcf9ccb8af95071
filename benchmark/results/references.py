"""Read the bibliography that comes with the survey's tables, and write one of its entries as a line."""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib import resources

_ACCENTS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303", "c": "\u0327", "v": "\u030c"}
_LETTERS = {r"\l": "ł", r"\L": "Ł", r"\o": "ø", r"\O": "Ø", r"\ss": "ß", r"\i": "i", r"\&": "&", "--": "\N{EN DASH}"}


@cache
def references() -> Mapping[str, Mapping[str, str]]:
    """Return every entry of ``references.bib`` by its key: its fields in plain Unicode."""
    text = resources.files("benchmark.results").joinpath("survey", "references.bib").read_text("utf-8")
    starts = list(re.finditer(r"^@\w+\{([^,\s]+),", text, re.MULTILINE))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return {
        start[1]: _fields(text[start.end() : end]) for start, end in zip(starts, ends, strict=True) if start is not None
    }


def _fields(entry: str) -> dict[str, str]:
    found = {}
    for match in re.finditer(r"(\w+)\s*=\s*\{", entry):
        depth, at = 1, match.end()
        while depth and at < len(entry):
            depth += {"{": 1, "}": -1}.get(entry[at], 0)
            at += 1
        found[match[1].lower()] = _plain(entry[match.end() : at - 1])
    return found


def _plain(text: str) -> str:
    r"""Spell LaTeX's accents as letters: ``{\'e}`` is é."""
    accented = re.sub(
        r"\\(?:(['`\"^~])|([cv])\b)\s*\{?\\?([A-Za-z])\}?",
        lambda found: unicodedata.normalize("NFC", found[3] + _ACCENTS[found[1] or found[2]]),
        text,
    )
    for spelled, letter in _LETTERS.items():
        accented = accented.replace(spelled, letter)
    return " ".join(accented.replace("{", "").replace("}", "").split())


def citation(key: str) -> str:
    """Return an entry as one line: authors, title, venue, year, arXiv; "" for a key that is not there."""
    entry = references().get(key)
    if entry is None:
        return ""
    authors = [_in_order(name) for name in entry.get("author", "").split(" and ") if name]
    venue = next((entry[name] for name in ("booktitle", "journal", "howpublished") if name in entry), "")
    eprint = f"arXiv:{entry['eprint']}" if "eprint" in entry else ""
    parts = [", ".join(authors), entry.get("title", ""), ", ".join(filter(None, [venue, entry.get("year", "")]))]
    return ". ".join(part for part in [*parts, entry.get("note", ""), eprint] if part)


def _in_order(name: str) -> str:
    last, comma, first = name.partition(", ")
    return f"{first} {last}" if comma else name
