"""Keep how a method's accuracy on training and on test images went over the epochs: one small JSON per experiment.

``curves.json`` beside the weights, where the training wrote it, and ``curves/<experiment>.json`` in a report.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd

from benchmark.errors import BadInput
from benchmark.results.evidence import escaped
from benchmark.storage import write_text

NAME = "curves.json"
LINES = ["experiment", "epoch", "split", "attack", "epsilon", "correct", "images", "checkpoint"]
COSTS = ["experiment", "curve_passes", "curve_seconds", "whole"]
_KEPT = ("last", "best")


def curve_path(report: Path, experiment: str) -> Path:
    """Return the file of one experiment in a report."""
    return report / "curves" / f"{escaped(experiment)}.json"


def is_curve(path: Path, way: Mapping[str, Any]) -> bool:
    """Whether ``path`` holds what was measured in this ``way``."""
    return path.is_file() and _content(path)["way"] == json.loads(json.dumps(way))


def write_curve(
    path: Path,
    way: Mapping[str, Any],
    lines: list[dict[str, Any]],
    kept: Mapping[str, int],
    cost: Mapping[str, float],
    *,
    whole: bool,
) -> None:
    """Write what was measured in ``way``: epsilon, images and whatever else it depends on.

    Args:
        lines: of every epoch that was measured: ``epoch``, ``split``, ``attack``, ``correct``, ``images``.
        kept: the epochs of the networks that are kept, ``last`` and ``best``, which are among those of ``lines``.
        cost: ``passes`` (forward and backward) per training image, and ``seconds``.
        whole: measured during training; else it is only the networks that were kept.
    """
    content = {"way": way, "whole": whole, "cost": cost, "kept": kept, "lines": lines}
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_curves(report: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read all curves of ``report``: columns LINES, and what measuring each one cost, columns COSTS.

    ``checkpoint`` names what was kept of that epoch: ``last``, ``best``, ``last, best``, or nothing.

    Raises:
        BadInput: a file is damaged or of another version.
    """
    lines, costs = [], []
    for path in sorted((report / "curves").glob("*.json")):
        if path.name.startswith("."):
            continue
        content, name = _content(path), unquote(path.stem)
        kept = {epoch: [c for c in _KEPT if content["kept"][c] == epoch] for epoch in content["kept"].values()}
        for line in sorted(content["lines"], key=lambda line: line["epoch"]):
            marks = ", ".join(kept.get(line["epoch"], []))
            epsilon = 0.0 if line["attack"] == "clean" else float(content["way"]["epsilon"])
            lines.append({**line, "experiment": name, "epsilon": epsilon, "checkpoint": marks})
        cost = content["cost"]
        costs.append([name, cost["passes"], cost["seconds"], bool(content["whole"])])
    return pd.DataFrame(lines, columns=LINES), pd.DataFrame(costs, columns=COSTS)


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        measured = {line["epoch"] for line in content["lines"]}
        [line[name] for line in content["lines"] for name in ("split", "attack", "correct", "images")]
        [content["cost"][name] for name in ("passes", "seconds")]
        sound = all(content["kept"][name] in measured for name in _KEPT) and content["way"]["epsilon"] >= 0
        if not sound or not isinstance(content["whole"], bool):
            raise ValueError("a network that was kept and not measured")
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"expected the curves of a training, found {' '.join(str(error).split()) or 'something else'}: {path}; "
            "delete it and run again"
        ) from error
    return content
