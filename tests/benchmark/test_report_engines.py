"""Which engine made which figure, and attacks other than the usual ones: a column each, never that of AutoAttack."""

import pandas as pd
import pytest
from matplotlib.text import Text

from benchmark.report import figures
from benchmark.report.engines import sentence
from benchmark.report.folder import build
from benchmark.report.summary import summarise
from benchmark.results.evidence import evidence_folder, write_part
from tests.benchmark.make_report import FEW, make_report, radii, verdicts

HERE = {"checkpoints": ["last"], "epsilons": [0.15], "attacks": ("clean", "pgd20", "cw20")}
CUSTOM = {"attacks": ["pgd20", "cw20", "autoattack_custom"], "custom": ["apgd-t", "fab-t"]}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())


def attacked(report, method, attack, *, engine="fast 0.1.0", strength=1.3, radius=0.28, images=200):
    kept = radii(radius, images, 0)
    frame = verdicts(attack, 0.15, kept < 0.15 * strength, engine=engine, by="")
    write_part(evidence_folder(report, f"{method}-0", "last", attack, 0.15), frame, 0)


def lines(report, name):
    return [line for line in (report / name).read_text().splitlines() if line]


def heading(report):
    (first, *_) = [line for line in lines(report, "leaderboard.md") if line.startswith("|")]
    return [cell.strip() for cell in first.strip("|").split("|")]


@pytest.mark.parametrize("engine", ["fast 0.1.0", "official 0.2.0", "fast 0.1.0 bf16"])
def test_a_table_says_which_engine_made_its_figures(tmp_path, engine):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=HERE)
    attacked(report, "pgd_at", "autoattack", engine=engine)
    build(report)
    for name in ("leaderboard.md", "table1.md"):
        assert lines(report, name)[-1] == f"Engine of AutoAttack and its kin: {engine}."
    for name in ("leaderboard.tex", "table1.tex", "index.html"):
        assert f"Engine of AutoAttack and its kin: {engine}." in (report / name).read_text()
    accuracy = pd.read_csv(report / "accuracy.csv").set_index("attack").engine
    assert accuracy["autoattack"] == engine
    assert accuracy[["pgd20", "worst_case"]].isna().all()


def test_a_table_that_mixes_engines_says_whose_figures_each_made(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28, "trades": 0.27, "natural": 0.05}, attacked=HERE)
    attacked(report, "pgd_at", "autoattack", engine="official 0.2.0")
    attacked(report, "trades", "autoattack", engine="fast 0.1.0 bf16")
    attacked(report, "natural", "autoattack", engine="official 0.2.0", radius=0.05)
    build(report)
    told = lines(report, "leaderboard.md")[-1]
    assert told.startswith("Figures of different engines stand in this table: fast 0.1.0 bf16 (trades); official 0.2.0")
    assert "pgd_at" in told.split("official")[1]
    assert "natural" in told.split("official")[1]


def test_nothing_is_said_of_engines_where_no_attack_has_one(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=HERE)
    build(report)
    assert "ngine" not in lines(report, "leaderboard.md")[-1]
    assert sentence(summarise(report).leaderboard) == ""


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ("autoattack_plus", "AutoAttack plus"),
        ("autoattack_rand", "AutoAttack rand"),
        ("autoattack_custom", "custom (apgd-t, fab-t)"),
        ("pgd20_any", "PGD-20 any"),
        ("cw_l2", "C&W L2"),
    ],
)
def test_other_attacks_have_a_column_and_a_step_of_the_ladder_of_their_own(tmp_path, attack, name):
    attacks = CUSTOM | {"attacks": ["pgd20", "cw20", attack]}
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=HERE, evaluation=attacks)
    attacked(report, "pgd_at", attack)
    build(report)
    (board,) = pd.read_csv(report / "leaderboard.csv").to_dict("records")
    assert pd.isna(board["autoattack"])
    assert board["worst_case"] == board[attack] < board["pgd20"]
    assert board[f"{attack}_low"] < board[attack] < board[f"{attack}_high"]
    assert (board["engine"], board["rank_low"]) == ("fast 0.1.0", 1)
    assert name.replace("&", "&amp;") in heading(report)
    page = (report / "index.html").read_text()
    assert f">{name.replace('&', '&amp;')}</th>" in page
    assert f"PGD-20, CW-20, {name.replace('&', '&amp;')}" in page
    steps = [tick.get_text() for tick in figures.attack_ladder(summarise(report)).axes[0].get_xticklabels()]
    assert name in steps
    assert "AutoAttack" not in steps
    assert pd.read_csv(report / "table1.csv").measured_autoattack.isna().all()


def test_columns_of_attacks_that_did_not_run_are_left_out(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=HERE)
    build(report)
    assert not {"autoattack_plus", "pgd20_any"} & set(pd.read_csv(report / "leaderboard.csv").columns)
    assert "AutoAttack" in heading(report)


def test_engines_of_two_attacks_of_one_row_are_told_apart(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=HERE)
    attacked(report, "pgd_at", "autoattack", engine="official 0.2.0")
    attacked(report, "pgd_at", "autoattack_rand", engine="fast 0.1.0")
    assert list(summarise(report).leaderboard.engine) == ["AutoAttack: official 0.2.0; AutoAttack rand: fast 0.1.0"]


def test_a_row_is_ranked_once_the_version_of_autoattack_that_its_suite_names_ran_in_full(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=HERE, evaluation=CUSTOM)
    (row,) = summarise(report).leaderboard.to_dict("records")
    assert (row["status"], row["status_note"]) == (
        "partial",
        "custom (apgd-t, fab-t) was not run in full at this epsilon",
    )
    attacked(report, "pgd_at", "autoattack_custom")
    (row,) = summarise(report).leaderboard.to_dict("records")
    assert (row["status"], row["status_note"]) == ("done", "")


def test_curves_say_at_which_radius_which_version_ran(tmp_path):
    report = make_report(tmp_path / "r", {"pgd_at": 0.28}, attacked=FEW | {"attacks": ("clean", "pgd20")})
    attacked(report, "pgd_at", "autoattack_plus")
    written = [text.get_text() for text in figures.accuracy_over_epsilon(summarise(report)).findobj(Text)]
    assert any("worst case over attacks (AutoAttack plus at 0.15 only)" in text for text in written)
