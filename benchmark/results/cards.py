"""Read what a report folder says about its runs: the suite, one card per experiment, the tracebacks of failures."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmark.errors import BadInput
from benchmark.results.evidence import failure_path
from benchmark.results.method_warnings import Warned, of_method, of_run
from benchmark.results.rows import method_of
from benchmark.results.survey import number

_SUITE_KEYS = ("name", "evaluation")
_CARD_KEYS = ("experiment", "method", "comparison_class", "seed", "status")
_OPTIONAL = {  # key of a card: what stands in for it where a run did not get so far
    "category": "",
    "citation": "",
    "fold": 0,
    "dataset": "",
    "network": "",
    "members": None,
    "parameters": None,
    "error": "",
    "forward_passes": None,
    "backward_passes": None,
    "selection_forward_passes": None,
    "selection_backward_passes": None,
    "seconds": None,
    "selection_seconds": None,
    "devices": None,
    "device": "",
    "device_hours": None,
    "peak_memory_mib": None,
    "peak_memory_of": "",
    "memory_growth_mib": None,
    "trials": 1,
    "labels": None,  # of training images, where the others were hidden
    "validation_labels": None,
    "reference": False,
    "transductive": False,
    "data_note": "",
    "remarks": None,
    "pseudo_label_accuracy": None,
    "teacher_limited": False,
    "teacher_held_out_clean": None,
    "teacher_forward_passes": None,
    "teacher_backward_passes": None,
}


@dataclass(frozen=True)
class Suite:
    """The resolved suite of a report, as far as tables and figures need it; epsilons in pixel units."""

    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The suite's short name."""
        return str(self.content["name"])

    @property
    def title(self) -> str:
        """The heading of its tables and of its page."""
        return str(self.content.get("title") or self.name)

    @property
    def note(self) -> str:
        """The warning that every table carries, in one line; empty where the suite has none."""
        return " ".join(str(self.content.get("note") or "").split())

    @property
    def track(self) -> str:
        """``common`` or ``published``."""
        return str(self.content.get("track") or "common")

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(dict(self.content.get("dataset") or {}).get("name", ""))

    @property
    def network(self) -> str:
        """Name of the network that all methods share."""
        return str(dict(self.content.get("network") or {}).get("name", ""))

    @property
    def norm(self) -> str:
        """The norm of the training threat."""
        return str(dict(self.content.get("threat") or {}).get("norm") or "linf")

    @property
    def ranked_at(self) -> list[float]:
        """The epsilons at which methods are ranked, ascending."""
        return sorted(number(str(epsilon)) for epsilon in self.content["evaluation"]["ranked_at"])

    @property
    def headline_epsilon(self) -> float:
        """The ranking epsilon that figures show: the training one where it is ranked, else the smallest."""
        trained = number(str(dict(self.content.get("threat") or {}).get("epsilon")))
        near = [epsilon for epsilon in self.ranked_at if abs(epsilon - trained) < 1e-9]
        return near[0] if near else self.ranked_at[0]

    @property
    def ranked_checkpoint(self) -> str:
        """``last`` or ``best``: the checkpoint whose rows are ranked."""
        return str(self.content["evaluation"].get("ranked_checkpoint") or "last")

    @property
    def ranked_by(self) -> list[str]:
        """The versions of AutoAttack that a row needs to be ranked."""
        attacks = map(str, self.content["evaluation"].get("attacks") or [])
        return [attack for attack in attacks if attack.startswith("autoattack")]

    @property
    def images(self) -> int | None:
        """How many test images each evaluation should have; None where the suite leaves it to the data set."""
        count = self.content["evaluation"].get("images")
        return count if isinstance(count, int) and not isinstance(count, bool) else None

    @property
    def against(self) -> list[str]:
        """The methods that the others are compared with."""
        return list(self.content.get("against") or ["pgd_at"])

    @property
    def compared(self) -> list[str] | None:
        """The user's methods, where it is named what they alone are compared with; None for every method."""
        own = self.content.get("own") or {}
        return [row for row in self.methods if method_of(row) in own] or None if self.content.get("against") else None

    @property
    def expected(self) -> list[tuple[str, int]]:
        """Every pair of method and seed that the suite asks for."""
        return [(method, seed) for method in self.methods for seed in self.content.get("seeds") or [0]]

    @property
    def methods(self) -> list[str]:
        """The methods in the suite's own order."""
        return [str(method) for method in self.content.get("methods") or []]


