"""The report as a whole: what it writes, from finished, partial and damaged runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmark.errors import BadInput
from benchmark.report import build
from benchmark.report.page import page
from benchmark.report.summary import summarise
from benchmark.report.table import readable_accuracy, readable_leaderboard
from benchmark.results import survey
from benchmark.results.evidence import evidence_folder, write_part
from benchmark.results.statistics import holm
from tests.benchmark.make_report import (
    FEW,
    METHODS,
    NOTE,
    make_report,
    radii,
    verdicts,
    write_card,
    write_evidence,
    write_failure,
    write_suite,
)

NAMES = {
    *("leaderboard.csv", "leaderboard.md", "leaderboard.tex", "table1.csv", "table1.md", "table1.tex", "index.html"),
    "manifest.json",
    *("accuracy.csv", "autoattack_stages.csv", "comparisons.csv", "costs.csv", "alarm.csv"),
    *("credibility.csv", "credibility.md", "tradeoff.csv", "coverage.csv", "coverage.md"),
    *(
        f"figures/{name}.{kind}"
        for name in (
            "clean_vs_robust",
            "accuracy_over_epsilon",
            "attack_ladder",
            "cost_vs_robustness",
            "tradeoff",
            "published_vs_measured",
        )
        for kind in ("pdf", "png")
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_report(tmp_path_factory.mktemp("quickstart"))
    build(folder)
    return folder


def table(folder, name):
    return pd.read_csv(folder / f"{name}.csv")


def test_everything_promised_is_written_and_nothing_temporary_stays(report):
    inputs = {"suite.yaml"}
    found = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    assert {name for name in found - inputs if not name.startswith(("evidence/", "experiments/"))} == NAMES


def test_equal_evidence_gives_equal_bytes_in_another_process_and_torch_is_never_imported(report, tmp_path):
    again = make_report(tmp_path / "again")
    (again / "index.html").write_text("an older page")
    script = f"import sys; from benchmark.report import build; build({str(again)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    differing = {name for name in NAMES if (report / name).read_bytes() != (again / name).read_bytes()}
    assert differing == set()


def test_the_leaderboard_has_a_line_per_method_and_checkpoint_and_ranks_the_last_ones(report):
    board = table(report, "leaderboard")
    assert len(board) == 10
    ranked = board[board.rank_low.notna()]
    assert set(ranked.checkpoint) == {"last"}
    assert ranked.worst_case.is_monotonic_decreasing
    assert (ranked.rank_low <= ranked.rank_high).all()
    assert ranked.method.iloc[-1] == "natural"
    assert (board.suite_note == NOTE).all()
    assert board.columns[-1] == "suite_note"


def test_accuracies_are_fractions_inside_their_intervals_and_the_worst_case_is_below_all(report):
    board = table(report, "leaderboard")
    for attack in ("clean", "pgd20", "cw20", "autoattack", "worst_case"):
        known = board[board[attack].notna()]
        assert known[f"{attack}_low"].ge(0).all()
        assert (known[f"{attack}_low"] <= known[attack]).all()
        assert (known[attack] <= known[f"{attack}_high"]).all()
        assert (known.worst_case <= known[attack]).all()
    assert board.autoattack.notna().sum() == 5  # the last checkpoints only


def test_the_accuracy_table_counts_the_verdicts(report):
    accuracy = table(report, "accuracy")
    line = accuracy.query("method == 'trades' and checkpoint == 'last' and attack == 'pgd20' and epsilon == 0.15").iloc[
        0
    ]
    kept = radii(METHODS["trades"], 200, 0)
    assert line.accuracy == pytest.approx((kept >= 0.15).mean())
    assert line.images == 200
    assert list(accuracy.columns) == ["method", "method_note", "seed", "checkpoint", "attack", "epsilon", "accuracy",
                                      "low", "high", "images", "carried", "carried_share",
                                      "engine", "suite_note"]  # fmt: skip


def test_the_worst_case_never_rises_with_epsilon(report):
    accuracy = table(report, "accuracy")
    worst = accuracy[accuracy.attack == "worst_case"].sort_values("epsilon")
    for _, line in worst.groupby(["method", "seed", "checkpoint"]):
        assert line.accuracy.is_monotonic_decreasing


def test_the_stages_of_autoattack_end_at_its_accuracy(report):
    stages, board = table(report, "autoattack_stages"), table(report, "leaderboard")
    for method, rows in stages.groupby("method"):
        assert rows.stage.tolist() == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
        assert rows.survivors.is_monotonic_decreasing
        assert rows.accuracy.iloc[-1] == board[(board.method == method) & board.autoattack.notna()].autoattack.iloc[0]


def test_each_method_is_compared_with_pgd_at_and_equality_is_never_claimed(report):
    compared = table(report, "comparisons")
    assert set(compared.method) == set(METHODS) - {"pgd_at"}
    assert set(compared.against) == {"pgd_at"}
    assert (compared.p_holm >= compared.p).all()
    assert set(compared.verdict) <= {"higher", "lower", "not resolved"}
    assert compared.set_index("method").verdict["natural"] == "lower"


def test_a_users_methods_are_compared_with_those_named_and_with_nothing_else_as_one_family(tmp_path):
    methods = {"natural": 0.05, "pgd_at": 0.28, "adp": 0.2, "mine": 0.24}
    own = {
        "own": {"mine": {"path": "/x/my.py", "name": "Mine", "sha256": "0"}},
        "against": ["pgd_at", "adp", "natural"],
    }
    folder = make_report(tmp_path, methods, attacked=FEW, evaluation={"ranked_at": [0.15]}, **own)
    write_card(folder, "adp", comparison_class="C")
    compared = summarise(folder).comparisons.set_index("against")
    assert set(compared.method) == {"mine"}
    assert compared["class"].to_dict() == {"pgd_at": "A", "natural": "A", "adp": "A against C"}
    assert compared.p_holm.tolist() == pytest.approx(holm(compared.p.tolist()))  # of all three, whatever their classes
    assert (compared.p_holm > compared.p).any()


def test_a_changed_network_is_compared_with_pgd_at_across_the_classes_as_a_family_of_its_own(tmp_path):
    folder = make_report(tmp_path, {"natural": 0.05, "pgd_at": 0.28}, attacked=FEW, evaluation={"ranked_at": [0.15]})
    for method, group in (("smooth_at", "B"), ("hypersphere", "B"), ("adp", "C")):
        write_evidence(tmp_path, write_card(folder, method, comparison_class=group), radii(0.2, 200, 0), **FEW)
    compared = summarise(folder).comparisons.set_index("method")
    assert compared["class"].to_dict() == {"natural": "A", "smooth_at": "B against A", "hypersphere": "B against A"}
    changed = compared.loc[["smooth_at", "hypersphere"]]
    assert (changed.low <= changed.difference).all()
    assert (changed.difference <= changed.high).all()
    assert set(changed.verdict) <= {"higher", "lower", "not resolved"}
    assert changed.p_holm.tolist() == pytest.approx(holm(changed.p.tolist()))
    assert compared.p_holm["natural"] == compared.p["natural"]


def test_table_1_has_the_34_rows_and_only_measured_cells(report):
    rows = table(report, "table1")
    assert len(rows) == 34
    measured = rows[rows.measured_autoattack.notna()]
    assert set(measured.method_key) == {"pgd_at", "trades", "mart", "fast_at"}
    unmeasured = rows[rows.measured_autoattack.isna()]
    assert unmeasured.filter(like="measured_").isna().all().all()
    assert (measured.measured_autoattack_low <= measured.measured_autoattack).all()
    assert measured.differences.str.contains("data set").all()
    board = table(report, "leaderboard").query("checkpoint == 'last'").set_index("method")
    for line in measured.itertuples():
        assert line.measured_pgd20 == pytest.approx(100 * board.pgd20[line.method_key])


def test_a_figure_from_elsewhere_is_never_shown_as_the_surveys(report):
    row = table(report, "table1").set_index("method_key").loc["pgd_at"]
    assert np.isnan(row.accuracy_percent)
    assert str(row.accuracy_other_source).startswith("53.49")
    for name in ("table1.md", "table1.tex", "index.html"):
        assert "53.49" not in (report / name).read_text()


@pytest.mark.parametrize(
    ("method", "model", "figure"),
    [
        ("pgd_at", "Engstrom2019Robustness", "49.25"),  # the row's network, not the L2 model that stands beside it
        ("mma", "Ding2020MMA", "41.44"),
        ("fast_at", "Wong2020Fast", "26.24"),  # the row's ImageNet
        ("adt", "", "21.53"),  # the row's CIFAR-100
        ("llr", "Qin2019Adversarial", "52.84"),
        ("dynamic_at", "", ""),  # nobody measured it
    ],
)
def test_the_third_party_figure_that_fits_the_row_is_chosen(method, model, figure):
    rows = survey.table1().set_index("method_key", drop=False)
    found = survey.external_for(rows.loc[method], survey.external_autoattack())
    assert (found["external_model"], found["external_autoattack"]) == (model, figure)


def test_low_trust_stays_noted():
    rows = survey.table1().set_index("method_key", drop=False)
    assert "LOW TRUST" in survey.external_for(rows.loc["adt"], survey.external_autoattack())["external_note"]


def test_several_seeds_are_pooled_and_the_seeds_of_a_method_counted(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28, "fast_at": 0.2}, attacked=FEW, seeds=(0, 1, 2), images=100)
    summary = summarise(tmp_path)
    ranked = summary.leaderboard[summary.leaderboard.rank_low.notna()]
    assert ranked.seeds.tolist() == [3, 3]
    each = summary.accuracy.query("attack == 'autoattack' and method == 'pgd_at'").accuracy
    assert len(each) == 3
    assert ranked.autoattack.iloc[0] == pytest.approx(each.mean())
    assert summary.comparisons.iloc[0].seeds == 3


def test_an_ensemble_shows_its_members_and_all_of_their_parameters(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=50)
    ensemble = write_card(tmp_path, "adp", members=3, parameters=3 * 31482, comparison_class="C")
    write_evidence(tmp_path, ensemble, radii(0.2, 50, 0), **FEW)
    write_failure(tmp_path, "gal")
    path = next((tmp_path / "experiments").glob("*gal*"))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "members": None}))
    build(tmp_path)
    board = table(tmp_path, "leaderboard").drop_duplicates("method").set_index("method")
    assert board.members[["pgd_at", "adp"]].tolist() == [1, 3]
    assert np.isnan(board.members["gal"])  # a run that failed never said how many it has
    shown = readable_leaderboard(summarise(tmp_path)).drop_duplicates("method").set_index("method")
    assert shown.loc["adp", ["members", "parameters"]].tolist() == ["3", "94,446"]


def test_folds_have_their_own_images_and_a_column_at_the_end(tmp_path):
    write_suite(tmp_path, ["pgd_at", "trades"], images=50)
    for method in ("pgd_at", "trades"):
        for fold in (0, 1):
            experiment = write_card(tmp_path, method, fold=fold, experiment=f"{method}-{fold}")
            write_evidence(tmp_path, experiment, radii(METHODS[method], 50, fold), checkpoints=["last"])
    summary = summarise(tmp_path)
    assert summary.accuracy.columns[-1] == "fold"
    assert summary.comparisons.images.tolist() == [100]
    assert "fold" in readable_accuracy(summary)


def test_a_suite_killed_half_way_shows_what_is_there_and_ranks_only_the_complete(tmp_path):
    write_suite(tmp_path, ["pgd_at", "trades", "mart"])
    write_evidence(tmp_path, write_card(tmp_path, "pgd_at"), radii(0.28, 200, 0))
    write_evidence(tmp_path, write_card(tmp_path, "trades"), radii(0.27, 120, 0), checkpoints=["last"])
    summary = summarise(tmp_path)
    board = summary.leaderboard.query("checkpoint == 'last'").set_index("method")
    assert board.rank_low["pgd_at"] == 1
    assert board.rank_low.isna()["trades"]
    assert board.status_note["trades"] == "120 of 200 images judged by every attack"
    text = page(summary, {}, [])
    assert "2 of 3 experiments done" in text
    assert "Not run yet: mart (seed 0)." in text


def test_without_autoattack_at_the_epsilon_a_row_is_not_ranked(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, evaluation={"ranked_at": [0.15, 0.2]})
    board = summarise(tmp_path).leaderboard.query("checkpoint == 'last'").set_index("epsilon")
    assert board.rank_low[0.15] == 1
    assert board.rank_low.isna()[0.2]
    assert board.status_note[0.2] == "AutoAttack was not run in full at this epsilon"


def test_epsilons_written_as_fractions_are_the_same_epsilons(tmp_path):
    attacked = {"epsilons": [8 / 255], "autoattack_at": [8 / 255]}
    changes = {"evaluation": {"ranked_at": ["8/255"], "epsilons": ["8/255"]}, "threat": {"epsilon": "8/255"}}
    summary = summarise(make_report(tmp_path, {"pgd_at": 0.28}, images=20, attacked=attacked, **changes))
    assert summary.leaderboard.rank_low[0] == 1
    assert "8/255" in page(summary, {}, [])


def test_without_autoattack_in_the_suite_the_worst_case_of_what_was_run_ranks(tmp_path):
    write_suite(tmp_path, ["pgd_at"], evaluation={"attacks": ["pgd20"]})
    write_evidence(tmp_path, write_card(tmp_path, "pgd_at"), radii(0.28, 200, 0), attacks=("clean", "pgd20"))
    board = summarise(tmp_path).leaderboard.query("checkpoint == 'last'")
    assert board.rank_low.tolist() == [1]
    assert board.autoattack.isna().all()


def test_carried_verdicts_stay_in_curves_and_out_of_the_leaderboard(tmp_path):
    write_suite(tmp_path, ["pgd_at"], images=50)
    experiment = write_card(tmp_path, "pgd_at")
    for attack in ("pgd20", "autoattack"):
        folder = evidence_folder(tmp_path, experiment, "last", attack, 0.15)
        write_part(folder, verdicts(attack, 0.15, np.zeros(50, bool), carried=attack == "autoattack"), 0)
    summary = summarise(tmp_path)
    assert np.isnan(summary.leaderboard.autoattack.iloc[0])
    assert summary.leaderboard.rank_low.isna().all()
    assert summary.accuracy.set_index("attack").carried.to_dict() == {
        "pgd20": False,
        "autoattack": True,
        "worst_case": True,
    }


def test_classes_are_ranked_apart(tmp_path):
    write_suite(tmp_path, ["pgd_at", "gal"])
    for method, group in (("pgd_at", "A"), ("gal", "C")):
        write_evidence(tmp_path, write_card(tmp_path, method, comparison_class=group), radii(0.2, 200, 0), **FEW)
    summary = summarise(tmp_path)
    assert summary.leaderboard[summary.leaderboard.rank_low.notna()].rank_high.tolist() == [1, 1]
    assert summary.comparisons.empty


def test_a_report_of_sound_methods_has_no_alarm(report):
    assert "catastrophic overfitting in" not in (report / "index.html").read_text()
    assert "alarm" not in (report / "leaderboard.md").read_text()
    assert table(report, "alarm").empty
    assert table(report, "leaderboard").catastrophic_overfitting.isna().all()


def test_a_failed_experiment_is_a_row_with_its_error(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW)
    write_failure(tmp_path, "mart")
    summary = summarise(tmp_path)
    last = summary.leaderboard.iloc[-1]
    assert (last.method, last.status, last.status_note) == ("mart", "failed", "mart-0: NaN loss in epoch 3")
    assert "RuntimeError: NaN loss in epoch 3" in page(summary, {}, [])


def test_a_method_that_lost_a_seed_is_not_ranked_by_the_others(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28, "trades": 0.3}, attacked=FEW, seeds=(0, 1), images=50)
    write_failure(tmp_path, "trades", seed=1)
    board = summarise(tmp_path).leaderboard.query("checkpoint == 'last'").set_index("method")
    assert board.rank_low["pgd_at"] == 1
    assert board.rank_low.isna()["trades"]
    assert board.status_note["trades"] == "1 of 2 trained networks of its class"


def test_a_suite_without_a_single_verdict_still_reports(tmp_path):
    write_suite(tmp_path)
    write_card(tmp_path, "pgd_at")
    write_failure(tmp_path, "trades")
    summary = summarise(tmp_path)
    assert len(summary.table1) == 34
    assert summary.leaderboard.status.tolist() == ["partial", "failed"]
    assert "1 of 5 experiments done" in page(summary, {}, [])


def test_evidence_without_a_card_is_named_and_not_shown(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW)
    write_evidence(tmp_path, "stranger", radii(0.3, 200, 0), **FEW)
    summary = summarise(tmp_path)
    assert "Evidence without a card, shown nowhere: stranger" in page(summary, {}, [])
    assert set(summary.accuracy.method) == {"pgd_at"}


def break_card(folder):
    card = folder / "experiments" / "pgd_at-0.yaml"
    content = yaml.safe_load(card.read_text())
    del content["method"]
    card.write_text(yaml.safe_dump(content))


def break_part(folder):
    part = next(folder.rglob("part-00000.parquet"))
    part.write_bytes(part.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder: (folder / "suite.yaml").unlink(), "expected suite.yaml, found none in"),
        (lambda folder: (folder / "suite.yaml").write_text("- a\n"), "expected a mapping of keys, found list"),
        (lambda folder: (folder / "suite.yaml").write_text("{a: [}"), "expected YAML, found"),
        (
            lambda folder: (folder / "suite.yaml").write_text("name: x\nevaluation: {a: 1}"),
            "expected evaluation.ranked_at",
        ),
        (break_card, "expected the key 'method', found .*pgd_at-0.yaml"),
        (break_part, "expected a whole Parquet file, found a damaged one .*part-00000.parquet"),
        (
            lambda folder: write_card(folder, "pgd_at", experiment="pgd_at-new"),
            "one experiment per method, seed and fold",
        ),
    ],
)
def test_what_is_damaged_is_named_in_one_sentence(tmp_path, harm, sentence):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    harm(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        build(tmp_path)


def test_a_folder_without_anything_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="expected a report folder, found nothing at"):
        build(tmp_path / "nowhere")
    write_suite(tmp_path)
    with pytest.raises(BadInput, match="expected evidence, found no finished part"):
        build(tmp_path)
