"""Read a report folder once and hold everything that its tables, figures and page show."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.errors import BadInput
from benchmark.report.costs import costs
from benchmark.report.coverage import measured_in
from benchmark.report.credibility import credibility, marked
from benchmark.report.engines import with_engine
from benchmark.report.generalization import gaps, generalization
from benchmark.report.leaderboard import autoattack_stages, comparisons, leaderboard
from benchmark.report.measure import judged, per_network, pooled
from benchmark.report.recovered import recovered
from benchmark.report.rejection import Rejecting
from benchmark.report.survey_table import survey_table
from benchmark.report.tradeoff import tradeoff
from benchmark.report.unseen import unseen
from benchmark.results import alarms, evidence
from benchmark.results.cards import Cards, Suite, read_cards, read_suite
from benchmark.results.coverage import coverage
from benchmark.results.curves import read_curves
from benchmark.results.method_warnings import named
from benchmark.results.probes import read_probes

RED = "credibility red"  # at a name: the leaderboard says why


@dataclass(frozen=True)
class Progress:
    """How far a suite is: the experiments done and failed, and the (method, seed) pairs that have no card yet."""

    expected: int
    done: int
    failed: int
    missing: list[tuple[str, int]]
    without_card: list[str]  # experiments with evidence whose card is not written: shown nowhere else

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing failed."""
        return not self.missing and not self.failed and not self.without_card


@dataclass(frozen=True)
class Summary:
    """The tables of one report; accuracies are fractions, epsilons pixel units; Table 1 is in percent, as printed."""

    suite: Suite
    cards: Cards
    progress: Progress
    figures: pd.DataFrame  # one line per method, checkpoint, attack, epsilon, over seeds: see ``pooled``
    leaderboard: pd.DataFrame
    accuracy: pd.DataFrame
    autoattack_stages: pd.DataFrame
    comparisons: pd.DataFrame
    table1: pd.DataFrame
    costs: pd.DataFrame
    alarm: pd.DataFrame  # held-out accuracies of single-step methods: see ``benchmark.results.alarms.epochs``
    recovered: pd.DataFrame
    unseen: pd.DataFrame
    rejection: pd.DataFrame  # one line per network judged at a threshold, and epsilon
    tradeoff: pd.DataFrame  # against natural training
    generalization: pd.DataFrame  # of suites that ask for curves, as are the gaps
    gaps: pd.DataFrame
    coverage: pd.DataFrame  # of the survey, with the rows of this report
    credibility: pd.DataFrame  # one line per trained network, checkpoint and check

    @cached_property
    def methods(self) -> list[str]:
        """Every method that the suite names or that has a card, in the suite's order."""
        return list(dict.fromkeys([*self.suite.methods, *sorted(self.cards.table.method)]))

    @cached_property
    def categories(self) -> dict[str, str]:
        """The category of each method that has a card."""
        return dict(zip(self.cards.table.method, self.cards.table.category, strict=True))

    @cached_property
    def classes(self) -> dict[str, str]:
        """The comparison class of each method that has a card."""
        return dict(zip(self.cards.table.method, self.cards.table.comparison_class, strict=True))

    def note(self, method: str) -> str:
        """The word that stands at a method's name, ``reconstruction``; empty for most."""
        return self.cards.warned(method).note

    def named(self, method: str) -> str:
        """A method's name as readers see it: ``fgsmr (reconstruction)``."""
        return named(method, self.note(method))

    def marked(self, method: str, checkpoint: str | None = None, epsilon: float | None = None) -> str:
        """The same where figures stand that are likely no robustness: ``natural (credibility red)``."""
        return named(method, self.notes(method, checkpoint, epsilon))

    def marked_row(self, row: Mapping[Any, Any]) -> str:
        """The name in a row of Table 1, marked where our own figure stands in it."""
        if pd.isna(row["measured_epsilon"]):
            return self.named(row["method_key"])
        return self.marked(row["method_key"], row["measured_checkpoint"], row["measured_epsilon"])

    def notes(self, method: str, checkpoint: str | None = None, epsilon: float | None = None) -> str:
        """The words that stand at a method's name beside its figures.

        Args:
            checkpoint: whose figures they are; None for the ranked one. ``epsilon``: None for any.
        """
        here = checkpoint or self.suite.ranked_checkpoint
        red = any((one, name) == (method, here) and epsilon in (None, radius) for one, name, radius in self._red)
        return ", ".join(filter(None, [self.note(method), RED if red else ""]))

    @cached_property
    def _red(self) -> set[tuple[str, str, float]]:
        """Method, checkpoint and epsilon of the rows whose mark is red."""
        rows = self.leaderboard[self.leaderboard.credibility.str.startswith("red")]
        return set(zip(rows.method, rows.checkpoint, rows.epsilon, strict=True))


def summarise(folder: Path) -> Summary:
    """Compute every table of the report in ``folder`` from its suite, its cards and its evidence alone.

    Raises:
        BadInput: the folder, the suite or everything else is missing; a card or a part file is damaged.
    """
    if not folder.is_dir():
        raise BadInput(f"expected a report folder, found nothing at {folder}; run `atbench run SUITE` first")
    suite, cards = read_suite(folder), read_cards(folder)
    found = evidence.read(folder, ["fooled", "by", "engine", "carried"], may_be_empty=bool(len(cards.table)))
    rejecting = Rejecting(folder)
    verdicts = rejecting.beside(judged(found, cards.table), cards.table)
    counted = verdicts[verdicts.status != "failed"]
    figures = pooled(counted)
    networks, stages = per_network(counted), autoattack_stages(found, cards.table)
    checks = credibility(suite, cards, networks, stages, read_probes(folder))
    board = marked(leaderboard(suite, cards, counted, networks, figures), checks)
    curves, watching = read_curves(folder)
    curves = generalization(curves, cards.table)
    return Summary(
        suite=suite,
        cards=cards,
        progress=_progress(suite, cards, found),
        figures=figures,
        leaderboard=board,
        # Of failed experiments too: what was judged stays judged.
        accuracy=with_engine(per_network(verdicts), verdicts),
        autoattack_stages=stages,
        comparisons=comparisons(suite, board, counted, suite.against),
        table1=survey_table(suite, cards, board),
        costs=costs(cards.table, watching),
        alarm=alarms.epochs(cards.contents),
        recovered=recovered(suite, cards, counted),
        unseen=unseen(suite, cards.table, counted),
        rejection=rejecting.of_cards(cards.table),
        tradeoff=tradeoff(suite, board, counted),
        generalization=curves,
        gaps=gaps(curves, watching),
        coverage=coverage(measured_in(board)),
        credibility=checks,
    )


def _progress(suite: Suite, cards: Cards, found: pd.DataFrame) -> Progress:
    table = cards.table
    started = set(zip(table.method, table.seed, strict=True))
    return Progress(
        expected=max(len(suite.expected), len(table)),
        done=int((table.status == "done").sum()),
        failed=int((table.status == "failed").sum()),
        missing=[pair for pair in suite.expected if pair not in started],
        without_card=sorted(set(found.experiment.unique()) - set(table.experiment)),
    )


def versions(cards: Cards) -> dict[str, list[Any]]:
    """Return each piece of software that the cards name, with the versions found; more than one deserves a look."""
    found: dict[str, set[str]] = {}
    for card in cards.contents:
        for name, version in dict(card.get("versions") or {}).items():
            found.setdefault(str(name), set()).add(str(version))
    return {name: sorted(found[name]) for name in sorted(found)}
