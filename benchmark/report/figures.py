"""Draw a report's figures; each function returns a figure and saves nothing."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.report.attack_names import readable
from benchmark.report.marks import BARS, IN_A_COLUMN, errors, legend, markers, names_at_the_end
from benchmark.report.style import (
    FAINT,
    MANY,
    Look,
    epsilon_text,
    in_255ths,
    looks,
    nothing_to_show,
    percent,
    short,
    tidy,
    titled,
)
from benchmark.report.summary import Summary
from benchmark.report.unseen import heat_map
from benchmark.results.method_warnings import named
from benchmark.results.worst_case import DEVELOPMENT, WORST_CASE

LADDER = [
    *("clean", "pgd20", "pgd20_any", "cw20", "cw_l2"),
    *("autoattack_custom", "autoattack_rand", "autoattack", "autoattack_plus"),
]


def clean_vs_robust(summary: Summary) -> Figure:
    """Scatter clean against worst-case accuracy at the headline epsilon, one point a method, with 95% intervals."""
    title = "Clean against robust accuracy"
    board = _headline(summary).dropna(subset=["clean", WORST_CASE])
    if board.empty:
        return nothing_to_show(title, "No method has both figures yet.")
    figure = Figure(figsize=(7.2 + 1.6 * (len(board) // IN_A_COLUMN), 4.4), layout="constrained")
    axes = figure.subplots()
    _points(axes, board, "clean", looks(summary.methods))
    percent(axes.xaxis)
    axes.set(xlabel="clean accuracy", ylabel="robust accuracy (worst case over attacks)")
    _finish(axes, title, _setting(summary))
    legend(axes, board.method, looks(summary.methods), _names(summary, summary.suite.headline_epsilon))
    return figure


def cost_vs_robustness(summary: Summary) -> Figure:
    """Scatter training passes per image against worst-case accuracy: the one view that shows all classes together."""
    title = "What robustness costs"
    board = _headline(summary).dropna(subset=["passes", WORST_CASE])
    board = board[board.passes.astype(float) > 0]
    if board.empty:
        return nothing_to_show(title, "No method has both its training passes and its robust accuracy yet.")
    figure = Figure(figsize=(7.2 + 1.6 * (len(board) // IN_A_COLUMN), 4.4), layout="constrained")
    axes = figure.subplots()
    _points(axes, board.assign(passes=board.passes.astype(float)), "passes", looks(summary.methods))
    axes.set_xscale("log")
    low, high = board.passes.astype(float).min(), board.passes.astype(float).max()
    axes.set_xlim(low / 1.6, high * 1.6)  # a single method would otherwise get an axis of decades
    ticks = [m * 10.0**e for e in range(-1, 8) for m in (1, 2, 5) if low / 1.6 <= m * 10.0**e <= high * 1.6]
    axes.set_xticks(ticks, [f"{tick:,.6g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel="training passes per image (forward + backward)", ylabel="robust accuracy (worst case over attacks)"
    )
    _finish(axes, title, _setting(summary))
    names = _names(summary, summary.suite.headline_epsilon)
    labels = {method: f"{name}  ({summary.classes.get(method)})" for method, name in names.items()}
    legend(axes, board.method, looks(summary.methods), labels)
    return figure


def accuracy_over_epsilon(summary: Summary) -> Figure:
    """Draw the worst-case accuracy and its 95% band against epsilon, a line a method; carried verdicts are open."""
    title = "Robust accuracy against epsilon"
    own = summary.figures[summary.figures.checkpoint == summary.suite.ranked_checkpoint]
    lines = own[(own.attack == WORST_CASE) | (own.attack == "clean")].sort_values("epsilon")
    if not (lines.attack == WORST_CASE).any():
        quick = own.attack.isin(DEVELOPMENT).any()
        only = "but by the development attack, which no curve rests on" if quick else "yet"
        return nothing_to_show(title, f"No method has been attacked {only}.")
    scale = 255 if in_255ths(sorted(set(lines.epsilon))) else 1

    def draw(axes: Axes, rows: pd.DataFrame, look: Look | None) -> None:
        x, colour = scale * rows.epsilon, look.colour if look else FAINT
        axes.plot(x, rows.accuracy, color=colour, linewidth=1.6 if look else 0.7, zorder=3 if look else 1)
        if look:
            axes.fill_between(x, rows.low, rows.high, color=colour, alpha=0.09, linewidth=0)
            markers(axes, x, rows.accuracy, look, rows.carried.astype(bool))

    label = "ε, in 1/255" if scale == 255 else "ε (pixels in [0, 1])"
    radii, suite = lines.epsilon.nunique() - 1, summary.suite
    versions = [attack for attack in LADDER if attack.startswith("autoattack") and (own.attack == attack).any()]
    ran = [_where_it_ran(readable(version, suite), own[own.attack == version], radii) for version in versions]
    strongest = f" ({'; '.join(filter(None, ran))})" if any(ran) else ""
    figure = _lines(summary, lines, draw, title, f"worst case over attacks{strongest}, {_where(summary)}", label)
    ticks = sorted(set(scale * lines.epsilon))
    for axes in figure.axes:
        if len(ticks) <= 9:
            axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks])
    return figure


def _where_it_ran(name: str, lines: pd.DataFrame, radii: int) -> str:
    """Say at which of so many ``radii`` an attack ran in full, unless at all of them, and what open points are."""
    carried = lines.carried.astype(bool)
    hard = sorted(set(lines.epsilon[~carried]) - set(lines.epsilon[carried]))
    if carried.any():
        return f"{name} in full at {', '.join(map(epsilon_text, hard))}; open: partly carried"
    return f"{name} at {', '.join(map(epsilon_text, hard))} only" if 0 < len(hard) < radii else ""


def attack_ladder(summary: Summary) -> Figure:
    """Follow each method from clean pictures through PGD-20 and CW-20 to AutoAttack at the headline epsilon.

    A line that falls steeply on its last step was flattered by the weaker attacks.
    """
    title = "The ladder of attacks"
    own = summary.figures[summary.figures.checkpoint == summary.suite.ranked_checkpoint]
    steps = own[own.attack.isin(LADDER) & own.epsilon.isin([0.0, summary.suite.headline_epsilon])]
    present = [attack for attack in LADDER if (steps.attack == attack).any()]
    if not set(present) - {"clean"}:
        return nothing_to_show(title, "No method has been attacked at the ranking epsilon yet.")
    steps = steps.assign(step=steps.attack.map(present.index)).sort_values("step")
    drawn = list(dict.fromkeys(steps.method))
    beside = dict(zip(drawn, np.linspace(-0.07, 0.07, len(drawn)) if len(drawn) > 1 else [0.0], strict=True))

    def draw(axes: Axes, rows: pd.DataFrame, look: Look | None) -> None:
        if look is None:
            axes.plot(rows.step, rows.accuracy, color=FAINT, linewidth=0.7, zorder=1)
            return
        x = rows.step + beside[rows.method.iloc[0]]
        bars = errors(rows.accuracy, rows.low, rows.high)
        axes.errorbar(x, rows.accuracy, yerr=bars, color=look.colour, **BARS)
        axes.plot(x, rows.accuracy, color=look.colour, linewidth=1.4, zorder=3)
        markers(axes, x, rows.accuracy, look, rows.carried.astype(bool))

    figure = _lines(summary, steps, draw, title, _setting(summary), "")
    for axes in figure.axes:
        axes.set_xticks(range(len(present)), [readable(attack, summary.suite) for attack in present])
        axes.set_xlim(-0.25, len(present) - 0.75)
    return figure


def unseen_attacks(summary: Summary) -> Figure:
    """Show accuracy under attacks that no method was trained on as a heat map; not for an empty table."""
    labels = [_names(summary)[method] for method in summary.unseen.method]
    return heat_map(summary.unseen, labels, f"accuracy, {_where(summary).rpartition(', ')[0]}", summary.suite.norm)


def _lines(
    summary: Summary,
    lines: pd.DataFrame,
    draw: Callable[[Axes, pd.DataFrame, Look | None], None],
    title: str,
    subtitle: str,
    label: str,
) -> Figure:
    """Draw one line per method with its name at the right end; many methods get one panel per category."""
    look = looks(summary.methods)
    methods = [method for method in summary.methods if (lines.method == method).any()]
    groups = {"": methods}
    if len(methods) > MANY:
        groups = {}
        for method in methods:
            groups.setdefault(summary.categories.get(method) or "other", []).append(method)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    longest = max(map(len, groups.values()))  # of the legends, which variants may make longer than a panel is high
    panel = (4.4 + 1.6 * (longest // IN_A_COLUMN), max(2.5, 0.14 * min(longest, IN_A_COLUMN) + 0.5))
    size = (7.2, 4.4) if len(groups) == 1 else (panel[0] * columns, panel[1] * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, members) in zip(grid, groups.items(), strict=False):
        for method in methods:  # the others stay visible as a faint backdrop
            if method not in members:
                draw(axes, lines[lines.method == method], None)
        for method in members:
            draw(axes, lines[lines.method == method], look[method])
        percent(axes.yaxis)
        axes.set_ylim(-0.02, 1.02)
        axes.set(xlabel=label, ylabel="accuracy" if len(groups) == 1 else "")
        axes.label_outer()
        tidy(axes)
        ends = {method: float(lines[lines.method == method].accuracy.iloc[-1]) for method in members}
        if len(groups) == 1:
            names_at_the_end(axes, ends, look, _names(summary))
            titled(axes, title, subtitle)
        else:
            legend(axes, sorted(members, key=lambda method: -ends[method]), look, _names(summary))
            titled(axes, name.replace("_", " "))
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    if len(groups) > 1:
        figure.suptitle(f"{title}: {subtitle}", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def _points(axes: Axes, board: pd.DataFrame, x: str, look: dict[str, Look]) -> None:
    bars = BARS | {"alpha": 0.55 if len(board) <= 2 * MANY else 0.2}
    for line in board.to_dict("records"):
        own = look[line["method"]]
        across = errors(*([line[f"{x}{end}"]] for end in ("", "_low", "_high"))) if f"{x}_low" in line else None
        up = errors(*([line[f"{WORST_CASE}{end}"]] for end in ("", "_low", "_high")))
        axes.errorbar([line[x]], [line[WORST_CASE]], xerr=across, yerr=up, color=own.colour, **bars)
        markers(axes, [line[x]], [line[WORST_CASE]], own, [False], size=6.5)


def _finish(axes: Axes, title: str, subtitle: str) -> None:
    percent(axes.yaxis)
    top = max(axes.get_ylim()[1], 0.1)
    axes.set_ylim(-0.02 * top, min(1.02, top))
    tidy(axes)
    titled(axes, title, subtitle)


def _names(summary: Summary, epsilon: float | None = None) -> dict[str, str]:
    """Give each method's name as figures write it, with the words that stand at it: no length cuts those off."""
    return {method: named(short(method), summary.notes(method, epsilon=epsilon)) for method in summary.methods}


def _headline(summary: Summary) -> pd.DataFrame:
    """Keep the ranked checkpoint's lines at the headline epsilon, most robust first."""
    board = summary.leaderboard
    here = board[
        (board.checkpoint == summary.suite.ranked_checkpoint) & (board.epsilon == summary.suite.headline_epsilon)
    ]
    return here.sort_values(WORST_CASE, ascending=False, kind="stable")


def _where(summary: Summary) -> str:
    return f"{summary.suite.dataset}, {summary.suite.ranked_checkpoint} checkpoint, 95% intervals"


def _setting(summary: Summary) -> str:
    return f"ε = {epsilon_text(summary.suite.headline_epsilon)}, {_where(summary)}"
