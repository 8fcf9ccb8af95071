"""Checks that verdicts alone answer, the mark at every row, and the files that a report makes of all this."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from benchmark.credibility import rules
from benchmark.credibility.colours import colour
from benchmark.credibility.record import Setting
from benchmark.errors import BadInput
from benchmark.report import figures
from benchmark.report.credibility import CREDIBILITY
from benchmark.report.folder import build
from benchmark.report.published_figure import published_vs_measured
from benchmark.report.summary import summarise
from benchmark.report.table import readable_accuracy, readable_comparisons, readable_stages, readable_table1
from benchmark.results.credibility import Verdicts, from_verdicts
from benchmark.results.probes import TRANSFER, is_probed, probe_path, read_probes, write_probes
from tests.benchmark.make_report import FEW, make_report, watched, write_card, write_evidence, write_suite

WAY = {"dataset": "digits", "norm": "linf", "epsilon": 0.15, "weights": "0" * 64}
HERE = Setting("digits", "linf", 0.15)
GREEN = (rules.ZERO_MARGIN.measured(0.0, HERE, images=64),)


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())


def probed(report, experiment, *checks, checkpoint="last", depth="cheap"):
    write_probes(probe_path(report, experiment, checkpoint), WAY, depth, checks or GREEN, {})


def lines(*found, checkpoint="last", images=200, carried=False) -> pd.DataFrame:
    columns = ["attack", "epsilon", "accuracy"]
    return pd.DataFrame(found, columns=columns).assign(checkpoint=checkpoint, images=images, carried=carried)


def checked(*tables, stages=(), checkpoint="last", epsilon=0.15, **card):
    survivors = pd.DataFrame(stages, columns=["stage", "accuracy"]).assign(checkpoint="last", epsilon=0.15, images=200)
    verdicts = Verdicts(pd.concat(tables), survivors, card, "digits", "linf")
    return {check.name: check for check in from_verdicts(verdicts, checkpoint, epsilon)}


def test_pgd_20_may_rise_with_epsilon_at_the_price_of_amber_the_union_may_not_at_all():
    rising = [("pgd20", 0.1, 0.6), ("pgd20", 0.15, 0.65), ("worst_case", 0.1, 0.6), ("worst_case", 0.15, 0.6)]
    found = checked(lines(*rising))
    told = found["falls with epsilon"]
    assert (colour(told), round(told.value, 6), told.note) == ("amber", 0.05, "under PGD-20")
    assert colour(found["union never rises"]) == "green"
    found = checked(lines(("worst_case", 0.1, 0.6), ("worst_case", 0.15, 0.605)))
    assert colour(found["union never rises"]) == "red"
    assert colour(found["falls with epsilon"]) == "not applicable"


def test_gaps_between_attacks_are_measured_on_verdicts_of_the_same_images():
    board = [("pgd20", 0.15, 0.7), ("cw20", 0.15, 0.62), ("autoattack", 0.15, 0.4)]
    found = checked(lines(*board))
    assert found["cross-entropy against margin"].note == "70.0 % and 62.0 %"
    assert colour(found["cross-entropy against margin"]) == "amber"
    assert colour(found["PGD-20 against AutoAttack"]) == "red"
    partial = checked(lines(board[0]), lines(board[2], images=100))["PGD-20 against AutoAttack"]
    assert (colour(partial), partial.note) == ("not applicable", "not finished: 200 and 100 images")
    carried = checked(lines(board[0]), lines(board[2], carried=True))["PGD-20 against AutoAttack"]
    assert carried.note == "AutoAttack was not run on this checkpoint at this radius"


@pytest.mark.parametrize(("left", "expected"), [(0.5, "green"), (0.49, "amber"), (0.44, "red")])
def test_what_square_takes_after_three_attacks_with_gradients_is_counted(left, expected):
    stages = [("clean", 0.9), ("apgd-ce", 0.6), ("apgd-t", 0.5), ("fab-t", 0.5), ("square", left)]
    assert colour(checked(lines(), stages=stages)["Square inside AutoAttack"]) == expected


def test_best_and_last_are_compared_under_the_strongest_attack_that_both_faced():
    last = lines(("pgd20", 0.15, 0.5), ("cw20", 0.15, 0.48), ("autoattack", 0.15, 0.4))
    best = lines(("pgd20", 0.15, 0.6), ("cw20", 0.15, 0.6), checkpoint="best")
    found = checked(last, best)["best against last"]
    assert (colour(found), found.note) == ("amber", "best 60.0 %, last 48.0 % under cw20")
    assert colour(checked(last)["best against last"]) == "not applicable"


def test_the_alarm_of_training_is_repeated_for_the_checkpoints_taken_after_it():
    card = {"method": "fast_at", "seed": 0, "history": watched(0.4, 0.1), "catastrophic_overfitting": 1}
    card["weights"] = {"last": {"epoch": 1}, "best": {"epoch": 0}}
    assert colour(checked(lines(), **card)["overfitting alarm"]) == "amber"
    assert colour(checked(lines(), checkpoint="best", **card)["overfitting alarm"]) == "green"
    assert colour(checked(lines())["overfitting alarm"]) == "not applicable"


def test_a_red_model_keeps_its_rank_and_is_never_ranked_without_its_mark(tmp_path):
    report = make_report(tmp_path / "r", {"natural": 0.05, "pgd_at": 0.28}, attacked=FEW)
    probed(report, "natural-0")
    probed(report, "pgd_at-0", rules.ZERO_MARGIN.measured(0.8, HERE, images=64))
    build(report)
    board = pd.read_csv(report / "leaderboard.csv").set_index("method")
    assert board.rank_low.tolist() == [1, 2]
    mark = "red: zero gradients (margin)"
    assert board.credibility["pgd_at"] == mark
    assert not board.credibility["natural"].startswith("red")
    for name in ("leaderboard.md", "leaderboard.tex", "credibility.md", "index.html"):
        (row,) = [line for line in (report / name).read_text().splitlines() if "pgd" in line and mark in line][:1]
        assert row
    assert f'class="red">{mark}<' in (report / "index.html").read_text()


def test_a_row_that_nobody_probed_says_so_and_is_not_green(tmp_path):
    report = make_report(tmp_path / "r", {"natural": 0.05}, attacked=FEW)
    build(report)
    (mark,) = pd.read_csv(report / "leaderboard.csv").credibility
    assert mark.endswith("not probed")


def test_of_several_networks_the_mark_says_how_many_it_holds_for(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, seeds=(0, 1, 2), attacked=FEW)
    for seed in (0, 1, 2):
        probed(report, f"pgd_at-{seed}", rules.ZERO_MARGIN.measured(0.8 * (seed == 1), HERE, images=64))
    build(report)
    (mark,) = pd.read_csv(report / "leaderboard.csv").credibility
    assert mark == "red: zero gradients (margin) (1 of 3 networks)"


def test_every_check_stands_in_csv_and_markdown_with_value_threshold_source_and_colour(tmp_path):
    report = make_report(tmp_path / "r", {"natural": 0.05}, attacked=FEW)
    probed(report, "natural-0", *GREEN, rules.CONVERGED.measured(0.1, HERE, images=64, note="a | b"))
    build(report)
    table = pd.read_csv(report / "credibility.csv").set_index("check")
    assert {"method", "method_note", *CREDIBILITY} - {"check"} <= set(table.columns)
    line = table.loc["steps converged"]
    assert (line.value, line.amber, line.red, line.colour, line.images) == (0.1, 0.05, 0.2, "amber", 64)
    assert "1902.06705" in line.source
    assert "ours" in line.source
    assert table.probes[["steps converged", "union never rises"]].tolist() == ["cheap", "evidence"]
    page = (report / "credibility.md").read_text()
    for name in table.index:
        assert name in page
    assert r"a \| b" in page


def test_failed_experiments_have_no_mark(tmp_path):
    report = tmp_path / "r"
    write_suite(report, ["natural"])
    write_card(report, "natural", status="failed", error="NaN loss")
    build(report)
    assert pd.read_csv(report / "leaderboard.csv").credibility.isna().all()


def test_what_other_models_pictures_found_replaces_the_word_that_there_were_none(tmp_path):
    report = make_report(tmp_path / "r", {"natural": 0.05}, attacked=FEW)
    probed(report, "natural-0", *GREEN, rules.TRANSFER.absent(HERE, "none"), depth="full")
    found = rules.TRANSFER.measured(0.2, HERE, images=200)
    write_probes(probe_path(report, "natural-0", "last", TRANSFER), WAY, "full", [found], {})
    build(report)
    table = pd.read_csv(report / "credibility.csv").set_index("check")
    assert (table.colour["transfer"], table.probes["transfer"]) == ("red", "full")


def test_probes_are_read_as_they_were_written_and_hold_for_these_weights_and_this_depth(tmp_path):
    path = probe_path(tmp_path, "one", "last")
    written = [*GREEN, rules.RESTARTS.absent(HERE, "why"), rules.SQUARE.absent(HERE, "raised", failed=True)]
    write_probes(path, WAY, "cheap", written, {"forward": 1})
    (found,) = read_probes(tmp_path)
    assert (found.experiment, found.checkpoint, found.setting, found.checks) == ("one", "last", HERE, written)
    assert is_probed(path, WAY, "cheap")
    assert not is_probed(path, WAY, "full")
    assert not is_probed(path, WAY | {"weights": "1"}, "cheap")
    write_probes(path, WAY, "full", GREEN, {})
    assert is_probed(path, WAY, "cheap")


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", json.dumps({"way": WAY, "depth": "cheap", "checks": [{"name": 1}]}), '{"way": {}}']
)
def test_damaged_findings_are_named(tmp_path, content):
    path = probe_path(tmp_path, "one", "last")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(BadInput, match=r"expected the findings of probes, found .*last.json; delete it and run again"):
        read_probes(tmp_path)


def test_a_check_without_a_rule_is_named(tmp_path):
    path = probe_path(tmp_path, "one", "last")
    write_probes(path, WAY, "cheap", GREEN, {})
    path.write_text(path.read_text().replace("zero gradients", "great gradients"))
    with pytest.raises(BadInput, match=r"found 'great gradients \(margin\)'"):
        read_probes(tmp_path)


def test_a_checkpoint_without_verdicts_yet_is_no_mistake(tmp_path):
    report = tmp_path / "r"
    write_suite(report, ["natural", "pgd_at"])
    probed(report, write_card(report, "natural"))
    write_evidence(report, write_card(report, "pgd_at"), np.ones(20), **FEW)
    build(report)
    assert pd.read_csv(report / "leaderboard.csv").method.tolist() == ["pgd_at", "natural"]


@pytest.fixture
def half_red(tmp_path):
    """A report of two methods, of which ``pgd_at`` is red."""
    report = make_report(tmp_path / "r", {"natural": 0.05, "pgd_at": 0.28}, attacked=FEW)
    probed(report, "natural-0")
    probed(report, "pgd_at-0", rules.ZERO_MARGIN.measured(0.8, HERE, images=64))
    return report


def test_comparisons_and_table_1_carry_the_marks_of_both_rows(half_red):
    build(half_red)
    (line,) = pd.read_csv(half_red / "comparisons.csv").to_dict("records")
    assert line["method"] == "natural"
    assert not line["credibility"].startswith("red")
    assert line["against_credibility"] == "red: zero gradients (margin)"
    rows = pd.read_csv(half_red / "table1.csv")
    marks = dict(zip(rows.method_key, rows.measured_credibility, strict=True))
    assert marks["pgd_at"] == "red: zero gradients (margin)"
    assert pd.isna(marks["trades"])
    names = [line.split("|")[2].strip() for line in (half_red / "table1.md").read_text().splitlines() if "|" in line]
    assert "pgd_at (credibility red)" in names
    assert sum("red)" in name for name in names) == names.count("pgd_at (credibility red)")


def test_every_readable_table_and_figure_that_shows_its_robustness_marks_a_red_row(half_red):
    summary = summarise(half_red)
    for read in (readable_comparisons, readable_accuracy, readable_stages, readable_table1):
        text = read(summary).to_string()
        assert "pgd_at (credibility red)" in text, read.__name__
        assert "natural (credibility red)" not in text
    for draw in (figures.clean_vs_robust, figures.cost_vs_robustness, figures.accuracy_over_epsilon,
                 figures.attack_ladder, published_vs_measured):  # fmt: skip
        written = [text.get_text() for text in draw(summary).findobj(Text)]
        assert any("pgd_at (credibility red)" in text for text in written), draw.__name__
        assert not any("natural (credibility red)" in text for text in written)


def test_a_row_that_is_red_at_one_radius_is_so_marked_beside_figures_of_that_radius(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=FEW, evaluation={"ranked_at": [0.1, 0.15]})
    probed(report, "pgd_at-0")
    summary = summarise(report)
    board = summary.leaderboard.assign(
        credibility=["red: a gap" if epsilon == 0.1 else "green" for epsilon in summary.leaderboard.epsilon]
    )
    summary = dataclasses.replace(summary, leaderboard=board)
    assert summary.marked("pgd_at", epsilon=0.1) == summary.marked("pgd_at") == "pgd_at (credibility red)"
    assert summary.marked("pgd_at", epsilon=0.15) == summary.marked("pgd_at", "best") == "pgd_at"
