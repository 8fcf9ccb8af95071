"""Carried verdicts of a sweep in a report: in curves, drawn open, and in no figure that says AutoAttack."""

import pytest
from matplotlib.colors import to_hex

from benchmark.report import figures
from benchmark.report.folder import build
from benchmark.report.page import page
from benchmark.report.summary import summarise
from benchmark.report.table import readable_accuracy, readable_leaderboard, readable_table1
from benchmark.results.evidence import evidence_folder, write_part
from tests.benchmark.make_report import EPSILONS, make_report, radii, verdicts

METHODS = {"pgd_at": 0.28, "trades": 0.27}


def swept(folder, how="descending", share=0.6):
    """A report in which a ``share`` of AutoAttack's verdicts is carried at every epsilon but the ranked one, 0.15."""
    attacked = {"checkpoints": ["last"], "batch": 200, "autoattack_at": EPSILONS}
    make_report(folder, METHODS, attacked=attacked, images=50, evaluation={"sweep": how})
    for method, radius in METHODS.items():
        for epsilon in EPSILONS:
            frame = verdicts("autoattack", epsilon, radii(radius, 50, 0) < 1.3 * epsilon)
            if epsilon != 0.15 and how == "descending":
                frame["carried"] = frame["index"] < 50 * share
            write_part(evidence_folder(folder, f"{method}-0", "last", "autoattack", epsilon), frame, 0)
    return folder


@pytest.fixture(scope="module")
def descending(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("descending"))


@pytest.fixture(scope="module")
def summary(descending):
    return summarise(descending)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    return summarise(swept(tmp_path_factory.mktemp("strict"), "strict"))


def test_the_accuracy_table_tells_the_share_of_carried_verdicts(summary):
    shares = summary.accuracy[summary.accuracy.attack.isin(["autoattack", "worst_case"])]
    expected = [0.0 if epsilon == 0.15 else 0.6 for epsilon in shares.epsilon]
    assert shares.carried_share.tolist() == pytest.approx(expected)
    assert (shares.carried == (shares.carried_share > 0)).all()
    assert not summary.accuracy[summary.accuracy.attack == "pgd20"].carried.any()
    shown = readable_accuracy(summary).query("attack == 'AutoAttack'")
    assert dict(zip(shown.epsilon, shown.carried, strict=True)) == {
        epsilon: "" if epsilon == "0.15" else "60%" for epsilon in map(str, EPSILONS)
    }


def test_no_table_of_autoattack_holds_a_carried_verdict(summary):
    assert set(summary.autoattack_stages.epsilon) == {0.15}
    assert set(summary.leaderboard.epsilon) == {0.15}
    assert summary.leaderboard.autoattack.notna().all()


def test_where_models_are_ranked_a_sweep_that_carries_changes_nothing(summary, strict, tmp_path):
    attacked = {"checkpoints": ["last"], "batch": 200}
    plain = summarise(make_report(tmp_path, METHODS, attacked=attacked, images=50))
    for other in (summary, strict):
        for make in (readable_leaderboard, readable_table1):
            assert make(other).equals(make(plain))
        assert other.comparisons.equals(plain.comparisons)


def test_a_strict_sweep_shows_the_stages_of_every_epsilon(strict):
    assert sorted(set(strict.autoattack_stages.epsilon)) == EPSILONS
    assert not strict.accuracy.carried.any()


def test_a_worst_case_that_rests_on_carried_verdicts_is_neither_ranked_nor_shown(descending):
    (descending / "other").mkdir()
    for name in ("evidence", "experiments"):
        (descending / "other" / name).symlink_to(descending / name)
    text = (descending / "suite.yaml").read_text().replace("ranked_at:\n  - 0.15", "ranked_at:\n  - 0.2")
    (descending / "other" / "suite.yaml").write_text(text)
    board = summarise(descending / "other").leaderboard
    assert board.epsilon.tolist() == [0.2, 0.2]
    assert board.rank_low.isna().all()
    assert board[["autoattack", "worst_case"]].isna().all().all()
    assert set(board.status_note) == {"verdicts are carried from another epsilon"}


def test_curves_draw_carried_verdicts_open_and_say_so(summary, strict):
    axes = figures.accuracy_over_epsilon(summary).axes[0]
    marked = [line for line in axes.get_lines() if line.get_marker() not in ("None", "")]
    is_open = [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in marked]
    points = {state: {x for line, o in zip(marked, is_open, strict=True) if o == state for x in line.get_xdata()}
              for state in (True, False)}  # fmt: skip
    assert points == {True: {0.05, 0.1, 0.2, 0.3}, False: {0.0, 0.15}}
    words = " ".join(text.get_text() for text in axes.texts)
    assert "AutoAttack in full at 0.15; open: partly carried" in words
    words = " ".join(text.get_text() for text in figures.accuracy_over_epsilon(strict).axes[0].texts)
    assert "carried" not in words
    assert "only" not in words


def test_the_page_says_how_autoattack_went_elsewhere(summary, strict):
    assert "carried from one to the next" in page(summary, {}, [])
    assert "at every epsilon in full" in page(strict, {}, [])


def test_every_table_and_figure_is_made(descending, monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", (figures.accuracy_over_epsilon,))
    assert (descending / "leaderboard.csv") in build(descending)
