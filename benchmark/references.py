"""The runs that a semi-supervised method is shown beside: all equal but that they see the labelled images alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmark.experiment import Experiment, experiment
from benchmark.settings import resolve
from benchmark.suite import Suite


def references(experiments: Sequence[Experiment], suite: Suite, data_root: Path | None = None) -> list[Experiment]:
    """List what ``experiments`` of semi-supervised methods need beside themselves, each once: teachers and lower ends.

    Args:
        suite: uncut, because a reference has the settings that the suite gives to its method, the oracle's own.
    """
    listed = {(one.row, one.seed, one.fold) for one in experiments}
    found: dict[tuple[str, int, int], Experiment] = {}
    for one in experiments:
        wanted = one.method_class.references
        if wanted is None or one.labels is None:
            continue
        for reference in (wanted.teacher, *wanted.lower):
            row = f"{reference.name or reference.method}@{one.labels}"
            own = {**(suite.methods.get(reference.method) or {}), **reference.settings}
            settings = resolve(reference.method, own, suite.inner_steps)
            like = replace(suite, dataset=one.dataset, network=one.network, own={})
            made = experiment(like, reference.method, settings, one.fold, one.seed, one.labels, row, data_root)
            found.setdefault((row, one.seed, one.fold), replace(made, reference=True))
    return [
        made
        for place, made in found.items()
        if place not in listed and not any(_same(made, one) for one in experiments)
    ]


def _same(one: Experiment, other: Experiment) -> bool:
    """Tell whether two experiments of a suite are one, such as a method's reference to a variant that is listed."""
    return all(getattr(one, part) == getattr(other, part) for part in ("method", "settings", "labels", "fold", "seed"))


def with_teachers(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Give ``experiments`` with the teachers that they wait for, each once."""
    teachers = {one.teacher.name: one.teacher for one in experiments if one.teacher is not None}
    return [*teachers.values(), *experiments]


def beside(one: Experiment) -> dict[str, str]:
    """Name the rows that ``one`` is shown beside: teacher, lower end (or two) and oracle; nothing for other methods."""
    wanted = one.method_class.references
    if wanted is None or one.labels is None or one.reference:
        return {}
    teacher, lower, *second = (f"{of.name or of.method}@{one.labels}" for of in (wanted.teacher, *wanted.lower))
    return {"teacher": teacher, "lower": lower, "oracle": wanted.oracle} | ({"lower_too": second[0]} if second else {})
