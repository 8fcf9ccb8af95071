"""The table and the heat map of attacks that no method was trained on: other radii, norms, and networks' pictures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmark.report.measure import cells_of, groups, pooled
from benchmark.report.style import INK, epsilon_text, titled
from benchmark.results.cards import Suite
from benchmark.results.statistics import rank_intervals
from benchmark.results.survey import number
from benchmark.results.unseen import ELSEWHERE, TRANSFER, is_unseen

UNION = "union"
FIRST = ("class", "rank_low", "rank_high", "method", "checkpoint", "images")
FOOT = (
    "Union: images that hold in every norm at once, at the training radius and the first radius of each other norm. "
    "Ranks are intervals by the union inside a class, 95% of the resamples; between two methods they are mostly one "
    "comparison. L1 figures are of 50 sparse steps unless AutoAttack (L1-APGD among it) is named; a high one under the "
    "former beside a low one under the latter is masking. Transfer: pictures that PGD-20 and CW-20 made for the named "
    "network, at the training radius."
)
_IN_NORM = {"pgd20": "linf", "autoattack": "linf", **ELSEWHERE}  # the threat's own norm under linf's name
_KINDS = {"pgd20": "PGD-20", "pgd50": "PGD-50 sparse", "autoattack": "AutoAttack"}


def unseen(suite: Suite, cards: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method: class, ranks, accuracy with its interval under each attack and radius, the union.

    Columns FIRST, then for each attack, from the weakest, ``ATTACK@RADIUS`` and its ``_low`` and ``_high``; accuracies
    are fractions. Empty where nothing but the usual attacks was run.

    Args:
        cards: as ``Cards.table``. verdicts: as ``measure.judged``, without failed experiments.
    """
    own = verdicts[verdicts.checkpoint == suite.ranked_checkpoint]
    own = own[own.attack.isin(["clean", *_IN_NORM]) | own.attack.map(is_unseen).astype(bool)]
    if not own.attack.map(is_unseen).any():
        return pd.DataFrame(columns=FIRST)
    together = _union(suite, own)
    figures = pooled(pd.concat([own, together], ignore_index=True))
    places = sorted({*zip(figures.attack, figures.epsilon, strict=True)}, key=_order)
    kind = dict(zip(cards.method, cards.comparison_class, strict=True))
    lines = []
    for method, rows in groups(figures, "method"):
        line = {"class": kind[method], "method": method, "checkpoint": suite.ranked_checkpoint}
        line["images"] = int(rows.images.max())
        for row in rows.to_dict("records"):
            name = _name(row["attack"], row["epsilon"])
            line |= {name: row["accuracy"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        lines.append(line)
    measured = [f"{_name(*place)}{end}" for place in places for end in ("", "_low", "_high")]
    table = pd.DataFrame(lines, columns=[*FIRST, *measured])
    return _sorted(_ranked(table, together))


def columns(table: pd.DataFrame) -> list[str]:
    """List the columns of accuracies, without their intervals."""
    return [name for name in table.columns if f"{name}_low" in table.columns]


def heading(column: str, norm: str = "linf") -> str:
    """Name a column for readers: ``L2 0.6, PGD-20``."""
    attack, _, radius = column.partition("@")
    if attack in ("clean", UNION):
        return attack
    size = epsilon_text(float(radius))
    if attack.startswith(TRANSFER):
        return f"from {attack.removeprefix(TRANSFER)}"
    where = ELSEWHERE.get(attack, norm).replace("linf", "Linf").replace("l2", "L2").replace("l1", "L1")
    return f"{where} {size}, {_KINDS[attack.partition('_')[0]]}"


def heat_map(table: pd.DataFrame, labels: Sequence[str], subtitle: str, norm: str = "linf") -> Figure:
    """Draw accuracy as colour: a row a method, a column an attack; what was not measured stays white.

    Args:
        table: as :func:`unseen`, not empty. labels: of its rows.
    """
    shown = columns(table)
    values = table[shown].to_numpy(float)
    figure = Figure(figsize=(2.6 + 0.72 * len(shown), 1.9 + 0.26 * len(table)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(
                column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                color="white" if value < 0.6 else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(shown)), [heading(name, norm).replace(", ", "\n") for name in shown], fontsize=7)
    axes.tick_params(axis="x", rotation=45)
    axes.set_yticks(range(len(table)), [f"{name}  ({kind})" for name, kind in zip(labels, table["class"], strict=True)])
    axes.tick_params(axis="y", labelsize=7, length=0, colors=INK)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
    titled(axes, "Unseen attacks", subtitle)
    return figure


def _union(suite: Suite, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Give verdicts of the union: fooled by any attack in any norm, of the images that all of them judged."""
    radius = {"linf": suite.headline_epsilon}
    asked = dict(suite.content["evaluation"].get("unseen") or {})
    for norm in ("l2", "l1"):
        if asked.get(norm):
            radius[norm] = number(str(asked[norm][0]))
    of_attack = verdicts.attack.map(_IN_NORM)
    there = verdicts[of_attack.notna() & (verdicts.epsilon == of_attack.map(radius))]
    run = ["experiment", "checkpoint", "method", "seed", "fold", "status"]
    lines = []
    for _, model in groups(there, "experiment"):
        attacks = sorted(set(model.attack))
        if {_IN_NORM[attack] for attack in attacks} != set(radius):
            continue
        images = model.groupby("index").fooled.agg(["size", "any"])
        whole = images[images["size"] == len(attacks)]
        first = model.iloc[0]
        lines.append(
            pd.DataFrame(
                {"index": whole.index, "fooled": whole["any"].to_numpy(bool), "attack": UNION, "carried": False}
            ).assign(epsilon=radius["linf"], **{name: first[name] for name in run})
        )
    return pd.concat(lines, ignore_index=True) if lines else verdicts.head(0)


def _ranked(table: pd.DataFrame, together: pd.DataFrame) -> pd.DataFrame:
    """Fill in the intervals of ranks, one bootstrap per class."""
    found: dict[str, tuple[int, int]] = {}
    for _, rows in groups(table, "class"):
        own = together[together.method.isin(rows.method)]
        if own.empty:
            continue
        names, cells = cells_of(own, ["method"])
        found |= {name: ends for (name,), ends in zip(names, rank_intervals(cells), strict=True)}
    ends = [found.get(method, (None, None)) for method in table.method]
    ranks = pd.DataFrame(ends, table.index, ["rank_low", "rank_high"])
    return table.assign(rank_low=ranks.rank_low.astype("Int64"), rank_high=ranks.rank_high.astype("Int64"))


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """Order by class, the best union first."""
    union = next((name for name in columns(table) if name.startswith(UNION)), None)
    best = -table[union] if union else pd.Series(0.0, table.index)
    order = pd.DataFrame({"class": table["class"], "best": best, "method": table.method})
    return table.loc[order.sort_values(list(order.columns)).index].reset_index(drop=True)


def _name(attack: str, epsilon: float) -> str:
    return "clean" if attack == "clean" else UNION if attack == UNION else f"{attack}@{epsilon:.6g}"


def _order(place: tuple[str, float]) -> tuple[int, int, float, str]:
    """Clean, the union, then norm by norm from the smallest radius up, then transfers."""
    attack, epsilon = place
    if attack in ("clean", UNION):
        return 0 if attack == "clean" else 1, 0, 0.0, ""
    norm = _IN_NORM.get(attack)
    kind = 3 if norm is None else 2
    return kind, 0 if norm is None else ("linf", "l2", "l1").index(norm), epsilon, attack
