"""Rank methods inside their class: the leaderboard, the comparisons with the reference, AutoAttack's stages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmark.report import engines
from benchmark.report.attack_names import SELDOM, readable
from benchmark.report.costs import relative_seconds
from benchmark.report.measure import RUN, cells_of, groups
from benchmark.report.remarks import data_note, remarks
from benchmark.results.alarms import of_checkpoint
from benchmark.results.cards import Cards, Suite
from benchmark.results.statistics import holm, paired_difference, rank_intervals, verdict
from benchmark.results.worst_case import DEVELOPMENT, WORST_CASE

ATTACKS = ["clean", "pgd20", "cw20", "row", "autoattack", WORST_CASE]
NO_AUTOATTACK = "development attack, not AutoAttack"
CHANGED_NETWORK = "B"  # the class of protocol.md
STAGES = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]  # the order in which AutoAttack standard tries
OF_THE_UNION = "trained against a union of norms, and ranked by that: atbench run unseen"
_MEASURED = [f"{attack}{end}" for attack in ATTACKS for end in ("", "_low", "_high")]
_QUICK = ["quick", "quick_low", "quick_high"]
LEADERBOARD = [
    *(
        "class",
        "rank_low",
        "rank_high",
        "method",
        "credibility",
        "category",
        "network",
        "checkpoint",
        "epsilon",
        *_MEASURED,
    ),
    *("seeds", "images", "trials", "members", "parameters", "passes", "forward_passes", "backward_passes"),
    *("selection_passes", "seconds", "seconds_relative_to_natural", "device_hours"),
    *("peak_memory_mib", "memory_growth_mib", "engine", "catastrophic_overfitting", "alarm", "status", "status_note"),
    *("labels", "validation_labels", "pseudo_label_accuracy", "teacher_passes", "reference", "data_note", "remarks"),
    *("broken", *_QUICK, "quick_note"),
]
COMPARISONS = [
    *(
        "class",
        "method",
        "against",
        "epsilon",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
        "seeds",
        "images",
        "verdict",
    ),
    *("credibility", "against_credibility"),
]


def leaderboard(
    suite: Suite, read: Cards, verdicts: pd.DataFrame, runs: pd.DataFrame, figures: pd.DataFrame
) -> pd.DataFrame:
    """Return one line per method, checkpoint and ranking epsilon, and one per failed experiment; columns LEADERBOARD,
    and those of attacks that seldom run.

    Accuracies are fractions, epsilons pixel units, passes per training image over the whole run. What was not measured
    is NaN; ``benchmark.report.credibility`` fills in the marks. Carried verdicts are for curves: an attack that holds
    any is left out here.

    Args:
        verdicts: as ``judged``, without failed experiments; ``runs`` ``per_network`` of them, ``figures`` ``pooled``.
    """
    cards = read.table.assign(seconds_relative_to_natural=relative_seconds(read.table))
    going = cards[cards.status != "failed"]
    networks = {group: len(rows[RUN].drop_duplicates()) for group, rows in groups(cards, "comparison_class")}
    images = suite.images or int(runs.images.max() if len(runs) else 0)
    made_by = engines.of_rows(suite, verdicts)
    seldom = [name for name in SELDOM if (figures.attack == name).any()]
    measured = [f"{name}{end}" for name in seldom for end in ("", "_low", "_high")]
    lines = []
    for method, own in groups(going, "method"):
        costs = _costs(own)
        trained = [card for card in read.contents if card["experiment"] in set(own.experiment)]
        for checkpoint in sorted({suite.ranked_checkpoint, *figures.checkpoint[figures.method == method]}):
            collapse, alarm = of_checkpoint(trained, checkpoint)
            mark = {"catastrophic_overfitting": collapse, "alarm": alarm}
            for epsilon in suite.ranked_at:
                here, attacked = (_at(table, method, checkpoint, epsilon) for table in (figures, runs))
                status, note = _state(suite, checkpoint, attacked, images, networks[costs["class"]])
                if costs["reference"] or costs["transductive"]:
                    note = note or f"{'a reference' if costs['reference'] else 'transductive'}, not ranked"
                if costs["class"] == "E":
                    note = note or OF_THE_UNION
                place = {"checkpoint": checkpoint, "epsilon": epsilon, "status": status, "status_note": note}
                engine = made_by.get((method, checkpoint, epsilon), "")
                lines.append({**costs, **_accuracies(here), **place, "engine": engine, **mark})
    for _, card in cards[cards.status == "failed"].iterrows():
        lines.append(
            {**_costs(card.to_frame().T), "status": "failed", "status_note": f"{card.experiment}: {card.error}"}
        )
    table = pd.DataFrame(lines, columns=[*LEADERBOARD, *measured])
    table["broken"] = [read.warned(method).broken for method in table.method]
    table["quick_note"] = table.quick.notna().map({True: NO_AUTOATTACK, False: ""})
    numbers = ["epsilon", *_MEASURED, *_QUICK, *measured, "seeds", "images", "trials", "members", "parameters"]
    numbers += ["seconds", "catastrophic_overfitting", "labels", "validation_labels"]
    numbers += ["pseudo_label_accuracy", "teacher_passes"]
    table = table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
    words = ["category", "network", "checkpoint", "engine", "alarm", "status_note", "data_note", "remarks"]
    table = table.assign(**{name: table[name].astype(object).fillna("") for name in words})
    return _sorted(_ranked(table, verdicts), suite)


def comparisons(suite: Suite, table: pd.DataFrame, verdicts: pd.DataFrame, against: Sequence[str]) -> pd.DataFrame:
    """Compare the worst case of each ranked method with ``against`` in its class, image by image; columns COMPARISONS.

    ``difference`` is the method's accuracy minus the other's; both marks of credibility stand beside it. Holm corrects
    over all comparisons of a class, its ranking epsilons together. A changed network (class B) is also held against
    those of other classes, because what it changes shows there alone, as a family of its own. Where a user named what
    methods of theirs are compared with, these are all comparisons and one family, and a class other than the method's
    own stands beside it.
    """
    ranked = table[table.rank_low.notna()]
    named = suite.compared is not None
    lines: list[dict[str, object]] = []
    for (*group, epsilon), rows in groups(ranked, ["epsilon"] if named else ["class", "epsilon"]):
        own = set(rows.method)
        if group == [CHANGED_NETWORK]:
            others = ranked.method.isin(against) & (ranked["class"] != CHANGED_NETWORK) & (ranked.epsilon == epsilon)
            rows = pd.concat([rows, ranked[others]])
        names, cells = _worst_cells(verdicts, suite.ranked_checkpoint, epsilon, rows.method)
        seeds, classes, marks = (
            dict(zip(rows.method, rows[column], strict=True)) for column in ("seeds", "class", "credibility")
        )
        for method in sorted(own if suite.compared is None else {*names} & {*suite.compared}):
            for other in against:
                if other == method or other not in names:
                    continue
                found = paired_difference(cells[names.index(method)], cells[names.index(other)])
                both = " against ".join(dict.fromkeys([classes[method], classes[other]]))
                what = {"class": both, "method": method, "against": other, "epsilon": epsilon, "seeds": seeds[method]}
                ends = {"difference": found.interval.estimate, "low": found.interval.low, "high": found.interval.high}
                believed = {"credibility": marks[method], "against_credibility": marks[other]}
                lines.append({**what, **ends, "p": found.p, "images": found.images, **believed})
    compared = pd.DataFrame(lines, columns=COMPARISONS)
    for family in [compared] if named else [rows for _, rows in compared.groupby("class")]:
        compared.loc[family.index, "p_holm"] = holm(family.p.tolist())
    differences = zip(compared.difference.tolist(), compared.p_holm.tolist(), strict=True)
    return compared.assign(verdict=[verdict(difference, p) for difference, p in differences])


def autoattack_stages(evidence: pd.DataFrame, cards: pd.DataFrame) -> pd.DataFrame:
    """Return how many images survive each attack of AutoAttack, the clean picture first; accuracies are fractions.

    Where verdicts are carried from another epsilon, AutoAttack did not run in full: those are left out.
    Columns method, seed, checkpoint, epsilon, stage, survivors, images, accuracy, fold.
    """
    columns = ["method", "seed", "checkpoint", "epsilon", "stage", "survivors", "images", "accuracy", "fold"]
    own = evidence[evidence.attack == "autoattack"].merge(
        cards[["experiment", "method", "seed", "fold"]], on="experiment"
    )
    lines = []
    for key, rows in groups(own, ["method", "seed", "fold", "checkpoint", "epsilon"]):
        if rows.carried.any():
            continue
        method, seed, fold, checkpoint, epsilon = key
        left = len(rows)
        names = rows.by[rows.fooled].astype("str")
        for stage in [*STAGES, *sorted(set(names) - set(STAGES))]:
            left -= int((names == stage).sum())
            lines.append((method, seed, checkpoint, epsilon, stage, left, len(rows), left / len(rows), fold))
    return pd.DataFrame(lines, columns=columns)


def _costs(cards: pd.DataFrame) -> dict[str, Any]:
    """Return what a method's cards say together: names of the first, largest network and memory, average costs."""
    first = cards.iloc[0]
    mean = {
        key: pd.to_numeric(cards[key]).mean()
        for key in (
            "forward_passes",
            "backward_passes",
            "selection_forward_passes",
            "selection_backward_passes",
            "seconds",
            "seconds_relative_to_natural",
            "device_hours",
            "pseudo_label_accuracy",
            "teacher_forward_passes",
            "teacher_backward_passes",
        )
    }
    return {
        "class": first.comparison_class,
        "method": first.method,
        "category": first.category,
        "network": first.network,
        "seeds": cards.seed.nunique(),
        "trials": pd.to_numeric(cards.trials).max(),
        "members": pd.to_numeric(cards.members).max(),
        "parameters": pd.to_numeric(cards.parameters).max(),
        "passes": mean["forward_passes"] + mean["backward_passes"],
        "forward_passes": mean["forward_passes"],
        "backward_passes": mean["backward_passes"],
        "selection_passes": mean["selection_forward_passes"] + mean["selection_backward_passes"],
        "seconds": mean["seconds"],
        "seconds_relative_to_natural": mean["seconds_relative_to_natural"],
        "device_hours": mean["device_hours"],
        "peak_memory_mib": pd.to_numeric(cards.peak_memory_mib).max(),
        "memory_growth_mib": pd.to_numeric(cards.memory_growth_mib).max(),
        "labels": first.labels,
        "validation_labels": first.validation_labels,
        "pseudo_label_accuracy": mean["pseudo_label_accuracy"],
        "teacher_passes": mean["teacher_forward_passes"] + mean["teacher_backward_passes"],
        "reference": bool(first.reference),
        "transductive": bool(first.transductive),
        "data_note": data_note(cards, mean["pseudo_label_accuracy"]),
        "remarks": remarks(cards),
    }