@dataclass(frozen=True)
class Cards:
    """The experiments of a report: one line each in ``table``, the full cards in ``contents``."""

    table: pd.DataFrame
    contents: list[dict[str, Any]]
    tracebacks: Mapping[str, str]

    @cached_property
    def beside(self) -> dict[str, dict[str, str]]:
        """The rows that each semi-supervised method is shown beside: ``lower``, ``oracle`` and ``teacher``."""
        return {str(card["method"]): card["beside"] for card in self.contents if card.get("beside")}

    @cached_property
    def _warned(self) -> dict[str, Warned]:
        return {str(card["method"]): of_run(card) for card in self.contents}

    def warned(self, method: str) -> Warned:
        """What its card warns of; of a method without a run, what the catalogue does."""
        return self._warned.get(method) or of_method(method)

    @cached_property
    def failed(self) -> pd.DataFrame:
        """The lines of the experiments that failed."""
        return self.table[self.table.status == "failed"]


def read_suite(report: Path) -> Suite:
    """Read ``suite.yaml``; BadInput where it is missing, is no mapping, or lacks a key that the tables rest on."""
    path = report / "suite.yaml"
    content = _mapping(path, "run `atbench run SUITE` to make the folder anew")
    _need(content, _SUITE_KEYS, path)
    if not isinstance(content["evaluation"], dict) or not content["evaluation"].get("ranked_at"):
        raise BadInput(f"expected evaluation.ranked_at, the epsilons to rank at, found none: {path}; add the key")
    return Suite(content)


def read_cards(report: Path) -> Cards:
    """Read every experiment's card and, where it failed, its traceback.

    Raises:
        BadInput: a card is damaged or lacks a key, or two finished experiments claim one method, seed and fold.
    """
    contents = []
    for path in sorted((report / "experiments").glob("*.yaml")):
        if path.name.startswith("."):
            continue
        content = _mapping(path, "delete it and run the suite again")
        _need(content, _CARD_KEYS, path)
        contents.append(content)
    lines = [{key: card.get(key, _OPTIONAL.get(key)) for key in (*_CARD_KEYS, *_OPTIONAL)} for card in contents]
    table = pd.DataFrame(lines, columns=[*_CARD_KEYS, *_OPTIONAL])
    table["fold"] = table["fold"].map(lambda fold: 0 if fold is None else fold)
    table["error"] = table["error"].map(lambda error: " ".join(str(error or "").split()))
    _one_experiment_per_run(table[table.status != "failed"])
    return Cards(table, contents, _tracebacks(report, table[table.status == "failed"].experiment))


def _tracebacks(report: Path, experiments: pd.Series) -> dict[str, str]:
    found = {name: failure_path(report, name) for name in experiments}
    return {name: path.read_text("utf-8", errors="replace") for name, path in found.items() if path.is_file()}


def _one_experiment_per_run(table: pd.DataFrame) -> None:
    twice = table[table.duplicated(["method", "seed", "fold"], keep=False)]
    if len(twice):
        names = twice[twice.method == twice.method.iloc[0]].experiment.tolist()[:2]
        raise BadInput(
            f"expected one experiment per method, seed and fold, found {names[0]} and {names[1]}; "
            f"remove the card of the one that no longer counts, or name the variants differently"
        )


def _mapping(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"expected {path.name}, found none in {path.parent}; {remedy}")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"expected YAML, found {' '.join(str(error).split())}: {path}; {remedy}") from error
    if not isinstance(content, dict):
        raise BadInput(f"expected a mapping of keys, found {type(content).__name__}: {path}; {remedy}")
    return content


def _need(content: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> None:
    for key in keys:
        if content.get(key) is None:
            raise BadInput(
                f"expected the key {key!r}, found {', '.join(map(str, content)) or 'none'}: {path}; add the key"
            )
