"""One look for everything drawn: a colour and marker per method, percent axes, epsilons as people write them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.optimize import isotonic_regression

# Okabe and Ito, "Color universal design" (2008): told apart with any common colour blindness. Their yellow, too pale on
# white, is replaced by Tol's wine.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h"]  # 11 and 7 share no factor: 77 different pairs
_FIXED = {"natural": ("#7F7F7F", "X"), "pgd_at": ("#111111", "o")}  # the two references, in every suite
INK, FAINT = "#333333", "#D9D9D9"
MANY = 8  # from here on, one set of axes is too crowded for lines


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure of a report."""

    colour: str
    marker: str


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Give each of ``methods``, by its place among them, a colour and a marker of its own."""
    others = [method for method in methods if method not in _FIXED]
    found = {
        method: Look(_COLOURS[place % len(_COLOURS)], _MARKERS[(place + 1) % len(_MARKERS)])
        for place, method in enumerate(others)
    }
    return {method: Look(*_FIXED[method]) if method in _FIXED else found[method] for method in methods}


def in_255ths(epsilons: Sequence[float]) -> bool:
    """Tell whether ``epsilons`` were meant as multiples of 1/255: 8/255 was; 0.2, by chance 51/255, was not."""
    whole = all(abs(255 * epsilon - round(255 * epsilon)) < 1e-6 for epsilon in epsilons)
    return whole and not all(abs(epsilon - round(epsilon, 3)) < 1e-9 for epsilon in epsilons)


def epsilon_text(epsilon: float) -> str:
    """Write an epsilon in pixel units as its authors would: ``8/255`` or ``0.15``."""
    return f"{round(255 * epsilon)}/255" if in_255ths([epsilon]) else f"{epsilon:.6g}"


def percent(axis: object) -> None:
    """Label an axis of fractions in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))  # type: ignore[attr-defined]


def tidy(axes: Axes, grid: str = "both") -> None:
    """Leave the data and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    axes.grid(True, axis=grid, color="#ECECEC", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def titled(axes: Axes, title: str, subtitle: str = "") -> None:
    """Head ``axes``: what is seen in bold, under it in grey how it was measured."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color="#111111", pad=21 if subtitle else 8)
    if subtitle:
        axes.annotate(subtitle, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8, color="#666666")


def short(name: str, longest: int = 26) -> str:
    """Cut the middle out of a long name; dollars are escaped, because matplotlib would read them as mathematics."""
    cut = name if len(name) <= longest else f"{name[: longest // 2]}…{name[-(longest // 2 - 1) :]}"
    return cut.replace("$", r"\$")


def nothing_to_show(title: str, sentence: str) -> Figure:
    """Return a figure that says why it is empty, so that no reader looks for a broken picture."""
    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    titled(axes, title)
    axes.text(0, 0.5, sentence, transform=axes.transAxes, fontsize=9.5, color=INK, va="center", wrap=True)
    return figure


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart until neighbours keep ``gap``, near where they belong and inside the range.

    Nearest in least squares: with the gaps taken out, keeping the order is isotonic regression. Where the range is too
    short for the gaps, they shrink.
    """
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    steps = gap * np.arange(len(order))
    together = isotonic_regression(np.asarray(wanted, float)[order] - steps).x
    placed = np.empty(len(order))
    placed[order] = np.clip(together, low, high - steps[-1]) + steps
    return [float(position) for position in placed]