def _accuracies(figures: pd.DataFrame) -> dict[str, object]:
    found: dict[str, object] = {}
    for line in figures[~figures.carried.astype(bool)].to_dict("records"):
        if (attack := line["attack"]) in (*ATTACKS, *DEVELOPMENT, *SELDOM):
            found |= {attack: line["accuracy"], f"{attack}_low": line["low"], f"{attack}_high": line["high"]}
    worst = figures[figures.attack == WORST_CASE]
    worst = worst if len(worst) else figures[figures.attack.isin(DEVELOPMENT)]
    if len(worst):
        found |= {"seeds": int(worst.seeds.iloc[0]), "images": int(worst.images.iloc[0])}
    return found


def _at(table: pd.DataFrame, method: str, checkpoint: str, epsilon: float) -> pd.DataFrame:
    """Keep one model's lines at ``epsilon``, with clean ones at 0."""
    return table[(table.method == method) & (table.checkpoint == checkpoint) & table.epsilon.isin([0.0, epsilon])]


def _state(suite: Suite, checkpoint: str, runs: pd.DataFrame, images: int, networks: int) -> tuple[str, str]:
    """Say whether a line may be ranked (``done`` without a note), or what keeps it from that."""
    worst = runs[runs.attack == WORST_CASE]
    if worst.empty and runs.attack.isin(DEVELOPMENT).any():
        return "partial", "attacked by the development attack alone, which ranks nothing"
    if worst.empty:
        return "partial", "not evaluated at this epsilon yet"
    if worst.images.min() < images:
        return "partial", f"{worst.images.min()} of {images} images judged by every attack"
    if len(worst) < networks:  # a method whose unlucky seed failed must not be ranked by its lucky ones
        return "partial", f"{len(worst)} of {networks} trained networks of its class"
    if worst.carried.any():
        return "partial", "verdicts are carried from another epsilon"
    if checkpoint != suite.ranked_checkpoint:
        return "done", f"ranks are given to the {suite.ranked_checkpoint} checkpoint"
    for attack in suite.ranked_by:
        full = runs[(runs.attack == attack) & ~runs.carried & (runs.images >= images)]
        if len(full) < networks:
            return "partial", f"{readable(attack, suite)} was not run in full at this epsilon"
    return "done", ""


