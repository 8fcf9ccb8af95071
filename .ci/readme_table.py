"""Write the quickstart's table into the README from the leaderboard that the quickstart measured."""

import re
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {"clean": "clean", "pgd20": "PGD-20", "cw20": "CW-20", "autoattack": "AutoAttack", "worst_case": "worst"}


def main() -> None:
    """Replace what stands between the two marks."""
    board = pd.read_csv(ROOT / "reports" / "reference" / "quickstart" / "leaderboard.csv")
    ranked = board[board.rank_low.notna()]
    table = pd.DataFrame({"rank": [f"{a:.0f}-{b:.0f}" for a, b in zip(ranked.rank_low, ranked.rank_high, strict=True)]})
    table["method"] = ranked.method.to_list()
    for name, title in COLUMNS.items():
        ends = zip(ranked[name], ranked[f"{name}_low"], ranked[f"{name}_high"], strict=True)
        table[title] = [f"{100 * middle:.1f} [{100 * low:.0f}, {100 * high:.0f}]" for middle, low, high in ends]
    table["passes per image"] = [f"{passes:.0f}" for passes in ranked.passes]
    first = ranked.iloc[0]
    caption = f"{first.images} test images of digits, Linf {first.epsilon:g}, {first.checkpoint} checkpoint, one seed, "
    text = f"{table.to_markdown(index=False, disable_numparse=True)}\n\n{caption}AutoAttack: {first.engine}."
    readme = ROOT / "README.md"
    marks = re.compile(r"(<!-- quickstart:begin .*? -->\n).*?(<!-- quickstart:end -->)", re.DOTALL)
    readme.write_text(marks.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", readme.read_text()))


if __name__ == "__main__":
    main()
