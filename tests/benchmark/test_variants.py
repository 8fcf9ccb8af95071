"""Variants of a method, rows of their own in a suite: what they start from, and where they stand in a report."""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from attacks import BadInput
from benchmark import own_parts, suite
from benchmark.data import load as load_data
from benchmark.experiment import plan, resolve
from benchmark.names import check_names
from benchmark.references import references
from benchmark.report import figures
from benchmark.report.summary import summarise
from benchmark.report.table import readable_leaderboard
from benchmark.results.method_warnings import of_method
from benchmark.results.rows import parts
from methods import catalogue
from tests.benchmark.make_report import FEW, make_report
from tests.benchmark.user_files import METHOD, QUICK, write

NO_START = {"inner": {"start": "none"}}


def chosen(methods, **changes):
    return suite.load("digits-common", {"methods": methods, **changes})


def settings(whole):
    return {one.row: one.settings for one in plan(whole)}


def written(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    return suite.load(str(folder / name))


# What a row's name says


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("trades", ("trades", "", "")),
        ("trades/beta_1", ("trades", "/beta_1", "")),
        ("trades@200", ("trades", "", "@200")),
        ("trades/w_0.5@200", ("trades", "/w_0.5", "@200")),
        ("/home/a@b/my.py:Mine", ("/home/a@b/my.py:Mine", "", "")),
        ("/home/a@b/my.py:Mine/long@20", ("/home/a@b/my.py:Mine", "/long", "@20")),
    ],
)
def test_a_row_is_split_into_method_variant_and_labels(row, expected):
    assert parts(row) == expected
    assert "".join(expected) == row


def test_a_variant_is_an_experiment_of_its_method_under_a_name_of_its_own():
    plain, variant = plan(chosen({"alp": None, "alp/untargeted": {"label": "true"}}))
    assert (variant.method, variant.row, variant.method_class) == ("alp", "alp/untargeted", catalogue.get("alp"))
    assert variant.name != plain.name
    assert variant.name.startswith("alp-digits-s0-")
    ours, theirs = variant.identity(), plain.identity()
    assert {key for key in ours if ours[key] != theirs[key]} == {"settings"}


# What its settings start from


def test_a_variant_starts_from_defaults_then_the_presets_steps_then_the_row_of_its_method_then_its_own():
    own = {
        "mart": {"beta": 3, "inner": {"start": "uniform"}},
        "mart/x": {"detach_doubt": True, "inner": {"mode": "train"}},
    }
    found = settings(chosen(own, inner_steps=4))
    defaults = resolve("mart", {}, 4)
    inner = defaults["inner"] | {"start": "uniform", "mode": "train"}
    assert found["mart/x"] == defaults | {"beta": 3, "detach_doubt": True, "inner": inner}
    assert found["mart/x"]["inner"]["steps"] == 4


def test_the_row_of_its_method_may_stand_in_the_suite_below_or_behind_it(tmp_path):
    half = resolve("llr", {"w_nom": 1, "w_llr": 2}, 7)
    below = written(tmp_path, "based_on: digits-common\nname: x\nmethods: {llr/s: {s: 1}}\n")
    assert settings(below) == {"llr/s": half | {"s": 1.0}}
    behind = chosen({"llr/s": {"s": 1}, "llr": {"w_nom": 1, "w_llr": 2}})
    assert settings(behind)["llr/s"] == half | {"s": 1.0}


def test_a_row_of_the_suite_itself_stands_before_that_of_the_suite_below(tmp_path):
    own = written(tmp_path, "based_on: digits-common\nname: x\nmethods: {llr: , llr/s: {s: 1}}\n")
    assert settings(own)["llr/s"] == resolve("llr", {"s": 1}, 7)


def test_a_change_of_the_methods_row_reaches_its_variants_and_a_change_of_a_variant_no_other():
    own = {"methods": {"alp": {"w_lp": 1}, "alp/random": {"label": "random"}, "alp/w_0.5": {"w_lp": 0.5}}}
    found = settings(suite.load("digits-common", {**own, "methods.alp.w_lp": 2, "methods.alp/w_0.5.label": "random"}))
    assert {row: (one["w_lp"], one["label"]) for row, one in found.items()} == {
        "alp": (2, "ll"),
        "alp/random": (2, "random"),
        "alp/w_0.5": (0.5, "random"),
    }