def _ranked(table: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Fill in the intervals of ranks, one bootstrap per class and epsilon."""
    free = table[(table.status == "done") & (table.status_note == "")]
    found: dict[int, tuple[int, int]] = {}
    for (_, epsilon, checkpoint), rows in groups(free, ["class", "epsilon", "checkpoint"]):
        names, cells = _worst_cells(verdicts, checkpoint, epsilon, rows.method)
        ranks = dict(zip(names, rank_intervals(cells), strict=True))
        found |= {place: ranks[method] for place, method in zip(rows.index.tolist(), rows.method, strict=True)}
    ends = pd.DataFrame(
        [found.get(place, (None, None)) for place in table.index], table.index, ["rank_low", "rank_high"]
    )
    return table.assign(rank_low=ends.rank_low.astype("Int64"), rank_high=ends.rank_high.astype("Int64"))


def _worst_cells(
    verdicts: pd.DataFrame, checkpoint: str, epsilon: float, methods: pd.Series
) -> tuple[list[str], np.ndarray]:
    own = verdicts[
        (verdicts.attack == WORST_CASE)
        & (verdicts.checkpoint == checkpoint)
        & (verdicts.epsilon == epsilon)
        & verdicts.method.isin(methods)
    ]
    names, cells = cells_of(own, ["method"])
    return [name for (name,) in names], cells


def _sorted(table: pd.DataFrame, suite: Suite) -> pd.DataFrame:
    """Order by class and epsilon, ranked lines first, best first; failures last."""
    keys = pd.DataFrame(
        {
            "failed": table.status == "failed",
            "class": table["class"],
            "epsilon": table.epsilon.astype(float),
            "checkpoint": table.checkpoint != suite.ranked_checkpoint,
            "worst": -pd.to_numeric(table.worst_case),
            "method": table.method,
        }
    )
    return table.loc[keys.sort_values(list(keys.columns), kind="stable").index].reset_index(drop=True)
