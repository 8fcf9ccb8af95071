"""Predictions that may be refused: the confidence below which they are, and what is left of errors above it.

Confidence is the largest probability. Written with NumPy alone, because reports are made without PyTorch.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TRUE_POSITIVES = 0.99  # of clean images that are right, so many shall be accepted


class Answers(NamedTuple):
    """What a network says of some images: whether it is wrong, ``(n,)``, and how confident it is, ``(n,)``."""

    wrong: NDArray[np.bool_]
    confidence: NDArray[np.floating[Any]]


def threshold(clean: Answers, share: float = TRUE_POSITIVES) -> float:
    """Give the confidence that ``share`` of the clean images that are right reach; 0 where none is right.

    It is number floor((1 - share) n), counted from 0, of their n confidences in ascending order. Source: Stutz et al.,
    ICML 2020, arXiv:1910.06259, and their code.
    """
    right = np.sort(clean.confidence[~clean.wrong])
    return float(right[math.floor(len(right) * round(1 - share, 2))]) if len(right) else 0.0


def accepted_share(clean: Answers, tau: float) -> float:
    """Give the true positive rate: the share of right images whose confidence reaches ``tau``; NaN where none is."""
    right = clean.confidence[~clean.wrong]
    return float((right >= tau).mean()) if len(right) else math.nan


class Judged(NamedTuple):
    """Which images count under attack, ``(n,)``: a prediction is ``accepted``; one of the accepted is ``wrong``."""

    accepted: NDArray[np.bool_]
    wrong: NDArray[np.bool_]

    @property
    def error(self) -> float:
        """The robust test error at the threshold; 0 where nothing is accepted."""
        return float(self.wrong.sum() / self.accepted.sum()) if self.accepted.any() else 0.0


def judge(clean: Answers, attacked: Answers, tau: float) -> Judged:
    """Judge images as they stand and as they were attacked, at the threshold ``tau``: either may be what errs."""
    clean_in, attacked_in = clean.confidence >= tau, attacked.confidence >= tau
    return Judged(clean_in | attacked_in, (clean.wrong & clean_in) | (attacked.wrong & attacked_in))


def false_positive_rate(clean: Answers, attacked: Answers, tau: float) -> float:
    """Give the share of all images that are right as they stand and, attacked, wrong and accepted."""
    return float((~clean.wrong & attacked.wrong & (attacked.confidence >= tau)).mean())


def area_under_curve(clean: Answers, attacked: Answers) -> float:
    """Give how often a clean image is more confident than a successful attack on a right one; 1 where none succeeds.

    The area under the receiver operating characteristic, equal confidences counting one half.
    """
    negatives = np.sort(attacked.confidence[~clean.wrong & attacked.wrong])
    if not len(negatives):
        return 1.0
    below, up_to = (np.searchsorted(negatives, clean.confidence, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negatives)))
