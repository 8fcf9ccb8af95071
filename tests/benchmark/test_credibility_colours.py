"""How a colour is decided, and which thresholds may decide it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.credibility.colours import colour, of_row
from benchmark.credibility.record import Bounds, Rule, Setting
from benchmark.credibility.rules import CIFAR, DIGITS, GAP, RULES

HERE, ELSEWHERE = Setting("mine", "linf", 0.1), Setting("mine", "linf", 0.2)
RULE = Rule("a rule", "of nothing", (Bounds(0.1, 0.3, "a paper"),), share=False)
OWN = Rule("a rule", "of nothing", (Bounds(0.1, 0.3, "a paper", HERE),), share=False)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_value_never_looks_better(value, more):
    order = ["green", "amber", "red"]
    low, high = (order.index(colour(RULE.measured(one, HERE))) for one in sorted([value, more]))
    assert low <= high


@pytest.mark.parametrize(("value", "expected"), [(0.1, "green"), (0.11, "amber"), (0.3, "amber"), (0.31, "red")])
def test_a_threshold_is_crossed_by_what_lies_above_it(value, expected):
    assert colour(RULE.measured(value, HERE)) == expected


def test_what_is_no_number_is_red_what_failed_is_amber_and_what_does_not_apply_has_no_colour():
    assert colour(RULE.measured(math.nan, HERE)) == "red"
    assert colour(RULE.absent(HERE, "it raised", failed=True)) == "amber"
    assert colour(RULE.absent(HERE, "two classes")) == "not applicable"


def test_borrowed_thresholds_may_warn_but_not_condemn_and_say_whose_they_are():
    at_home, abroad = OWN.measured(0.9, HERE), OWN.measured(0.9, ELSEWHERE)
    assert (colour(at_home), colour(abroad)) == ("red", "amber")
    assert at_home.source == "a paper"
    assert abroad.source == "a paper; borrowed from mine, linf 0.1"


def test_thresholds_set_for_a_data_set_and_radius_go_before_others():
    on_digits, on_cifar = (GAP.measured(0.15, setting) for setting in (DIGITS, CIFAR))
    assert (colour(on_digits), colour(on_cifar)) == ("amber", "red")
    assert colour(GAP.measured(0.15, Setting("cifar10", "linf", 2 / 255))) == "amber"


def test_of_a_share_of_images_one_alone_is_too_little_for_red():
    share = Rule("a rule", "of nothing", (Bounds(0, 0.002, "a paper"),))
    assert colour(share.measured(1 / 64, HERE, images=64)) == "amber"
    assert colour(share.measured(2 / 64, HERE, images=64)) == "red"
    assert colour(share.measured(3 / 1000, HERE, images=1000)) == "red"


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_threshold_has_a_source_and_red_lies_no_lower_than_amber(rule):
    assert rule.meaning
    for bounds in rule.bounds:
        assert "arXiv:" in bounds.source or bounds.source.startswith(("ours", "protocol"))
        assert bounds.red is None or bounds.red >= bounds.amber


def test_a_row_shows_its_worst_colour_and_why():
    assert of_row([("a", "green"), ("b", "amber"), ("c", "red"), ("d", "red")]) == "red: c, d"
    assert of_row([("a", "green"), ("b", "amber")]) == "amber: b"
    assert of_row([("a", "green"), ("b", "not applicable")]) == "green"
    assert of_row([(letter, "amber") for letter in "abcde"]) == "amber: a, b, c and 2 more"


def test_a_row_is_not_green_on_its_verdicts_alone():
    assert of_row([("a", "green")], probed=False) == "not probed"
    assert of_row([("a", "red")], probed=False) == "red: a; not probed"
