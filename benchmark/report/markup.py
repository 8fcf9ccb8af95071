"""Write tables as CSV for programs and as Markdown and LaTeX for readers; returns text and saves nothing."""

import re
from collections.abc import Callable

import pandas as pd
from tabulate import tabulate

_NOTED = {  # column of methods' names: that of what is said of them
    **{"method": "method_note", "method_key": "method_note"},
    **{name: f"{name}_note" for name in ("against", "lower", "oracle")},
}
_LATEX = {
    **{"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"|": r"\textbar{}", "\N{EN DASH}": "--", "…": r"\ldots{}", "ε": r"$\epsilon$", "·": r"$\cdot$"},
}


def csv(table: pd.DataFrame, suite_note: str, method_note: Callable[[str], str]) -> str:
    """Return ``table`` as CSV, with columns of their own for what readers must be told, where no parser trips on it.

    Behind each column of methods' names stands what ``method_note`` says of them, such as ``reconstruction``; the
    suite's warning is the last column, ``suite_note``. Columns of the attack of a row of Table 1 are there only where a
    published recipe was measured.
    """
    seldom = [name for name in table.columns if re.fullmatch(r"(measured_)?row(_low|_high)?", str(name))]
    table = table.drop(columns=seldom) if table[seldom].isna().all(axis=None) else table
    noted = table.assign(suite_note=suite_note)
    for name, note in _NOTED.items():
        if name in noted:
            noted.insert(list(noted.columns).index(name) + 1, note, [method_note(method) for method in noted[name]])
    return noted.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def markdown(table: pd.DataFrame, title: str, track: str, note: str, foot: str = "") -> str:
    """Return a Markdown page of strings: heading, track, the suite's warning, the table, ``foot``; all escaped."""
    warning = f"> **{markdown_escaped(note)}**\n\n" if note else ""
    below = f"\n{markdown_escaped(foot)}\n" if foot else ""
    above = f"# {markdown_escaped(title)}\n\nTrack: {markdown_escaped(track)}\n\n{warning}"
    return f"{above}{markdown_table(table)}\n{below}"


def markdown_table(table: pd.DataFrame) -> str:
    """Return a Markdown table of strings; no name breaks out of it."""
    cells = [[markdown_escaped(cell) for cell in row] for row in table.itertuples(index=False)]
    headings = [markdown_escaped(name) for name in table.columns]
    return tabulate(cells, headings, tablefmt="pipe", disable_numparse=True)


def latex(table: pd.DataFrame, title: str, track: str, note: str, label: str, foot: str = "") -> str:
    """Return a LaTeX table of strings for ``booktabs``, its caption with track, the suite's warning and ``foot``."""
    caption = f"{title}. Track: {track}." + (f" {note[0].upper()}{note[1:]}." if note else "")
    caption += f" {foot}" if foot else ""
    escaped = table.map(latex_escaped).rename(columns=latex_escaped)
    text = escaped.to_latex(
        index=False, escape=False, caption=latex_escaped(caption), label=label, column_format="l" * len(table.columns)
    )
    return "% needs \\usepackage{booktabs}\n" + text


def latex_escaped(text: str) -> str:
    """Spell ``text`` so that LaTeX prints every character and obeys none."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def markdown_escaped(text: str) -> str:
    """Spell ``text`` so that Markdown prints it; an underscore inside a word is left, for there it means nothing."""
    text = re.sub(r"([\\`*|]|(?<=\])\()", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text).split())
