"""How much of the survey is here: looked up, the same in report and README, and never behind what it is made from."""

import importlib.util
import inspect
from pathlib import Path

import pandas as pd
import pytest

from benchmark import published
from benchmark.report import build
from benchmark.report.coverage import measured_in
from benchmark.report.summary import summarise
from benchmark.results import survey
from benchmark.results.coverage import coverage, golden_keys, recipe_keys, summed_up
from benchmark.results.method_cards import method_cards
from methods import catalogue
from tests.benchmark.make_report import FEW, make_report, write_failure

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / ".ci" / "readme_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_survey_names_46_methods_and_every_row_of_table_1_maps_to_one():
    table = coverage(())
    named = table[table.survey != "not named"]
    assert len(named) == named.method_key.nunique() == 46
    assert named.survey.str.startswith("Table 1").sum() == 34
    assert table.survey[:34].tolist() == [f"Table 1, row {place}" for place in range(1, 35)]
    assert set(catalogue.names()) <= set(table.method_key)
    assert named.section.ne("").all()


def test_the_categories_of_the_text_are_folders_of_the_methods_that_are_here():
    cards = method_cards()
    for row in survey.text_only().itertuples():
        if row.method_key in cards:
            assert cards[row.method_key].file == f"methods/{row.category}/{row.method_key}.py"


def test_every_cell_is_what_the_files_say():
    table = coverage({"trades"}).set_index("method_key")
    for key, row in table.iterrows():
        assert (row.file != "") == (key in catalogue.names())
        assert not row.file or Path(inspect.getfile(catalogue.get(key))) == ROOT / row.file
        assert row.golden == ("yes" if (ROOT / "tests" / "data" / "golden" / f"{key}.json").is_file() else "no")
        assert row.recipe == ("yes" if f"published/{key}" in published.names() else "no")
        assert row["row"] == ("yes" if key == "trades" else "no")


def test_recipes_and_golden_cases_are_keys_of_the_survey():
    known = set(coverage(()).method_key)
    assert recipe_keys() == {name.removeprefix("published/") for name in published.names()}
    assert golden_keys() | recipe_keys() <= known


def test_the_package_lists_the_golden_cases_that_there_are(script):
    listed = (ROOT / "benchmark" / "results" / "golden.txt").read_text()
    assert listed == script.golden(), "run python .ci/readme_table.py"


def test_the_readme_is_up_to_date(script):
    readme = (ROOT / "README.md").read_text()
    assert readme == script.up_to_date(readme), "run python .ci/readme_table.py"


def test_the_script_asks_for_its_marks(script):
    with pytest.raises(SystemExit, match=r"has one block quickstart:begin \.{3} quickstart:end, but found 0"):
        script.up_to_date("# atbench\n")


def test_a_report_says_which_methods_it_has_rows_of(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())
    make_report(tmp_path, {"pgd_at": 0.28, "trades/beta_1": 0.2}, attacked=FEW, images=20)
    write_failure(tmp_path, "mart")
    build(tmp_path)
    found = pd.read_csv(tmp_path / "coverage.csv").set_index("method_key")["row"]
    assert set(found.index[found == "yes"]) == {"pgd_at", "trades"}
    text = (tmp_path / "coverage.md").read_text()
    assert "fgsmr (reconstruction)" in text
    assert summed_up(summarise(tmp_path).coverage) in text
    assert "How much of the survey is here (46 methods)" in (tmp_path / "index.html").read_text()


def test_a_failed_or_half_finished_row_is_no_row(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    write_failure(tmp_path, "mart")
    assert measured_in(summarise(tmp_path).leaderboard) == {"pgd_at"}


def test_the_sentence_counts_rows_and_methods():
    table = coverage({"trades"})
    table = table.assign(file=["methods/x.py"] * 3 + [""] * 31 + ["methods/y.py"] * 2 + [""] * (len(table) - 36))
    table = table.assign(golden="no", recipe="no")
    assert summed_up(table) == (
        "3 of the 34 rows of Table 1 and 2 of the 12 methods named only in the text have a method here (5 methods); "
        "0 with golden values, 0 with a published recipe, 1 with a row in the report."
    )
