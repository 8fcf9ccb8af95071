"""Keep what the probes of a network found, one small JSON per checkpoint; thresholds are not in it, but in the rules.

``credibility/<experiment>/<checkpoint>.json``, ``<checkpoint>.transfer.json`` for what needed other models, and
``<checkpoint>.saved.json`` for what was said to the pictures that the attacks saved.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from benchmark.credibility.record import Check, Setting
from benchmark.credibility.rules import RULES
from benchmark.errors import BadInput
from benchmark.results.evidence import escaped
from benchmark.storage import write_text

TRANSFER, SAVED = ".transfer", ".saved"
_DEPTHS = ("cheap", "full")


@dataclass(frozen=True)
class Probes:
    """The findings of one file: of which checkpoint, at which depth and radius."""

    experiment: str
    checkpoint: str
    depth: str
    setting: Setting
    checks: list[Check]


def probe_path(report: Path, experiment: str, checkpoint: str, kind: str = "") -> Path:
    """Return the file of one checkpoint; ``kind`` is :data:`TRANSFER` or :data:`SAVED` for those of pictures."""
    return report / "credibility" / escaped(experiment) / f"{escaped(checkpoint)}{kind}.json"


def is_probed(path: Path, way: Mapping[str, Any], depth: str) -> bool:
    """Whether ``path`` holds what was found in this ``way``, at this ``depth`` or a greater one."""
    if not path.is_file():
        return False
    found = _content(path)
    return found["way"] == json.loads(json.dumps(way)) and _DEPTHS.index(found["depth"]) >= _DEPTHS.index(depth)


def write_probes(
    path: Path, way: Mapping[str, Any], depth: str, checks: Iterable[Check], cost: Mapping[str, float]
) -> None:
    """Write what was found in ``way``: weights, data set, norm, epsilon, whatever else the values depend on."""
    lines = [
        {"name": check.name, "value": check.value, "images": check.images, "missing": check.missing, "note": check.note}
        for check in checks
    ]
    write_text(path, json.dumps({"way": way, "depth": depth, "cost": cost, "checks": lines}, indent=1) + "\n")


def read_probes(report: Path) -> list[Probes]:
    """Read everything that was probed under ``report``, and hold it against today's thresholds.

    Raises:
        BadInput: a file is damaged or of another version.
    """
    found = []
    for path in sorted((report / "credibility").glob("*/*.json")):
        if path.name.startswith("."):
            continue
        content, name = _content(path), path.name.removesuffix(".json").removesuffix(TRANSFER).removesuffix(SAVED)
        way = content["way"]
        setting = Setting(str(way["dataset"]), str(way["norm"]), float(way["epsilon"]))
        checks = [_check(line, setting, path) for line in content["checks"]]
        found.append(Probes(unquote(path.parent.name), unquote(name), content["depth"], setting, checks))
    return found


def _check(line: Mapping[str, Any], setting: Setting, path: Path) -> Check:
    rule = RULES.get(line["name"])
    if rule is None:
        raise BadInput(f"expected a check that has a rule, found {line['name']!r}: {path}; delete it and run again")
    if line["value"] is None:
        return rule.absent(setting, line["note"], failed=line["missing"] == "failed")
    return rule.measured(line["value"], setting, images=line["images"], note=line["note"])


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        needed = {key: content[key] for key in ("way", "depth", "checks")}
        _DEPTHS.index(needed["depth"])
        [needed["way"][key] for key in ("dataset", "norm", "epsilon")]
        [line[key] for line in needed["checks"] for key in ("name", "value", "images", "missing", "note")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"expected the findings of probes, found {' '.join(str(error).split()) or 'something else'}: {path}; "
            "delete it and run again"
        ) from error
    return content