def test_a_change_makes_a_variant_that_the_suite_does_not_have():
    found = suite.load("digits-common", {"methods.llr/exact.exact_inner_gradient": True})
    (one,) = plan(own_parts.with_methods(found, ["llr/exact"]))
    assert one.settings == resolve("llr", {"w_nom": 1, "w_llr": 2, "exact_inner_gradient": True}, 7)


def test_a_suite_cut_down_to_a_variant_or_written_out_trains_the_same(tmp_path):
    whole = chosen({"llr": {"w_nom": 1, "w_llr": 2}, "llr/s": {"s": 1}})
    _, variant = plan(whole)
    cut = own_parts.with_methods(whole, ["llr/s"])
    again = written(tmp_path, yaml.safe_dump(cut.as_plain(), sort_keys=False))
    assert [one.name for one in plan(cut)] == [one.name for one in plan(again)] == [variant.name]
    assert own_parts.take_up(cut) == cut


def test_a_variant_may_be_trained_on_few_labels():
    whole = chosen({"trades/b": {"beta": 1}, "trades/b@20": None, "trades/b@30": {"exact_forwards": True}})
    found = {one.row: (one.method, one.labels, one.settings["beta"], one.reference) for one in plan(whole)}
    assert found["trades/b@20"] == ("trades", 20, 1, True)
    assert found["trades/b@30"] == ("trades", 30, 1, True)
    (only,) = plan(own_parts.with_methods(whole, ["trades/b@40"]))
    assert (only.settings["beta"], only.labels) == (1, 40)


def test_a_variant_of_a_semi_supervised_method_has_the_labels_the_teacher_and_the_references_of_its_method():
    whole = chosen({"rst": None, "rst/b": {"beta": 3}, "rst/rvat": {"pseudo_labels": False}})
    plain, variant, without = experiments = plan(whole)
    assert (variant.labels, variant.reference, variant.teacher.name) == (200, False, plain.teacher.name)
    assert without.teacher is None
    assert [one.row for one in references(experiments, whole)] == ["natural@200", "trades@200"]


def test_a_truth_value_is_a_word_where_words_are_asked_for_and_nowhere_else():
    assert resolve("alp", {"label": True}, 7)["label"] == "true"
    assert resolve("llr", {"exact_inner_gradient": True}, 7)["exact_inner_gradient"] is True
    with pytest.raises(BadInput, match="Expected a Literal"):
        resolve("alp", {"label": False}, 7)


# What is refused


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ({"alpp/x": {"label": "true"}}, "there is no method 'alpp': did you mean alp?"),
        ({"alpp/x": None}, "there is no method 'alpp': did you mean alp?"),
        ({"alp/": {"label": "true"}}, "behind the slash stands the name of a variant, .* but found ''"),
        ({"alp/a/b": {"label": "true"}}, "such as alp/mine, but found 'a/b'"),
        ({"alp/a b": {"label": "true"}}, "but found 'a b'"),
        ({f"alp/{'a' * 61}": {"label": "true"}}, "1 to 60 letters"),
        ({"alp/x": None}, "methods.alp/x has no settings in this suite, and would be alp by another name"),
        ({"alp": {"w_lp": 1}, "alp/x": {}}, r"as by --set methods\.alp/x\.SETTING=VALUE"),
        ({"alp/x": {"lable": "true"}}, r"methods\.alp/x: Option 'lable' is not accepted: did you mean label\?"),
        ({"alp/x@few": {"label": "true"}}, "methods.alp/x@few: after @ stands the number"),
    ],
)
def test_what_is_no_variant_is_told_in_one_sentence(methods, says):
    with pytest.raises(BadInput, match=says) as caught:
        plan(chosen(methods))
    assert "\n" not in str(caught.value)


def test_a_variant_that_the_suite_does_not_have_is_not_trained_under_its_name(atbench, capsys, tmp_path):
    for words in (["run", "digits-common", "--methods", "alp/untargeted"], ["train", "alp/untargeted"]):
        assert atbench(*words, "--checkpoints", tmp_path / "c", "--set", "recipe.epochs=1") == 2
        assert "methods.alp/untargeted has no settings in this suite" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_two_rows_that_are_one_experiment_are_refused(tmp_path):
    experiments = plan(chosen({"alp": None, "alp/same": {"w_lp": 0.5}, "alp/other": {"w_lp": 0.25}}))
    with pytest.raises(BadInput, match="alp and alp/same are one experiment, because all their settings are equal"):
        check_names(experiments, tmp_path)
    check_names([experiments[0], experiments[2]], tmp_path)


# The suite that comes with the project


