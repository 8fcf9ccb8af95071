"""The parts of a figure that several have: points in a method's look, names at lines' ends, legends, error bars."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmark.report.style import INK, Look, spread

IN_A_COLUMN = 26  # names of a legend
BARS: dict[str, Any] = {"elinewidth": 1.0, "capsize": 0, "linestyle": "none", "alpha": 0.55, "zorder": 2}


def names_at_the_end(axes: Axes, ends: dict[str, float], look: dict[str, Look], labels: dict[str, str]) -> None:
    """Write each method's name beside the right end of its line, ``ends``, apart from the others."""
    places = spread(list(ends.values()), 0.048, 0.0, 1.0)
    for (method, end), place in zip(ends.items(), places, strict=True):
        axes.annotate(
            labels[method],
            (1, end),
            xytext=(1.03, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            color=look[method].colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def markers(axes: Axes, x: object, y: object, look: Look, carried: object, size: float = 5) -> None:
    """Mark points in the method's look, open where the verdicts were carried from another epsilon."""
    x, y, carried = np.asarray(x, float), np.asarray(y, float), np.asarray(carried, bool)
    for some, fill in ((~carried, look.colour), (carried, "white")):
        if not some.any():
            continue  # the layout would make room for an empty line at the figure's corner
        edge, width = (look.colour, 1.2) if fill == "white" else ("white", 0.7)
        points = axes.plot(x[some], y[some], look.marker, color=look.colour, markersize=size, zorder=4, clip_on=False)
        points[0].set(markerfacecolor=fill, markeredgecolor=edge, markeredgewidth=width)


def legend(axes: Axes, methods: Iterable[str], look: dict[str, Look], labels: dict[str, str]) -> None:
    """Name the methods outside the axes, the most robust first, as the points stand."""
    methods = list(methods)
    handles = [
        Line2D(
            [], [], color=look[method].colour, marker=look[method].marker, linestyle="none", mec="white", markersize=7
        )
        for method in methods
    ]
    names = [labels[method] for method in methods]
    axes.legend(
        handles, names, ncols=-(-len(names) // IN_A_COLUMN), fontsize=8 if len(names) <= 12 else 6.5,
        loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, handletextpad=0.3, labelspacing=0.45,
        frameon=False, labelcolor=INK,
    )  # fmt: skip


def errors(middle: object, low: object, high: object) -> np.ndarray:
    """Return the lengths of error bars below and above, from the ends of an interval."""
    middle, low, high = (np.asarray(values, float) for values in (middle, low, high))
    return np.nan_to_num(np.clip([middle - low, high - middle], 0, None))
