"""What there is to choose from, as lines of text."""

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmark import architectures, data, suite
from benchmark.results import speed
from benchmark.results.method_warnings import Warned, named
from benchmark.results.rows import method_of
from methods import catalogue

_WIDEST = 110
_NEVER = "not measured (atbench speed {})"


def listing(what: str) -> list[str]:
    """List methods, suites, datasets or architectures; all but methods take one line each."""
    if what == "methods":
        return methods(speed.read())
    if what == "suites":
        rows = [(name, _setting(suite.load(name))) for name in suite.names()]
        rows += [(name, _recipe(suite.load(name))) for name in suite.recipes()]
    elif what == "datasets":
        rows = [(name, data.describe(name).summary) for name in [*data.names(), *data.described_only()]]
    else:
        rows = [(name, architectures.describe(name)) for name in architectures.names()]
        rows.append(("torchvision/NAME", "Any torchvision classifier, such as torchvision/resnet18, untrained."))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def methods(measurements: pd.DataFrame) -> list[str]:
    """List all methods: key, class, category and measured cost in one line, below it what they do and warnings.

    Args:
        measurements: as ``benchmark.results.speed.read``.
    """
    keys = catalogue.names()
    figures = measured(keys, measurements, _cards(keys))
    lines = figures[:1]
    for key, figure in zip(keys, figures[1:], strict=False):
        found = catalogue.get(key)
        broken = Warned(broken=found.card.broken).sentences
        lines.append(figure)
        for text in ((found.__doc__ or "").splitlines()[0], *(f"Warning: {sentence}" for sentence in broken)):
            lines += _wrapped(text, "    ")
    return [*lines, *figures[1 + len(keys) :]]


def measured(
    keys: Sequence[str], measurements: pd.DataFrame, before: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """Write measurements in columns: headings, a line per method, then what the figures mean and where they come from.

    Args:
        measurements: as ``benchmark.results.speed.read``.
        before: what stands in front of the figures, headings first; by default the method's name.
    """
    known = {line["method"]: line for line in measurements[measurements.method.isin(keys)].to_dict("records")}
    front = before or [["method"], *([key] for key in keys)]
    figures = [_figures(known[key]) if key in known else [_NEVER.format(key)] for key in keys]
    behind = [["passes", "seconds", "memory (MiB)"], *figures]
    rows = [[*first, *last] for first, last in zip(front, behind, strict=True)]
    return _aligned(rows) + (["", *_meaning(pd.DataFrame(known.values()))] if known else [])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad all cells but the last of each row, which may be a sentence."""
    inner = [[len(row[place]) for row in rows if place < len(row) - 1] for place in range(len(rows[0]) - 1)]
    widths = [max(lengths) for lengths in inner]
    lines = [[f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=False)] for row in rows]
    return ["  ".join(line).rstrip() for line in lines]


def _cards(keys: Sequence[str]) -> list[list[str]]:
    cards = [catalogue.get(key).card for key in keys]
    names = [named(card.key, Warned(card.reconstruction).note) for card in cards]
    return [
        ["method", "class", "category"],
        *([name, card.comparison, card.category] for name, card in zip(names, cards, strict=True)),
    ]


def _figures(line: dict[Any, Any]) -> list[str]:
    return [
        f"{line['forward_passes']:.3g} / {line['backward_passes']:.3g}",
        f"{line['ratio']:.3g} ({line['ratio_low']:.3g} - {line['ratio_high']:.3g})",
        f"{line['peak_memory_mib']:.0f} (+{line['memory_growth_mib']:.0f})",
    ]


def _meaning(lines: pd.DataFrame) -> list[str]:
    """Say what the figures are of, and on what they were measured; what differs between methods is told as a list."""
    said = {str(name): " and ".join(sorted({_plain(value) for value in lines[name]})) for name in lines}
    texts = [
        "passes: forward / backward, per training image and epoch, averaged over the whole schedule",
        f"seconds: of training, over those of natural training beside it: median (least - most) of {said['repeats']}",
        f"memory: {said['peak_memory_of']} at its peak, and what training added to it",
        f"Measured by {said['command']} on {said['date']}: short complete trainings ({said['epochs']} epochs of "
        f"{said['images']} images in batches of {said['batch_size']}) of {said['network']} on {said['dataset']}; "
        f"{_where(said)}; {said['versions']}",
    ]
    return [line for text in texts for line in _wrapped(text, "", "  ")]


def _plain(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _where(said: dict[str, str]) -> str:
    return f"one thread of {said['processor']}" if said["device"] == "cpu" else f"{said['device']}, {said['processor']}"


def _wrapped(text: str, indent: str, hanging: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDEST, initial_indent=indent, subsequent_indent=indent + hanging)


def _recipe(found: suite.Suite) -> str:
    how = "no row in Table 1" if found.evaluation.row is None else f"its row: {found.evaluation.row}"
    return f"{found.title}: {found.dataset.name}, {found.network.name}, {found.recipe.epochs} epochs, {how}"


def _setting(found: suite.Suite) -> str:
    threat = f"{found.threat.norm} {found.threat.epsilon:.4g}"
    runs = len(found.methods) * len(found.seeds) * len(found.dataset.folds)
    size = f"{len(set(map(method_of, found.methods)))} methods, {runs} runs"
    return f"{found.title}: {found.dataset.name}, {found.network.name}, {threat}, {found.recipe.epochs} epochs, {size}"
