"""Thresholds and errors with rejection, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from methods.rejection import (
    Answers,
    accepted_share,
    area_under_curve,
    false_positive_rate,
    judge,
    threshold,
)

CLEAN = Answers(
    wrong=np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 0], dtype=bool),
    confidence=np.array([0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.3, 0.9, 0.2, 0.6]),
)
ATTACKED = Answers(
    wrong=np.array([1, 1, 0, 1, 1, 0, 1, 1, 1, 1], dtype=bool),
    confidence=np.array([0.9, 0.2, 0.9, 0.5, 0.4, 0.3, 0.7, 0.1, 0.8, 0.55]),
)


def test_ten_images_are_judged_as_by_hand():
    tau = threshold(CLEAN, share=0.75)
    assert tau == 0.7  # eight are right; floor(.25 * 8) = 2 of .3 .6 .7 .8 ...
    assert accepted_share(CLEAN, tau) == 6 / 8
    found = judge(CLEAN, ATTACKED, tau)
    # Accepted as they stand: 0 to 5 and 7. As attacked also 6 and 8. Nothing accepts 9.
    assert found.accepted.tolist() == [True] * 9 + [False]
    # Errors above it: 0, 6 and 8 attacked, and 7 as it stands.
    assert np.flatnonzero(found.wrong).tolist() == [0, 6, 7, 8]
    assert found.error == pytest.approx(4 / 9)
    assert false_positive_rate(CLEAN, ATTACKED, tau) == pytest.approx(2 / 10)  # 0 and 6


def test_the_threshold_does_not_look_at_attacked_or_misread_images():
    without = Answers(CLEAN.wrong[:7], CLEAN.confidence[:7])
    assert threshold(without, 0.99) == threshold(Answers(CLEAN.wrong[:9], CLEAN.confidence[:9]), 0.99) == 0.3


@pytest.mark.parametrize(("right", "place"), [(99, 0), (100, 1), (195, 1), (200, 2), (1000, 10)])
def test_one_in_a_hundred_lies_below_the_threshold(right, place):
    confidence = np.random.default_rng(0).permutation(right) / right
    tau = threshold(Answers(np.zeros(right, dtype=bool), confidence))
    assert tau == pytest.approx(place / right)


def test_where_nothing_is_right_everything_is_accepted_and_where_nothing_is_accepted_there_is_no_error():
    lost = Answers(np.ones(3, dtype=bool), np.full(3, 0.5))
    assert threshold(lost) == 0
    assert math.isnan(accepted_share(lost, 0.1))
    assert judge(lost, lost, 0.0).error == 1
    assert judge(lost, lost, 0.9).error == 0


@given(st.integers(0, 10_000))
def test_the_area_under_the_curve_is_that_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)

    def draw():
        return Answers(generator.random(12) < 0.5, generator.integers(0, 5, 12) / 5)

    clean, attacked = draw(), draw()
    successful = ~clean.wrong & attacked.wrong
    if not successful.any():
        assert area_under_curve(clean, attacked) == 1
        return
    labels = np.r_[np.ones(12), np.zeros(successful.sum())]
    scores = np.r_[clean.confidence, attacked.confidence[successful]]
    assert area_under_curve(clean, attacked) == pytest.approx(roc_auc_score(labels, scores))
