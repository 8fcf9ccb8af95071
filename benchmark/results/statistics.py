"""Say how sure a figure is: Wilson and bootstrap intervals, paired tests, Holm's correction, intervals of ranks.

Correctness is handed over as ``cells``, an array ``(series, runs, images)`` of 1 (right), 0 (fooled) and NaN (not
judged): one series per method and attack, one run per trained network (seed and fold), one image per test image of a
fold. What several series share in a call is resampled together, which is what makes differences and ranks paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

LEVEL = 0.95
RESAMPLES = 10_000  # with 50 methods, Holm asks the smallest p to be under 0.001; this many can show 0.0002
INTERVAL_RESAMPLES = 2_000  # the ends of an interval need fewer
_CHUNK = 250  # resamples at a time: 250 x 10,000 images are 10 MB

Array = NDArray[np.floating]
Verdict = Literal["higher", "lower", "not resolved"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; NaN where there was nothing to estimate from."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much the first of two methods keeps above the second, in accuracy, with the p value of no difference."""

    interval: Interval
    p: float
    runs: int
    images: int


@lru_cache(maxsize=100_000)  # one report asks for the same counts again and again, and scipy computes a p value beside
def wilson(right: int, images: int) -> Interval:
    """Return the accuracy of ``right`` in ``images`` with Wilson's score interval; all in [0, 1].

    Source: Wilson, JASA 1927, through ``scipy.stats.binomtest``.
    """
    if images == 0:
        return Interval(np.nan, np.nan, np.nan)
    found = binomtest(right, images).proportion_ci(LEVEL, method="wilson")
    return Interval(right / images, min(float(found.low), right / images), max(float(found.high), right / images))


def unpaired_difference(right: tuple[int, int], images: tuple[int, int]) -> Interval:
    """Return the difference of two accuracies on different images, the first minus the second, with its interval.

    Source: Newcombe, Statistics in Medicine 1998, method 10: from the two Wilson intervals.
    """
    first, second = wilson(right[0], images[0]), wilson(right[1], images[1])
    estimate = first.estimate - second.estimate
    below = np.hypot(first.estimate - first.low, second.high - second.estimate)
    above = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate, float(estimate - below), float(estimate + above))


def resampled_means(cells: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Draw runs and images with replacement, together for all series, and return the means ``(resamples, series)``.

    The two-way bootstrap: a draw gives every run and every image a count, a cell weighs the product of the two. A
    network retrained and a test set redrawn are both in the spread; of two or three runs it underestimates the former.
    Equal seeds give equal draws. A mean is NaN where the draw met no judged cell.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
    """
    series, runs, images = cells.shape
    judged = ~np.isnan(cells)
    right = np.where(judged, cells, 0).astype(np.float32).reshape(series * runs, images)  # sums of counts stay exact
    judged = judged.astype(np.float32).reshape(series * runs, images)
    means = []
    for run_counts, image_counts in _counts(runs, images, resamples, seed):
        shape = (len(run_counts), series, runs)
        hits = np.einsum("bsr,br->bs", (image_counts @ right.T).reshape(shape).astype(float), run_counts)
        total = np.einsum("bsr,br->bs", (image_counts @ judged.T).reshape(shape).astype(float), run_counts)
        means.append(np.divide(hits, total, out=np.full_like(hits, np.nan), where=total > 0))
    return np.concatenate(means)


def accuracies(cells: Array, *, resamples: int = INTERVAL_RESAMPLES, seed: int = 0) -> list[Interval]:
    """Return the accuracy of each series: Wilson's interval for a single run, the two-way bootstrap for several."""
    judged = ~np.isnan(cells)
    alone = judged.any(2).sum(1) <= 1
    found: list[Interval] = [
        wilson(int(np.nansum(cell)), int(seen.sum())) for cell, seen in zip(cells, judged, strict=True)
    ]
    several = np.flatnonzero(~alone)
    if len(several):
        low, high = _ends(resampled_means(cells[several], resamples=resamples, seed=seed))
        for place, start, stop in zip(several, low, high, strict=True):
            estimate = found[place].estimate
            if start == stop:  # every network agreed on every image: redrawing shows no spread, which is no certainty
                images = int(judged[place].any(0).sum())
                found[place] = wilson(round(estimate * images), images)
            else:
                found[place] = Interval(estimate, min(start, estimate), max(stop, estimate))
    return found


def paired_difference(first: Array, second: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Compare two methods on the cells ``(runs, images)`` that both have: same images, same seeds.

    One run: McNemar's exact test on the images that only one of the two gets right, and the interval of Agresti and Min
    (Statistics in Medicine 2005), which keeps its width where the two never disagree. Several runs: the two-way
    bootstrap, whose smallest p is 2 / (resamples + 1), unless the two never disagree.
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    runs, images = int(both.any(1).sum()), int(both.any(0).sum())
    if not both.any():
        return Difference(Interval(np.nan, np.nan, np.nan), np.nan, 0, 0)
    only_first = int(np.sum(both & (first > second)))
    only_second = int(np.sum(both & (first < second)))
    estimate = (only_first - only_second) / int(both.sum())
    if runs == 1 or only_first + only_second == 0:
        p, (low, high) = mcnemar(only_first, only_second), _agresti_min(only_first, only_second, images)
    else:
        cells = np.where(both, np.stack([first, second]), np.nan)
        draws = np.subtract(*resampled_means(cells, resamples=resamples, seed=seed).T)
        p = _two_sided(draws)
        low, high = (float(end[0]) for end in _ends(draws[:, None]))
    return Difference(Interval(estimate, min(low, estimate), max(high, estimate)), p, runs, images)


def difference_interval(first: Array, second: Array, *, resamples: int = INTERVAL_RESAMPLES, seed: int = 0) -> Interval:
    """Return the accuracy of ``first`` minus that of ``second``, cells ``(runs, images)``, with the bootstrap interval.

    On the cells that both have, resampled together; for a single run over images alone.
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    if not both.any():
        return Interval(np.nan, np.nan, np.nan)
    cells = np.where(both, np.stack([first, second]), np.nan)
    draws = np.subtract(*resampled_means(cells, resamples=resamples, seed=seed).T)
    low, high = (float(end[0]) for end in _ends(draws[:, None]))
    return Interval(float((first[both] - second[both]).mean()), low, high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two counts of disagreement."""
    disagreements = only_first + only_second
    return 1.0 if disagreements == 0 else float(binomtest(only_first, disagreements).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p values of one family by Holm's step-down method, in their order; NaN (not tested) stays outside.

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, dtype=float)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    corrected = np.full(len(p), np.nan)
    steps = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * steps))
    return [float(value) for value in corrected]


