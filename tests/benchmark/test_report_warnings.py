"""Reconstructions and broken methods are told as such in everything that a report shows."""

import html
from dataclasses import asdict

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from benchmark import suite
from benchmark.experiment import plan
from benchmark.report import build, figures
from benchmark.report.published_figure import published_vs_measured
from benchmark.report.summary import summarise
from benchmark.report.table import (
    readable_accuracy,
    readable_alarm,
    readable_comparisons,
    readable_costs,
    readable_leaderboard,
    readable_recovered,
    readable_stages,
    readable_table1,
)
from benchmark.results.cards import read_cards
from benchmark.results.method_warnings import Warned, of_method
from benchmark.training import failed_card
from methods import catalogue
from tests.benchmark.make_report import FEW, make_report, radii, watched, write_card, write_evidence, write_suite

BROKEN = "AutoAttack leaves 0.00 % (CIFAR-10, Linf 8/255, someone's model)"
RECONSTRUCTIONS = [name for name in catalogue.names() if catalogue.get(name).card.reconstruction]  # fgsmr is one
TABLES = ("leaderboard", "comparisons", "accuracy", "autoattack_stages", "costs", "alarm", "table1", "recovered")
FIGURES = (
    figures.clean_vs_robust,
    figures.accuracy_over_epsilon,
    figures.attack_ladder,
    figures.cost_vs_robustness,
    published_vs_measured,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of a reconstruction in every role: ranked, compared with, watched epoch by epoch, a reference."""
    report = tmp_path_factory.mktemp("warned")
    write_suite(report, ["pgd_at", "fgsmr", "rst"], images=40, against=["pgd_at", "fgsmr"])
    beside = {"lower": "fgsmr", "oracle": "fgsmr", "teacher": "fgsmr"}
    cards = {
        "pgd_at": {"reconstruction": False, "broken": BROKEN},
        "fgsmr": {"reconstruction": True, "broken": "", "history": watched(0.3, 0.4)},
        "rst": {"comparison_class": "D", "beside": beside, "reconstruction": False, "broken": ""},
    }
    for method, card in cards.items():
        write_evidence(report, write_card(report, method, **card), radii(0.25, 40, 0), **FEW)
    build(report)
    return report


@pytest.fixture(scope="module")
def summary(folder):
    return summarise(folder)


@pytest.mark.parametrize("name", TABLES)
def test_every_csv_has_the_note_in_a_column_of_its_own_and_the_method_stays_a_key(name, folder):
    table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
    columns = [column for column in ("method", "method_key", "against", "lower", "oracle") if column in table]
    assert columns
    assert any((table[column] == "fgsmr").any() for column in columns)
    for column in columns:
        note = "method_note" if column == "method_key" else f"{column}_note"
        assert (table[note] == table[column].map(dict.fromkeys(RECONSTRUCTIONS, "reconstruction")).fillna("")).all()
        assert list(table.columns).index(note) == list(table.columns).index(column) + 1


@pytest.mark.parametrize(
    "readable",
    [
        readable_leaderboard,
        readable_table1,
        readable_comparisons,
        readable_accuracy,
        readable_stages,
        readable_costs,
        readable_alarm,
    ],
)
def test_every_readable_table_has_the_note_at_the_name(readable, summary):
    names = set(readable(summary).method)
    assert "fgsmr (reconstruction)" in names
    assert "fgsmr" not in names
    assert not {name for name in names if "reconstruction" in name} - {
        "fgsmr (reconstruction)",
        "sads (reconstruction)",
    }


def test_a_reconstruction_that_others_are_held_against_is_named_so(summary):
    assert "fgsmr (reconstruction)" in set(readable_comparisons(summary).against)
    (share,) = readable_recovered(summary).query("attack == 'AutoAttack'").to_dict("records")
    assert share["lower end"].endswith("(fgsmr (reconstruction))")
    assert share["oracle"].endswith("(fgsmr (reconstruction))")


def test_page_markdown_and_latex_say_it(folder):
    for name in ("leaderboard.md", "leaderboard.tex", "table1.md", "table1.tex", "index.html"):
        text = (folder / name).read_text()
        assert "fgsmr (reconstruction)" in text
        assert ">fgsmr<" not in text
        assert "| fgsmr |" not in text


@pytest.mark.parametrize("draw", FIGURES)
def test_the_labels_of_figures_say_it(draw, summary):
    figure: Figure = draw(summary)
    shown = [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]
    shown += [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert [text for text in shown if text.startswith("fgsmr")]
    assert all(text.startswith("fgsmr (reconstruction)") for text in shown if text.startswith("fgsmr"))


def test_a_long_name_is_cut_but_never_its_note(tmp_path):
    long = "a_method_with_a_name_that_no_figure_has_room_for"
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    write_evidence(tmp_path, write_card(tmp_path, long, reconstruction=True), radii(0.2, 20, 0), **FEW)
    (axes,) = figures.accuracy_over_epsilon(summarise(tmp_path)).axes
    (label,) = [text.get_text() for text in axes.texts if text.get_text().startswith("a_method")]
    assert label.endswith("… (reconstruction)") or label.endswith("for (reconstruction)")
    assert len(label) < len(long)


def test_remarks_tell_what_strong_attacks_are_known_to_leave(folder, summary):
    board = readable_leaderboard(summary).set_index("method").remark
    assert BROKEN in board["pgd_at"]
    assert BROKEN not in board["rst"]
    own = readable_table1(summary).set_index("method").remark
    assert set(own[["pgd_at"]]) == {BROKEN}
    for name in ("leaderboard", "table1"):
        assert BROKEN in (folder / f"{name}.csv").read_text()
        assert BROKEN.replace("%", "\\%") in (folder / f"{name}.tex").read_text()
    assert BROKEN in html.unescape((folder / "index.html").read_text())


def test_what_the_catalogue_warns_of_stands_in_table_1_without_a_run_and_beside_runs_of_older_versions(tmp_path):
    write_suite(tmp_path, ["adp"], images=20)
    write_evidence(tmp_path, write_card(tmp_path, "adp"), radii(0.2, 20, 0), **FEW)  # a card without the two keys
    summary = summarise(tmp_path)
    broken = catalogue.get("adp").card.broken
    assert broken
    assert broken in readable_leaderboard(summary).remark.iloc[0]
    never_run = catalogue.get("natural").card.broken
    assert summary.cards.warned("natural").broken == never_run
    assert set(readable_table1(summary).query("method == 'adp'").remark) == {broken}


@pytest.mark.parametrize("name", catalogue.names())
def test_reading_a_card_as_text_gives_what_importing_it_does(name):
    card = catalogue.get(name).card
    assert of_method(name) == of_method(f"{name}@200") == Warned(card.reconstruction, card.broken)


def test_a_card_of_a_method_nobody_knows_warns_of_nothing():
    assert of_method("mine") == Warned()


def test_a_run_that_failed_tells_too(tmp_path):
    (adp,) = plan(suite.load("quickstart", suite.load("quickstart").as_plain() | {"methods": {"adp": None}}))
    card = failed_card(adp, "NaN loss")
    assert {key: card[key] for key in ("reconstruction", "broken")} == {
        key: value for key, value in asdict(catalogue.get("adp").card).items() if key in ("reconstruction", "broken")
    }
    write_suite(tmp_path, ["adp"])
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "adp.yaml").write_text(yaml.safe_dump(card))
    assert read_cards(tmp_path).warned("adp").broken == card["broken"]