@pytest.fixture(scope="module")
def all_variants():
    return plan(suite.load("digits-variants"))


@pytest.fixture(scope="module")
def eight_images():
    images = load_data("digits").train.take(torch.arange(8))
    return images.pixels(), images.labels, images.index


def test_digits_variants_has_the_rows_of_digits_common_and_below_each_its_variants(all_variants):
    names = {one.row: one.name for one in all_variants}
    common = {one.row: one.name for one in plan(suite.load("digits-common"))}
    assert {row: name for row, name in names.items() if "/" not in row} == common  # trained once for both suites
    assert list(dict.fromkeys(one.method for one in all_variants)) == catalogue.names()
    assert {one.method for one in all_variants if one.row != one.method} == set(catalogue.names()) - {"natural"}
    assert len(set(names.values())) == len(all_variants)


def test_digits_variants_trains_and_attacks_as_digits_common_does():
    found, common = suite.load("digits-variants"), suite.load("digits-common")
    assert found.curves is None  # which only measure
    assert found == replace(common, name=found.name, title=found.title, methods=found.methods, curves=None)


@pytest.mark.parametrize("key", catalogue.names())
def test_every_variant_takes_a_training_step(key, all_variants, eight_images):
    for one in all_variants:
        if one.method == key:
            method = one.build_method(one.build_network()).train()
            loss = method.trace_step(eight_images).loss
            loss.backward()
            assert torch.isfinite(loss), one.row


# A run and its report


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    methods = {"natural": None, "pgd_at": {"inner": {"steps": 2}}, "pgd_at/no_start": NO_START}
    path.write_text(yaml.safe_dump({"based_on": "quickstart", "name": "tiny", "methods": methods}, sort_keys=False))
    return path


def words(tiny, folder, *more):
    places = ["--output", folder / "report", "--checkpoints", folder / "checkpoints"]
    return ["run", tiny, *places, "--set", *QUICK, "recipe.epochs=2", *more]


def test_from_a_suite_to_tables_a_variant_is_a_row_like_any_other(tiny, tmp_path, atbench, capsys):
    assert atbench(*words(tiny, tmp_path)) == 0
    report = tmp_path / "report"
    board = pd.read_csv(report / "leaderboard.csv")
    last = board[board.checkpoint == "last"].set_index("method")
    assert set(last.index) == {"natural", "pgd_at", "pgd_at/no_start"}
    assert last.rank_low.notna().all()
    assert set(board.status) == {"done"}
    assert last.category["pgd_at/no_start"] == last.category["pgd_at"] == "origin"
    assert last["class"]["pgd_at/no_start"] == "A"
    compared = pd.read_csv(report / "comparisons.csv")
    assert set(zip(compared.method, compared.against, strict=True)) == {
        ("natural", "pgd_at"),
        ("pgd_at/no_start", "pgd_at"),
    }
    cards = {card["method"]: card for card in map(_read, (report / "experiments").glob("*.yaml"))}
    card = cards["pgd_at/no_start"]
    assert card["identity"]["method"] == "pgd_at"
    inner = card["identity"]["settings"]["inner"]
    assert (inner["start"], inner["steps"]) == ("none", 2)
    assert card["experiment"].startswith("pgd_at-digits-s0-")
    assert card["citation"] == cards["pgd_at"]["citation"]
    assert "pgd_at/no_start" in (report / "index.html").read_text()
    rows = pd.read_csv(report / "table1.csv").set_index("method_key")
    assert rows.measured_pgd20["pgd_at"] == pytest.approx(100 * last.pgd20["pgd_at"])

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert atbench(*words(tiny, tmp_path)[:-1]) == 2  # one epoch
    assert "results measured with another recipe.epochs" in capsys.readouterr().err
    assert atbench(*words(tiny, tmp_path, "methods.pgd_at/no_start.inner.keep=best")) == 2
    assert "results measured with another methods.pgd_at/no_start" in capsys.readouterr().err
    assert atbench(*words(tiny, tmp_path, "methods.pgd_at/again.inner.start=none"), "--methods", "pgd_at/again") == 2
    assert "report holds pgd_at/no_start, and pgd_at/again is the same experiment" in capsys.readouterr().err
    assert atbench(*words(tiny, tmp_path), "--methods", "pgd_at/no_start") == 0
    assert "everything in tiny is finished already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    train = ["train", "pgd_at/no_start", "--suite", tiny, "--checkpoints", tmp_path / "checkpoints"]
    assert atbench(*train, "--set", *QUICK, "recipe.epochs=2") == 0
    said = capsys.readouterr().err
    assert "training: done" not in said  # the run has trained it
    assert card["experiment"] in said


