"""Draw how methods generalise, and what they trade; each function returns a figure and saves nothing."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmark.report.generalization import ATTACKS
from benchmark.report.marks import BARS, IN_A_COLUMN, errors, legend, markers
from benchmark.report.style import (
    FAINT,
    INK,
    MANY,
    Look,
    epsilon_text,
    looks,
    nothing_to_show,
    percent,
    short,
    tidy,
    titled,
)
from benchmark.report.summary import Summary
from benchmark.report.tradeoff import NATURAL
from benchmark.results.method_warnings import named

_NO_NATURAL = "There is no row of natural training, fully attacked, to hold the methods against."


def generalization(summary: Summary) -> Figure:
    """Follow training (dashed) and test accuracy over the epochs, clean and under PGD-10, ``best`` and ``last`` marked.

    Many methods get a row of panels per category, with the test curves of the others as a faint backdrop. Of several
    networks of a method the curve is that of all together, and each has marks of its own.
    """
    title, lines = "Generalisation over the epochs", summary.generalization
    if lines.empty:
        return nothing_to_show(title, "This suite did not ask for curves, or nothing has been trained yet.")
    methods = [method for method in summary.methods if (lines.method == method).any()]
    groups = {"": methods}
    if len(methods) > MANY:
        groups = {}
        for method in methods:
            groups.setdefault(summary.categories.get(method) or "other", []).append(method)
    longest = max(map(len, groups.values()))
    high = max(2.4 if len(groups) > 1 else 3.6, 0.16 * min(longest, IN_A_COLUMN) + 0.5)
    figure = Figure(figsize=(9.4 + 1.6 * (longest // IN_A_COLUMN), high * len(groups) + 0.9), layout="constrained")
    grid = figure.subplots(len(groups), len(ATTACKS), sharex=True, sharey=True, squeeze=False)
    look, labels = looks(summary.methods), _labels(summary)
    radius = lines.epsilon.max()
    for row, (group, members) in zip(grid, groups.items(), strict=True):
        for axes, attack in zip(row, ATTACKS, strict=True):
            own = lines[lines.attack == attack]
            for method in methods:
                if method not in members:
                    _curve(axes, own[own.method == method], None)
            for method in members:
                _curve(axes, own[own.method == method], look[method])
            percent(axes.yaxis)
            axes.set_ylim(-0.02, 1.02)
            axes.set(xlabel="epoch, counted from 0", ylabel="accuracy")
            axes.label_outer()
            tidy(axes)
            under = "clean" if attack == "clean" else f"PGD-10, ε = {epsilon_text(radius)}"
            titled(axes, f"{group.replace('_', ' ')}: {under}" if group else under)
        ends = {method: _last(lines, method) for method in members}
        legend(row[-1], sorted(members, key=lambda method: -ends[method]), look, labels)
    figure.suptitle(f"{title}: {summary.suite.dataset}", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.legend(handles=_key(), loc="outside lower left", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
    return figure


def _curve(axes: Axes, lines: pd.DataFrame, look: Look | None) -> None:
    for split, dashes in (("train", (0, (4, 2))), ("test", "solid")):
        own = lines[lines.split == split]
        sums = own.groupby("epoch").agg(correct=("correct", "sum"), images=("images", "sum"), runs=("correct", "size"))
        whole = sums[sums.runs == sums.runs.max()]  # an epoch that one seed alone kept is marked, not joined
        accuracy = whole.correct / whole.images
        if look is None:
            if split == "test":
                axes.plot(whole.index, accuracy, color=FAINT, linewidth=0.7, zorder=1)
            continue
        faint = 0.55 if split == "train" else 1.0
        axes.plot(whole.index, accuracy, color=look.colour, linewidth=1.3, linestyle=dashes, alpha=faint, zorder=3)
        for name, marker, size in (("last", look.marker, 5.0), ("best", "*", 9.0)):
            kept = own[own.checkpoint.str.contains(name)]
            markers(axes, kept.epoch, kept.accuracy, Look(look.colour, marker), [False] * len(kept), size=size)


def _last(lines: pd.DataFrame, method: str) -> float:
    own = lines[(lines.method == method) & (lines.attack == "pgd10") & (lines.split == "test")]
    return float(own[own.checkpoint.str.contains("last")].accuracy.mean())


def _key() -> list[Line2D]:
    grey = "#666666"
    return [
        Line2D([], [], color=grey, linestyle=(0, (4, 2)), alpha=0.7, label="training images"),
        Line2D([], [], color=grey, label="test images"),
        Line2D(
            [], [], color=grey, marker="*", linestyle="none", mec="white", markersize=9, label="best (held-out images)"
        ),
        Line2D([], [], color=grey, marker="o", linestyle="none", mec="white", markersize=6, label="last"),
    ]


def tradeoff(summary: Summary) -> Figure:
    """Scatter the robust accuracy won over natural training against the clean accuracy lost, with 95% intervals."""
    title, suite = "What robustness costs in clean accuracy", summary.suite
    rows = summary.tradeoff[summary.tradeoff.epsilon == suite.headline_epsilon]
    if rows.empty:
        return nothing_to_show(title, _NO_NATURAL)
    figure = Figure(figsize=(7.2 + 1.6 * (len(rows) // IN_A_COLUMN), 4.4), layout="constrained")
    axes, look = figure.subplots(), looks(summary.methods)
    bars = BARS | {"alpha": 0.55 if len(rows) <= 2 * MANY else 0.2}
    for line in rows.to_dict("records"):
        own = look[line["method"]]
        x, y = [100 * line["clean_lost"]], [100 * line["robust_won"]]
        if line["method"] != NATURAL:
            across, up = (
                errors(at, [100 * line[f"{name}_low"]], [100 * line[f"{name}_high"]])
                for at, name in ((x, "clean_lost"), (y, "robust_won"))
            )
            axes.errorbar(x, y, xerr=across, yerr=up, color=own.colour, **bars)
        markers(axes, x, y, own, [False], size=6.5)
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    axes.axvline(0, color="#999999", linewidth=0.8, zorder=1)
    axes.set(xlabel="clean accuracy lost (points)", ylabel="robust accuracy won (points, worst case)")
    tidy(axes)
    where = f"against natural training, ε = {epsilon_text(suite.headline_epsilon)}, {suite.dataset}"
    titled(axes, title, f"{where}, {suite.ranked_checkpoint} checkpoint, 95% intervals")
    legend(axes, rows.method, look, _labels(summary, suite.headline_epsilon))
    return figure


def _labels(summary: Summary, epsilon: float | None = None) -> dict[str, str]:
    return {method: named(short(method), summary.notes(method, epsilon=epsilon)) for method in summary.methods}
