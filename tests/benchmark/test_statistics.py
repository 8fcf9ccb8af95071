"""The statistics against known values, and properties that must hold whatever the verdicts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.results.statistics import (
    accuracies,
    holm,
    mcnemar,
    paired_difference,
    rank_intervals,
    resampled_means,
    verdict,
    wilson,
)
from benchmark.results.worst_case import with_worst_case

p_values = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=20)


def cells(seed=0, series=3, runs=2, images=60, chance=0.6):
    return (np.random.default_rng(seed).random((series, runs, images)) < chance).astype(float)


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images))))
def test_wilson_holds_the_estimate_and_stays_a_fraction(counts):
    found = wilson(*counts)
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_wilson_repeats_the_textbook():
    found = wilson(81, 263)  # Newcombe, Statistics in Medicine 1998, table I, method 3
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_of_nothing_is_unknown():
    assert np.isnan([wilson(0, 0).estimate, wilson(0, 0).low, wilson(0, 0).high]).all()


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 22 / 1024), (0, 10, 2 / 1024), (6, 16, 0.0524788)],
)
def test_mcnemar_repeats_the_binomial_tail(one, other, p):
    assert mcnemar(one, other) == pytest.approx(p, rel=1e-5)
    assert mcnemar(other, one) == mcnemar(one, other)


@given(p_values)
def test_holm_never_lowers_a_p_value_nor_changes_their_order(values):
    corrected = holm(values)
    assert all(1 >= after >= before for before, after in zip(values, corrected, strict=True))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_holm_repeats_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04]) == [0.04]


def test_a_comparison_that_was_not_made_does_not_weigh_in_the_family():
    assert holm([0.01, float("nan")])[0] == 0.01


def test_one_network_gets_wilsons_interval():
    one = cells(runs=1)
    assert accuracies(one)[0] == wilson(int(one[0].sum()), 60)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4), st.floats(0.05, 0.95))
def test_the_bootstrap_holds_the_estimate_and_stays_a_fraction(seed, runs, chance):
    for found in accuracies(cells(seed, 2, runs, 40, chance), resamples=300):
        assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_the_bootstrap_is_repeatable_and_its_seed_counts():
    draws = resampled_means(cells(), resamples=600)
    np.testing.assert_array_equal(draws, resampled_means(cells(), resamples=600))
    assert (draws != resampled_means(cells(), resamples=600, seed=1)).any()


def test_the_bootstrap_spreads_as_the_binomial_does_when_networks_agree():
    one = np.repeat(cells(series=1, runs=1, images=400), 3, axis=1)  # three copies of one network
    spread = resampled_means(one, resamples=4000).std()
    rate = one.mean()
    assert spread == pytest.approx(np.sqrt(rate * (1 - rate) / 400), rel=0.05)


def test_networks_that_differ_widen_the_interval():
    steady = np.zeros((1, 3, 100))
    steady[..., :50] = 1
    unsteady = steady.copy()
    unsteady[0, 0, :30], unsteady[0, 1, 50:80] = 0, 1
    one, other = (accuracies(those)[0] for those in (steady, unsteady))
    assert other.high - other.low > 1.5 * (one.high - one.low)


def test_folds_with_their_own_images_leave_gaps_that_do_not_count():
    gaps = np.full((1, 2, 40), np.nan)
    gaps[0, 0, :20], gaps[0, 1, 20:] = 1, 0  # each network saw its own fold only
    found = accuracies(gaps)[0]
    assert found.estimate == 0.5
    assert (found.low, found.high) == (0, 1)  # a redraw may take the same network twice


def test_networks_that_all_fail_are_not_certain_to_fail():
    found = accuracies(np.zeros((1, 3, 50)))[0]
    assert found == wilson(0, 50)
    assert found.high > 0.05


def test_a_difference_in_one_network_is_mcnemars():
    first, second = cells(1, 1, 1, 80)[0], cells(2, 1, 1, 80)[0]
    only_first, only_second = int((first > second).sum()), int((first < second).sum())
    found = paired_difference(first, second)
    assert found.p == mcnemar(only_first, only_second)
    assert found.interval.estimate == pytest.approx(first.mean() - second.mean())
    assert found.interval.low <= found.interval.estimate <= found.interval.high


@pytest.mark.parametrize("runs", [1, 3])
def test_methods_that_never_disagree_are_not_resolved_and_keep_a_width(runs):
    same = cells(runs=runs)[0]
    found = paired_difference(same, same)
    assert found.p == 1
    assert found.interval.low < 0 < found.interval.high
    assert verdict(found.interval.estimate, found.p) == "not resolved"


@pytest.mark.parametrize("runs", [1, 3])
def test_exchanging_two_methods_turns_the_difference_round(runs):
    first, second = cells(3, 1, runs, 80, 0.8)[0], cells(4, 1, runs, 80, 0.5)[0]
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.p == pytest.approx(back.p)
    assert there.interval.estimate == pytest.approx(-back.interval.estimate)
    assert verdict(there.interval.estimate, there.p) == "higher"
    assert verdict(back.interval.estimate, back.p) == "lower"


def test_only_what_both_methods_judged_is_compared():
    first, second = np.ones((2, 10)), np.zeros((2, 10))
    second[1], first[0, :4] = np.nan, np.nan
    found = paired_difference(first, second)
    assert (found.runs, found.images, found.interval.estimate) == (1, 6, 1.0)
    assert np.isnan(paired_difference(first, np.full((2, 10), np.nan)).p)


def test_a_p_value_under_no_difference_is_rarely_small():
    small = [paired_difference(*cells(seed, 2, 1, 100)).p < 0.05 for seed in range(200)]
    assert np.mean(small) < 0.06  # the exact test keeps its level


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 3))
def test_rank_intervals_are_ranks_and_hold_the_rank_of_the_figures(seed, series, runs):
    table = cells(seed, series, runs, 30)
    found = rank_intervals(table, resamples=300)
    means = table.mean(axis=(1, 2))
    for place, (low, high) in enumerate(found):
        assert 1 <= low <= 1 + (means > means[place]).sum() <= high <= series
    for rank in range(1, series + 1):
        assert any(low <= rank <= high for low, high in found)


def test_equal_methods_share_their_interval_and_better_ones_stand_apart():
    same = cells(series=1, runs=1, images=200)
    found = rank_intervals(np.concatenate([same, same, np.zeros((1, 1, 200))]))
    assert found == [(1, 2), (1, 2), (3, 3)]


def made_up(kept: dict[str, list[float]], epsilons=(0.1, 0.2, 0.3), missing=()) -> pd.DataFrame:
    """Verdicts of attacks that fool image i beyond ``kept[attack][i]``, which need not be monotone between attacks."""
    rows = [
        ("one", "last", attack, epsilon, index, bool(limit < epsilon), False)
        for attack, limits in kept.items()
        for epsilon in epsilons
        for index, limit in enumerate(limits)
        if (attack, epsilon, index) not in missing
    ]
    return pd.DataFrame(rows, columns=["experiment", "checkpoint", "attack", "epsilon", "index", "fooled", "carried"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=24, max_size=24))
def test_the_worst_case_never_falls_behind_an_attack_nor_recovers_with_epsilon(fooled):
    verdicts = made_up({"pgd20": [1] * 4, "cw20": [1] * 4})
    verdicts["fooled"] = fooled  # any verdicts at all: an attack may well fail at a larger epsilon
    joined = with_worst_case(verdicts)
    worst = joined[joined.attack == "worst_case"].pivot(index="epsilon", columns="index", values="fooled")
    assert (worst.astype(int).diff().dropna() >= 0).all().all()
    for _, row in verdicts[verdicts.fooled].iterrows():
        assert worst.loc[row.epsilon, row["index"]]


def test_the_worst_case_speaks_only_of_images_that_every_attack_has_reached():
    missing = {("cw20", epsilon, 3) for epsilon in (0.1, 0.2, 0.3)}
    joined = with_worst_case(made_up({"pgd20": [1, 1, 1, 1], "cw20": [0, 1, 1, 1]}, missing=missing))
    worst = joined[(joined.attack == "worst_case") & (joined.epsilon == 0.1)]
    assert worst["index"].tolist() == [0, 1, 2]
    assert worst.fooled.tolist() == [True, False, False]


def test_a_clean_mistake_counts_at_every_epsilon():
    clean = made_up({"clean": [-1, 1]}, epsilons=(0.0,))
    joined = with_worst_case(pd.concat([clean, made_up({"pgd20": [1, 1]})]))
    assert joined[joined.attack == "worst_case"].groupby("epsilon").fooled.sum().tolist() == [1, 1, 1]
