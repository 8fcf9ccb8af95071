"""What there is to choose from, and what is known of a method, as lines of text."""

import inspect
from typing import Any

import yaml

from benchmark import architectures, data, own_method, suite, user_code
from benchmark.experiment import resolve
from benchmark.results import survey
from methods import catalogue

_EXTERNAL = ("source", "architecture", "dataset", "epsilon", "clean_acc", "autoattack_acc")


def listing(what: str) -> list[str]:
    """List methods, suites, datasets or architectures, one line each."""
    if what == "methods":
        rows = [(key, _summary(key)) for key in catalogue.names()]
    elif what == "suites":
        rows = [(name, _setting(suite.load(name))) for name in suite.names()]
    elif what == "datasets":
        rows = [(name, data.describe(name).summary) for name in data.names()]
    else:
        rows = [(name, architectures.describe(name)) for name in architectures.names()]
        rows.append(("torchvision/NAME", "Any torchvision classifier, such as torchvision/resnet18, untrained."))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _setting(found: suite.Suite) -> str:
    threat = f"{found.threat.norm} {found.threat.epsilon:.4g}"
    runs = len(found.methods) * len(found.seeds) * len(found.dataset.folds)
    size = f"{len(found.methods)} methods, {runs} runs"
    return f"{found.title}: {found.dataset.name}, {found.network.name}, {threat}, {found.recipe.epochs} epochs, {size}"


def _summary(key: str) -> str:
    method = catalogue.get(key)
    return f"[{method.card.comparison}] {method.card.category}: {(method.__doc__ or '').splitlines()[0]}"


def method(key: str) -> str:
    """Describe a method, the project's or a user's FILE:CLASS: docstring, settings, and what others published for it.

    Raises:
        BadInput: for an unknown key, with the nearest.
    """
    code = user_code.find(key, "Mine") if user_code.is_reference(key) else None
    found = own_method.find(key, code)
    key = found.card.key
    lines = [
        f"{key}: {found.__name__}, category {found.card.category}, ranked in class {found.card.comparison}",
        "",
        inspect.cleandoc(found.__doc__ or ""),
        "",
        "Settings (defaults; a suite sets inner.steps):",
        _indented(yaml.safe_dump(resolve(key, {}, 10, code), sort_keys=False)),
        "Published (the survey's Table 1; nothing of it was measured here):",
        *_rows(survey.table1(), key, ("architecture", "attack", "epsilon", "dataset", "accuracy_percent", "note")),
        "AutoAttack by third parties:",
        *_rows(
            survey.external_autoattack(),
            key,
            ("source", "architecture", "dataset", "epsilon", "clean_acc", "autoattack_acc"),
        ),
    ]
    return "\n".join(lines)


def _rows(table: Any, key: str, columns: tuple[str, ...]) -> list[str]:
    rows = table[table.method_key == key]
    lines = [
        "  " + "; ".join(f"{name} {row[name]}" for name in columns if str(row[name]) not in ("", "nan", "<NA>"))
        for _, row in rows.iterrows()
    ]
    return [*lines, ""] if lines else ["  none", ""]


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
