"""Name a run's experiments before anything is written, so that what hinders one is told in time."""

from collections.abc import Sequence
from pathlib import Path

from benchmark.errors import BadInput
from benchmark.experiment import Experiment
from benchmark.results.evidence import card_path
from benchmark.storage import read_yaml


def check_names(experiments: Sequence[Experiment], report: Path) -> None:
    """Name all ``experiments``, and see that each is one row of the tables of ``report``, now and before.

    Raises:
        BadInput: for labels that cannot be chosen, or two rows that are the same experiment.
    """
    rows: dict[str, str] = {}
    for experiment in experiments:
        row = rows.setdefault(experiment.name, experiment.row)
        path = card_path(report, experiment.name)
        before = str(read_yaml(path).get("method")) if path.is_file() else row
        if row != experiment.row:
            raise BadInput(
                f"{row} and {experiment.row} are one experiment, because all their settings are equal: "
                "change some, or leave one of them out"
            )
        if before != row:
            raise BadInput(
                f"{report} holds {before}, and {row} is the same experiment, because all their settings are equal: "
                f"change some, or choose another --output"
            )
