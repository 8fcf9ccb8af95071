"""Draw the survey's figures, ours and third-party AutoAttack on one scale; returns the figure and saves nothing."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmark.report.style import INK, epsilon_text, looks, tidy, titled
from benchmark.report.summary import Summary

_PUBLISHED: dict[str, Any] = {
    "marker": "|",
    "color": "#111111",
    "markersize": 10,
    "markeredgewidth": 2.2,
    "linestyle": "none",
}
_OTHERS: dict[str, Any] = {"marker": "d", "color": "#A0A0A0", "markersize": 5.5, "linestyle": "none"}


def published_vs_measured(summary: Summary) -> Figure:
    """Give each of the 34 rows a line: printed figure, third-party AutoAttack, and ours under PGD-20 and AutoAttack.

    Where our setting is not the row's (data set, network, epsilon, attack), a gap is no failed reproduction; the column
    ``differences`` of Table 1 names what differs. Says so where nothing of the table has been measured.
    """
    rows = summary.table1
    figure = Figure(figsize=(7.6, 0.215 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    look = looks(list(dict.fromkeys([*summary.methods, *rows.method_key])))
    number = {name: pd.to_numeric(rows[name]) for name in ("accuracy_percent", "external_autoattack")}
    height = range(len(rows))
    axes.plot(number["external_autoattack"], height, zorder=2, **_OTHERS)
    axes.plot(number["accuracy_percent"], height, zorder=3, **_PUBLISHED)
    measured = rows.measured_pgd20.notna() | rows.measured_autoattack.notna()
    for place, row in zip(height, rows.to_dict("records"), strict=True):
        if not measured.iloc[place]:
            continue
        own = look[row["method_key"]]
        weak, strong = row["measured_pgd20"], row["measured_autoattack"]
        axes.plot([weak, strong], [place, place], color=own.colour, linewidth=0.8, linestyle=":", zorder=3)
        for attack in ("pgd20", "autoattack"):
            ends = [row[f"measured_{attack}_low"], row[f"measured_{attack}_high"]]
            axes.plot(ends, [place, place], color=own.colour, linewidth=2.2, alpha=0.35, zorder=3)
        elsewhere = "data set" in row["differences"]  # no reproduction of the row, and not to be read as one
        fill: dict[str, Any] = {"mfc": "white", "mec": own.colour} if elsewhere else {"mfc": own.colour, "mec": "white"}
        axes.plot([weak], [place], own.marker, color=own.colour, markersize=5, alpha=0.45, zorder=4, **fill)
        axes.plot([strong], [place], own.marker, color=own.colour, markersize=7, zorder=5, **fill)
    labels = [
        f"{summary.marked_row(row)}  ·  {row['dataset_read']} {row['eval_epsilon']}, {row['attack']}"
        for row in rows.to_dict("records")
    ]
    axes.set_yticks(list(height), labels)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-2, 102), xlabel="accuracy under attack (%)")
    tidy(axes)
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    for label, known in zip(axes.get_yticklabels(), measured, strict=True):
        label.set(color="#111111" if known else "#777777", fontweight="bold" if known else "normal")
    titled(axes, "Published against measured", _subtitle(summary, int(measured.sum())))
    _legend(figure, bool(measured.any()), bool(rows.differences.str.contains("data set").any()))
    return figure


def _subtitle(summary: Summary, measured: int) -> str:
    if measured == 0:
        return "None of the survey's rows has been measured in this suite yet."
    suite = summary.suite
    setting = f"{suite.dataset}, {suite.network}, ε = {epsilon_text(suite.headline_epsilon)}".strip(", ")
    return f"{measured} of {len(summary.table1)} rows measured (bold), in this suite's setting: {setting}"


def _legend(figure: Figure, measured: bool, elsewhere: bool) -> None:
    handles = {
        "survey, as printed": Line2D([], [], **_PUBLISHED),
        "AutoAttack by others": Line2D([], [], **_OTHERS),
    }
    if measured:
        handles["ours, PGD-20"] = Line2D([], [], marker="o", color=INK, alpha=0.45, markersize=5, linestyle="none")
        handles["ours, AutoAttack"] = Line2D([], [], marker="o", color=INK, markersize=7, mec="white", linestyle="none")
    if elsewhere:
        style: dict[str, Any] = {"marker": "o", "color": INK, "mfc": "white", "markersize": 7, "linestyle": "none"}
        handles["hollow: on another data set"] = Line2D([], [], **style)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=INK
    )
