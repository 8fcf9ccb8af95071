"""Put the checks of every row into one table, and one mark at every row of the leaderboard."""

from collections.abc import Iterable

import pandas as pd

from benchmark.credibility import rules
from benchmark.credibility.colours import colour, of_row
from benchmark.credibility.record import Check
from benchmark.report import markup
from benchmark.report.measure import groups
from benchmark.report.style import epsilon_text
from benchmark.results.cards import Cards, Suite
from benchmark.results.credibility import Verdicts, from_verdicts
from benchmark.results.probes import Probes

CREDIBILITY = [
    *("method", "seed", "fold", "checkpoint", "epsilon", "check", "colour", "value", "amber", "red", "images"),
    *("probes", "source", "note", "meaning"),
]

_OF_PICTURES = (rules.SAVED.name, rules.TRANSFER.name)  # findings of their own: with them alone a network is not probed


def credibility(
    suite: Suite, cards: Cards, accuracy: pd.DataFrame, stages: pd.DataFrame, probes: Iterable[Probes]
) -> pd.DataFrame:
    """Return one line per trained network, checkpoint, radius and check; columns CREDIBILITY.

    ``probes`` says how thoroughly the network was probed, ``evidence`` that the check read verdicts alone. Probes are
    made at one radius and speak of the checkpoint at every other.

    Args:
        accuracy: as ``per_network`` gives, stages as ``autoattack_stages``.
    """
    found = {(one.experiment, one.checkpoint): one for one in _joined(probes)}
    lines = []
    for card in cards.contents:
        if card["status"] == "failed":
            continue
        of = {"method": card["method"], "seed": card["seed"], "fold": card.get("fold") or 0}
        own, own_stages = (_of(table, of) for table in (accuracy, stages))
        verdicts = Verdicts(own, own_stages, card, str(card.get("dataset") or suite.dataset), suite.norm)
        for checkpoint in sorted(set(own.checkpoint) | {name for one, name in found if one == card["experiment"]}):
            place = {**of, "checkpoint": checkpoint}
            for epsilon in suite.ranked_at:
                at = {**place, "epsilon": epsilon, "probes": "evidence"}
                lines += [_line(at, check) for check in from_verdicts(verdicts, checkpoint, epsilon)]
            if (card["experiment"], checkpoint) in found:
                probed = found[card["experiment"], checkpoint]
                at = {**place, "epsilon": probed.setting.epsilon, "probes": probed.depth}
                lines += [_line(at, check) for check in probed.checks]
    table = pd.DataFrame(lines, columns=CREDIBILITY)
    numbers = ["value", "amber", "red", "images"]
    table = table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
    return table.sort_values(["method", "seed", "fold", "checkpoint"], kind="stable", ignore_index=True)


def marked(board: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Fill in the leaderboard's column ``credibility``; lines of failed experiments have no mark.

    Args:
        table: as :func:`credibility` gives.
    """
    rows = dict(groups(table, ["method", "checkpoint"]))
    return board.assign(
        credibility=[
            "" if line["status"] == "failed" else _mark(rows.get((line["method"], line["checkpoint"])), line["epsilon"])
            for line in board.to_dict("records")
        ]
    )


def _mark(lines: pd.DataFrame | None, epsilon: float) -> str:
    if lines is None:
        return of_row([], probed=False)
    probes = lines.probes != "evidence"
    networks = len(lines[["seed", "fold"]].drop_duplicates())
    of_network = probes & ~lines.check.isin(_OF_PICTURES)
    probed = len(lines.loc[of_network, ["seed", "fold"]].drop_duplicates()) == networks
    found = []
    for (check, shade), those in groups(lines[probes | (lines.epsilon == epsilon)], ["check", "colour"]):
        share = f" ({len(those)} of {networks} networks)" if len(those) < networks else ""
        found.append((those.index[0], f"{check}{share}", shade))
    return of_row(((name, shade) for _, name, shade in sorted(found)), probed=probed)


def readable(table: pd.DataFrame, named: dict[str, str]) -> pd.DataFrame:
    """Return the table as strings for readers; meanings and sources are left to :func:`legend`."""
    several = [name for name in ("seed", "fold") if table[name].nunique() > 1]
    return pd.DataFrame(
        {
            "method": [named.get(method, method) for method in table.method],
            **{name: table[name].astype(str) for name in several},
            "checkpoint": table.checkpoint,
            "epsilon": table.epsilon.map(epsilon_text),
            "check": table.check,
            "colour": table.colour,
            "value": table.value.map(_number),
            "amber above": table.amber.map(_number),
            "red above": table.red.map(_number),
            "images": [f"{count:.0f}" if pd.notna(count) else "" for count in table.images],
            "probes": table.probes,
            "note": table.note,
        },
        dtype=object,
    )


def legend(table: pd.DataFrame) -> pd.DataFrame:
    """Return each check's meaning and the sources of its thresholds, as strings."""
    once = table.groupby("check", sort=False).agg(
        meaning=("meaning", "first"), source=("source", lambda every: " / ".join(dict.fromkeys(every)))
    )
    return once.reset_index().rename(columns={"source": "source of thresholds"})


def markdown(table: pd.DataFrame, board: pd.DataFrame, named: dict[str, str], suite: Suite) -> str:
    """Return ``credibility.md``: the marks, what each check means, every value."""
    marks = pd.DataFrame(
        {
            "method": [named.get(line["method"], line["method"]) for line in board.to_dict("records")],
            "checkpoint": board.checkpoint,
            "epsilon": [epsilon_text(epsilon) if pd.notna(epsilon) else "" for epsilon in board.epsilon],
            "credibility": board.credibility,
        },
        dtype=object,
    )
    marks = marks[board.credibility != ""]
    page = markup.markdown(marks, f"{suite.title}: credibility", suite.track, suite.note)
    colours = (
        "Red: the figure is likely not robustness. Amber: look twice. Higher values are always worse. Thresholds "
        "borrowed from another data set or radius may warn, but not condemn; of a share of images, one image alone is "
        "too little for red. Probes are made at one radius."
    )
    parts = {"Checks": legend(table), "Values": readable(table, named)}
    tables = [f"## {heading}\n\n{markup.markdown_table(part)}\n" for heading, part in parts.items()]
    return "\n".join([page, f"{colours}\n", *tables])


def _joined(probes: Iterable[Probes]) -> list[Probes]:
    """Put the findings of one checkpoint together; a check that stands in two files counts as the later says."""
    found: dict[tuple[str, str], Probes] = {}
    for one in probes:
        key = one.experiment, one.checkpoint
        if key not in found:
            found[key] = one
            continue
        checks = {check.name: check for check in [*found[key].checks, *one.checks]}
        first = found[key]
        found[key] = Probes(first.experiment, first.checkpoint, first.depth, first.setting, list(checks.values()))
    return list(found.values())


def _of(table: pd.DataFrame, of: dict[str, object]) -> pd.DataFrame:
    own = (table.method == of["method"]) & (table.seed == of["seed"]) & (table.fold == of["fold"])
    return table[own]


def _line(at: dict[str, object], check: Check) -> dict[str, object]:
    return {
        **at,
        "check": check.name,
        "colour": colour(check),
        "value": check.value,
        "amber": check.bounds.amber,
        "red": check.bounds.red,
        "images": check.images,
        "source": check.source,
        "note": check.note,
        "meaning": check.rule.meaning,
    }


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"