def verdict(difference: float, p_holm: float) -> Verdict:
    """Put a corrected comparison into words; what is not significant is not resolved, never equal."""
    if np.isnan(p_holm) or p_holm >= 1 - LEVEL or difference == 0:
        return "not resolved"
    return "higher" if difference > 0 else "lower"


def rank_intervals(cells: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> list[tuple[int, int]]:
    """Return for each series the lowest and highest rank (1 is best) that 95% of the resamples leave open.

    Where series tie, the low end counts the tie as won and the high end as lost, so that two equal methods share an
    interval. The interval always holds the rank of the figures themselves.
    """
    draws = resampled_means(cells, resamples=resamples, seed=seed)
    draws = draws[~np.isnan(draws).any(1)]
    best, worst = _ranks(draws)
    low, _ = _ends(best)
    _, high = _ends(worst)
    now_best, now_worst = (ranks[0] for ranks in _ranks(np.nanmean(cells, axis=(1, 2))[None]))
    return [
        (int(min(start, now)), int(max(stop, then)))
        for start, stop, now, then in zip(low, high, now_best, now_worst, strict=True)
    ]


def _counts(runs: int, images: int, resamples: int, seed: int) -> Iterator[tuple[Array, NDArray[np.float32]]]:
    """Yield, in chunks, how often each run ``(chunk, runs)`` and each image ``(chunk, images)`` was drawn."""
    draws = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        chunk = min(_CHUNK, resamples - start)
        yield _drawn(draws, chunk, runs), _drawn(draws, chunk, images).astype(np.float32)


def _drawn(draws: np.random.Generator, chunk: int, size: int) -> Array:
    picked = draws.integers(0, size, (chunk, size)) + size * np.arange(chunk)[:, None]
    return np.bincount(picked.ravel(), minlength=chunk * size).reshape(chunk, size).astype(float)


def _ends(draws: Array) -> tuple[Array, Array]:
    """Return the ends of the middle 95% of ``draws (resamples, series)``, each a value that was drawn."""
    tail = 100 * (1 - LEVEL) / 2
    return (
        np.nanpercentile(draws, tail, axis=0, method="lower"),
        np.nanpercentile(draws, 100 - tail, axis=0, method="higher"),
    )


def _ranks(means: Array) -> tuple[Array, Array]:
    """Return ranks ``(resamples, series)``, 1 for the highest mean: ties counted as won, and as lost."""
    ascending = np.sort(means, axis=1)
    best, worst = np.empty_like(means), np.empty_like(means)
    for row, (values, ranked) in enumerate(zip(means, ascending, strict=True)):
        best[row] = len(values) - np.searchsorted(ranked, values, side="right") + 1
        worst[row] = len(values) - np.searchsorted(ranked, values, side="left")
    return best, worst


def _agresti_min(only_first: int, only_second: int, images: int) -> tuple[float, float]:
    b, c, n = only_first + 0.5, only_second + 0.5, images + 2
    middle = (b - c) / n
    half = 1.959963984540054 * np.sqrt(max(b + c - (b - c) ** 2 / n, 0)) / n
    return max(-1.0, middle - half), min(1.0, middle + half)


def _two_sided(draws: Array) -> float:
    draws = draws[~np.isnan(draws)]
    below, above = np.sum(draws <= 0), np.sum(draws >= 0)
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1)))
