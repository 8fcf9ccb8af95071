"""Sweep AutoAttack over radii: what is known of an image at one radius says something of it at the others.

``strict`` attacks every image at every radius. ``descending`` attacks in full where models are ranked, and then goes
from the largest of the other radii down: an image that was fooled at a smaller radius is fooled by the same picture,
which is exact; one that held at a larger radius is taken to hold, which an attack that is no proof may get wrong; only
what is left is attacked. Verdicts that were taken over are marked ``carried``: they belong in curves and nowhere else.
"""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmark.evaluation_settings import Evaluation
from benchmark.results import evidence

# Too dear for every checkpoint and radius: the ranked checkpoint only, and without a sweep the ranked radii only.
RANKING_ONLY = ("autoattack", "autoattack_plus", "autoattack_rand", "autoattack_custom")


class Job(NamedTuple):
    """One attack at one radius; ``clean`` at radius 0 is no attack at all."""

    attack: str
    epsilon: float


def radii(settings: Evaluation) -> list[float]:
    """List the radii of AutoAttack in the order in which they are attacked: those of the ranking first."""
    ranked = [float(epsilon) for epsilon in settings.ranked_at]
    others = sorted({float(epsilon) for epsilon in settings.epsilons} - set(ranked), reverse=True)
    return ranked if settings.sweep == "none" else ranked + others


def in_full(settings: Evaluation, job: Job) -> bool:
    """Whether every image is attacked, whatever is known of it from other radii."""
    return settings.sweep != "descending" or job.attack not in RANKING_ONLY or job.epsilon in settings.ranked_at


def finished_parts(folder: Path, settings: Evaluation, job: Job) -> list[Path]:
    """List the part files that need not be made again: with carried verdicts they are none for a job in full.

    Raises:
        BadInput: for a damaged part.
    """
    found = evidence.finished_parts(folder)
    if job.attack not in RANKING_ONLY or not in_full(settings, job):
        return found
    return [path for path in found if not evidence.read_part(_part(path, job)).carried.any()]


class Known:
    """What was found of each part's images at the radii before.

    Args:
        jobs: of one model, in order.
        place: the folder of a job's verdicts; without it all stays in memory.
    """

    def __init__(self, settings: Evaluation, jobs: Sequence[Job], place: Callable[[Job], Path] | None) -> None:
        self._settings, self._jobs, self._place = settings, list(jobs), place
        self._frames: dict[tuple[Job, int], pd.DataFrame] = {}

    def note(self, job: Job, number: int, frame: pd.DataFrame) -> None:
        """Remember the verdicts of part ``number``, where later jobs may ask for them."""
        if self._settings.sweep == "descending" and job.attack in RANKING_ONLY:
            self._frames[job, number] = frame

    def carried(self, job: Job, number: int) -> pd.DataFrame:
        """Give the verdicts of part ``number`` that need no attack, one row an image, in any order."""
        if in_full(self._settings, job):
            return pd.DataFrame(columns=evidence.SCHEMA.names)
        before = [other for other in self._jobs[: self._jobs.index(job)] if other.attack == job.attack]
        return carried(pd.concat([self._of(other, number) for other in before], ignore_index=True), job.epsilon)

    def _of(self, job: Job, number: int) -> pd.DataFrame:
        if (job, number) not in self._frames:  # it was finished before this process began
            assert self._place is not None
            part = _part(evidence.part_path(self._place(job), number), job)
            self._frames[job, number] = evidence.read_part(part)
        return self._frames[job, number]


def carried(known: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """Give the verdicts at ``epsilon`` that follow from those ``known`` at other radii, all of one attack.

    Each is a copy of the row it comes from, without its cost: of the smallest radius that fooled the image, else of the
    next larger one at which it held. Rows that are carried themselves are nobody's source.

    Args:
        known: columns of the evidence.
    """
    own = known[~known.carried.astype(bool)].sort_values("epsilon", kind="stable")
    fooled = own[own.fooled.astype(bool) & (own.epsilon <= epsilon)].drop_duplicates("index")
    held = own[~own.fooled.astype(bool) & (own.epsilon > epsilon)].drop_duplicates("index")
    held = held[~held["index"].isin(fooled["index"])]
    rows = pd.concat([fooled, held], ignore_index=True)
    return rows.assign(epsilon=epsilon, forward=0.0, backward=0.0, seconds=0.0, carried=True)


def joined(carried: pd.DataFrame, attacked: pd.DataFrame, order: Sequence[int]) -> pd.DataFrame:
    """Put the verdicts of one part together, in the ``order`` of its sample indices."""
    whole = pd.concat([frame for frame in (carried, attacked) if len(frame)]).drop_duplicates("index")
    return whole.set_index("index").loc[list(order)].reset_index()[evidence.SCHEMA.names]


def journal_name(number: int, rows: Sequence[int], *, whole: bool) -> str:
    """Name the folder of an unfinished part: where only some ``rows`` of it are attacked, after those."""
    mark = "" if whole else f".{zlib.crc32(repr(list(rows)).encode()):08x}"
    return f"part-{number:05d}{mark}.unfinished"


def _part(path: Path, job: Job) -> evidence.Part:
    return evidence.Part(path, "", "", job.attack, job.epsilon)