def _read(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_users_method_has_variants_too_and_may_be_compared_with_variants(atbench, capsys):
    write(METHOD.replace("return", "1 / 0\n        return"))
    own = ["--method", "my.py:Mine", "my.py:Mine/steps_2", "--against", "pgd_at/no_start"]
    changes = ["methods.mine/steps_2.inner.steps=2", "methods.pgd_at/no_start.inner.start=none"]
    run = ["run", "digits-common", *own, "--output", "report", "--set", *QUICK, *changes]
    assert atbench(*run) == 1
    assert "failed: mine/steps_2 seed 0: training: my.py, line 7: ZeroDivisionError" in capsys.readouterr().err
    write(METHOD)  # mended: what failed in either row is forgotten
    assert atbench(*run) == 0
    board = pd.read_csv("report/leaderboard.csv")
    assert set(board.method) == {"mine", "mine/steps_2", "pgd_at/no_start"}
    assert set(board.status) == {"done"}
    compared = pd.read_csv("report/comparisons.csv")
    assert set(zip(compared.method, compared.against, strict=True)) == {
        ("mine", "pgd_at/no_start"),
        ("mine/steps_2", "pgd_at/no_start"),
    }
    assert len(list(Path("report/experiments").glob("mine-digits-s0-*"))) == 2
    write(METHOD + "\n")
    assert atbench(*run) == 2
    assert "results measured with another version of my.py" in capsys.readouterr().err


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_suite_names_variants_of_a_users_method_by_its_file(tmp_path):
    write(METHOD)
    methods = "{my.py:Mine: {inner: {steps: 3}}, my.py:Mine/x: {inner: {mode: train}}}"
    found = settings(written(tmp_path, f"based_on: digits-common\nname: s\nmethods: {methods}\n"))
    assert {row: (one["inner"]["steps"], one["inner"]["mode"]) for row, one in found.items()} == {
        "mine": (3, "eval"),
        "mine/x": (3, "train"),
    }


# What reports make of the name


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    strong = {"pgd_at": 0.28, "trades/beta_1": 0.25, "fgsmr": 0.2, "fgsmr/detached": 0.22}
    return make_report(tmp_path_factory.mktemp("variants"), strong, images=40, attacked=FEW)


def test_evidence_of_an_experiment_with_a_slash_in_its_name_stays_in_its_folder(reported):
    summary = summarise(reported)
    assert set(summary.accuracy.method) == {"pgd_at", "trades/beta_1", "fgsmr", "fgsmr/detached"}
    assert not (reported / "evidence" / "trades").exists()


def test_no_variant_is_taken_for_a_row_of_the_survey(reported):
    table = summarise(reported).table1.set_index("method_key")
    assert pd.isna(table.measured_pgd20["trades"])
    assert not pd.isna(table.measured_pgd20["pgd_at"])
    assert not {key for key in table.index if "/" in key}


def test_a_variant_carries_the_warnings_of_its_method(reported):
    for name in catalogue.names():
        assert of_method(f"{name}/x") == of_method(f"{name}/x@200") == of_method(name)
    names = set(readable_leaderboard(summarise(reported)).method)
    assert names >= {"fgsmr (reconstruction)", "fgsmr/detached (reconstruction)", "trades/beta_1"}


def test_figures_name_variants(reported):
    summary = summarise(reported)
    (axes,) = figures.clean_vs_robust(summary).axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(map(summary.named, summary.methods))
    (axes,) = figures.accuracy_over_epsilon(summary).axes
    assert "fgsmr/detached (reconstruction)" in {text.get_text() for text in axes.texts}


def test_panels_are_as_high_as_the_names_of_many_variants_beside_them(tmp_path):
    many = {"pgd_at": 0.28} | {f"trades/beta_{place}": 0.25 for place in range(20)}
    figure = figures.accuracy_over_epsilon(summarise(make_report(tmp_path, many, images=20, attacked=FEW)))
    figure.draw_without_rendering()
    for axes in (axes for axes in figure.axes if axes.get_legend()):
        assert axes.get_legend().get_window_extent().height <= axes.get_window_extent().height


def test_the_list_of_suites_counts_methods_and_runs(atbench, capsys, all_variants):
    assert atbench("list", "suites") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("digits-variants")]
    assert f"{len(catalogue.names())} methods, {len(all_variants)} runs" in line
