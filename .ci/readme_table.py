"""Write into the README what is generated: the quickstart's table, and how much of the survey is here.

Also writes the list of golden cases, which the second rests on, into the package. Run it after the reference reports,
the catalogue, the recipes or the golden values changed; a test says when it was forgotten.
"""

import re
from pathlib import Path

import pandas as pd

from benchmark.report.coverage import measured_in, readable_coverage
from benchmark.report.markup import markdown_table
from benchmark.results.coverage import GOLDEN, coverage, summed_up
from benchmark.results.method_warnings import named, of_method

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports" / "reference"
COLUMNS = {"clean": "clean", "pgd20": "PGD-20", "cw20": "CW-20", "autoattack": "AutoAttack", "worst_case": "worst"}


def main() -> None:
    """Write the list, and replace what stands between the marks of each block."""
    (ROOT / "benchmark" / "results" / GOLDEN).write_text(golden())
    readme = ROOT / "README.md"
    readme.write_text(up_to_date(readme.read_text()))


def up_to_date(readme: str) -> str:
    """Return the README with its generated blocks made anew."""
    for name, text in {"quickstart": quickstart(), "coverage": survey_coverage()}.items():
        marks = re.compile(rf"(<!-- {name}:begin .*? -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        readme, replaced = marks.subn(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", readme)
        if replaced != 1:
            raise SystemExit(f"README.md has one block {name}:begin ... {name}:end, but found {replaced}")
    return readme


def golden() -> str:
    """Return the keys of the survey's methods that have golden values, a line each."""
    files = {path.stem for path in (ROOT / "tests" / "data" / "golden").glob("*.json")}
    return "".join(f"{key}\n" for key in sorted(files & set(coverage(()).method_key)))


def quickstart() -> str:
    """Return the table of what the quickstart measured, from its leaderboard."""
    board = pd.read_csv(REPORTS / "quickstart" / "leaderboard.csv")
    ranked = board[board.rank_low.notna()]
    table = pd.DataFrame({"rank": [f"{a:.0f}-{b:.0f}" for a, b in zip(ranked.rank_low, ranked.rank_high, strict=True)]})
    table["method"] = ranked.method.to_list()
    for name, title in COLUMNS.items():
        ends = zip(ranked[name], ranked[f"{name}_low"], ranked[f"{name}_high"], strict=True)
        table[title] = [f"{100 * middle:.1f} [{100 * low:.0f}, {100 * high:.0f}]" for middle, low, high in ends]
    table["passes per image"] = [f"{passes:.0f}" for passes in ranked.passes]
    first = ranked.iloc[0]
    caption = f"{first.images} test images of digits, Linf {first.epsilon:g}, {first.checkpoint} checkpoint, one seed, "
    return f"{table.to_markdown(index=False, disable_numparse=True)}\n\n{caption}AutoAttack: {first.engine}."


def survey_coverage() -> str:
    """Return the table of the survey's methods and what is here of each, rows from the report of digits-common."""
    table = coverage(measured_in(pd.read_csv(REPORTS / "digits-common" / "leaderboard.csv")))
    shown = readable_coverage(table, lambda key: named(key, of_method(key).note)).drop(columns="citation")
    linked = [f"[{key}]({file})" if file != "missing" else key for key, file in zip(shown.key, shown.file, strict=True)]
    shown = shown.assign(key=linked).drop(columns="file")
    # Links are ours, whose names are plain: everything else is escaped.
    text = markdown_table(shown.drop(columns="key"))
    keys = ["key", ":--", *linked]
    lines = [f"| {key} {line}" for key, line in zip(keys, text.splitlines(), strict=True)]
    return (
        f"{summed_up(table)}\n\n<details><summary>Method by method</summary>\n\n" + "\n".join(lines) + "\n\n</details>"
    )


if __name__ == "__main__":
    main()
