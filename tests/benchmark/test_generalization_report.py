"""What a report says of generalisation, and of what methods trade against natural training."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from benchmark.errors import BadInput
from benchmark.report import build
from benchmark.report.generalization import readable_gaps
from benchmark.report.generalization_figures import generalization, tradeoff
from benchmark.report.page import page
from benchmark.report.style import looks
from benchmark.report.summary import summarise
from benchmark.results.curves import curve_path, write_curve
from benchmark.results.statistics import unpaired_difference, wilson
from tests.benchmark.make_report import FEW, make_report, radii, write_card, write_evidence, write_failure, write_suite

EPOCHS = (0, 5, 10, 12, 14)


def correct(epoch, split, attack, fall=0):
    """Ever better on training images; on test images the robust figure falls again behind epoch 10."""
    best = {("train", "clean"): 180, ("test", "clean"): 170, ("train", "pgd10"): 120, ("test", "pgd10"): 100}
    return best[split, attack] + 4 * epoch - (fall * max(0, epoch - 10) if (split, attack) == ("test", "pgd10") else 0)


def watch(folder, experiment, *, last=14, best=10, fall=9, epochs=EPOCHS, whole=True):
    lines = [
        {"epoch": e, "split": s, "attack": a, "correct": correct(e, s, a, fall), "images": 240}
        for e in epochs
        for s in ("train", "test")
        for a in ("clean", "pgd10")
    ]
    kept, cost = {"last": last, "best": best}, {"passes": 51.3, "seconds": 1.25}
    write_curve(curve_path(folder, experiment), {"epsilon": 0.15}, lines, kept, cost, whole=whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    report = make_report(
        tmp_path_factory.mktemp("watched"), {"natural": 0.05, "pgd_at": 0.28, "trades": 0.27}, images=60, attacked=FEW
    )
    watch(report, "pgd_at-0")
    watch(report, "natural-0", last=14, best=14, fall=0)
    watch(report, "trades-0", epochs=(10, 14), whole=False)
    build(report)
    return report


def table(folder, name):
    return pd.read_csv(folder / f"{name}.csv")


def test_every_epoch_split_and_attack_is_a_line_with_its_interval(folder):
    lines = table(folder, "generalization")
    assert list(lines.columns) == [
        *("experiment", "method", "method_note", "seed", "fold", "epoch", "split", "attack", "epsilon", "correct"),
        *("images", "accuracy", "low", "high", "checkpoint", "suite_note"),
    ]
    assert len(lines) == 4 * (5 + 5 + 2)
    assert lines.accuracy.tolist() == pytest.approx((lines.correct / lines.images).tolist())
    assert ((lines.low <= lines.accuracy) & (lines.accuracy <= lines.high)).all()
    assert set(lines.epsilon[lines.attack == "clean"]) == {0}
    assert set(lines.epsilon[lines.attack == "pgd10"]) == {0.15}
    marks = lines[lines.checkpoint.notna()].drop_duplicates(["method", "epoch"]).set_index(["method", "epoch"])
    assert marks.checkpoint.to_dict() == {
        ("natural", 14): "last, best", ("pgd_at", 10): "best", ("pgd_at", 14): "last",
        ("trades", 10): "best", ("trades", 14): "last",
    }  # fmt: skip


def test_the_gaps_are_those_of_the_two_networks_that_are_kept(folder):
    gaps = table(folder, "generalization_gaps").set_index(["method", "checkpoint", "attack"])
    assert len(gaps) == 3 * 2 * 2
    line = gaps.loc["pgd_at", "last", "pgd10"]
    assert (line.epoch, line.train_images, line.test_images) == (14, 240, 240)
    assert line.gap == pytest.approx((correct(14, "train", "pgd10") - correct(14, "test", "pgd10", 9)) / 240)
    assert line.gap_low < line.gap < line.gap_high
    lost = (correct(10, "test", "pgd10") - correct(14, "test", "pgd10", 9)) / 240
    assert line.test_lost_since_best == pytest.approx(lost)
    assert gaps.loc["pgd_at", "best", "pgd10"].test_lost_since_best == 0
    assert gaps.loc["natural", "last", "pgd10"].test_lost_since_best == 0  # both are of one epoch
    assert gaps.whole.groupby("method").all().to_dict() == {"natural": True, "pgd_at": True, "trades": False}


def test_the_page_has_gaps_curves_and_says_that_test_images_choose_nothing(folder):
    text = (folder / "index.html").read_text()
    assert "test images choose nothing" in text
    assert "only what was kept" in text
    for name in ("generalization", "tradeoff"):
        assert f"figures/{name}.pdf" in text
        assert (folder / "figures" / f"{name}.png").is_file()


def test_measuring_curves_is_a_cost_of_its_own(folder, tmp_path):
    costs = table(folder, "costs").set_index("method")
    assert costs.curve_passes.tolist() == [51.3] * 3
    assert costs.curve_seconds.tolist() == [1.25] * 3
    assert costs.selection_passes.tolist() == [120] * 3
    assert "curve_passes" not in summarise(make_report(tmp_path, {"pgd_at": 0.2}, attacked=FEW, images=20)).costs


def test_the_curves_are_dashed_for_training_images_and_marked_at_best_and_last(folder):
    summary = summarise(folder)
    clean, pgd10 = generalization(summary).axes
    assert pgd10.get_title("left") == "PGD-10, ε = 0.15"
    dashed = [line for line in clean.get_lines() if line.get_linestyle() == "--"]
    assert len(dashed) == 3
    stars = [line for line in pgd10.get_lines() if line.get_marker() == "*"]
    assert sorted(x for star in stars for x in star.get_xdata()) == [10, 10, 10, 10, 14, 14]  # training and test images
    names = [text.get_text() for text in pgd10.get_legend().get_texts()]
    assert names[0] == "natural"  # whose test accuracy did not fall


def test_many_methods_get_a_row_of_panels_for_each_category(tmp_path):
    methods = [f"method_{place}" for place in range(12)]
    write_suite(tmp_path, methods, images=20)
    for place, method in enumerate(methods):
        watch(tmp_path, write_card(tmp_path, method, category=("origins", "curriculum", "efficient")[place % 3]))
    figure = generalization(summarise(tmp_path))
    assert len(figure.axes) == 6
    titles = {axes.get_title("left") for axes in figure.axes}
    assert "curriculum: clean" in titles
    assert "efficient: PGD-10, ε = 0.15" in titles


def test_several_seeds_are_joined_where_all_were_measured_and_marked_each(tmp_path, recwarn):
    write_suite(tmp_path, ["pgd_at"], seeds=(0, 1), images=20)
    watch(tmp_path, write_card(tmp_path, "pgd_at", 0), best=12)
    watch(tmp_path, write_card(tmp_path, "pgd_at", 1), best=5, epochs=(0, 5, 10, 14))
    summary = summarise(tmp_path)
    _, pgd10 = generalization(summary).axes
    (curve,) = [line for line in pgd10.get_lines() if line.get_linestyle() == "-"]
    assert curve.get_xdata().tolist() == [0, 5, 10, 14]
    assert readable_gaps(summary.gaps, summary.named).seed.tolist() == ["0", "0", "1", "1"]
    assert not recwarn.list


def test_both_figures_are_laid_out_for_fifty_methods_and_for_none(tmp_path, recwarn):
    methods = {f"method_number_{place}": 0.1 + 0.004 * place for place in range(49)} | {"natural": 0.05}
    make_report(tmp_path / "fifty", methods, images=20, attacked=FEW)
    for method in methods:
        watch(tmp_path / "fifty", f"{method}-0")
    write_suite(tmp_path / "none")
    write_card(tmp_path / "none", "pgd_at")
    for name in ("fifty", "none"):
        summary = summarise(tmp_path / name)
        for draw in (generalization, tradeoff):
            draw(summary).savefig(tmp_path / "x.png", dpi=40)
    assert not recwarn.list


def test_a_method_looks_in_them_as_in_every_figure(folder):
    summary = summarise(folder)
    wanted = looks(summary.methods)["trades"]
    for draw in (generalization, tradeoff):
        lines = [line for axes in draw(summary).axes for line in axes.get_lines()]
        found = {(line.get_marker(), to_hex(line.get_color())) for line in lines}
        assert (wanted.marker, wanted.colour.lower()) in found


def test_without_curves_there_is_no_file_and_no_figure_of_them(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    build(tmp_path)
    assert not list(tmp_path.glob("**/generalization*"))
    assert "<h2>Generalisation</h2>" not in (tmp_path / "index.html").read_text()
    (axes,) = generalization(summarise(tmp_path)).axes
    assert "did not ask for curves" in axes.texts[0].get_text()


def test_a_curve_without_a_card_is_shown_nowhere(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    watch(tmp_path, "stranger")
    assert summarise(tmp_path).generalization.empty


def test_a_curve_that_misses_a_network_that_was_kept_is_refused(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    watch(tmp_path, "pgd_at-0")
    path = curve_path(tmp_path, "pgd_at-0")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kept": {"last": 14, "best": 3}}))
    with pytest.raises(BadInput, match="a network that was kept and not measured"):
        summarise(tmp_path)


# Against natural training


def test_what_a_method_trades_is_counted_on_the_images_that_both_saw(folder):
    lines = table(folder, "tradeoff").set_index("method")
    kept = {method: radii(radius, 60, 0) for method, radius in {"natural": 0.05, "pgd_at": 0.28}.items()}
    worst = {method: float((r >= 0.15 * 1.3).mean()) for method, r in kept.items()}
    clean = {method: float((r >= 0).mean()) for method, r in kept.items()}
    line = lines.loc["pgd_at"]
    assert line.robust_won == pytest.approx(worst["pgd_at"] - worst["natural"])
    assert line.clean_lost == pytest.approx(clean["natural"] - clean["pgd_at"])
    assert (line.robust, line.natural_robust) == pytest.approx((worst["pgd_at"], worst["natural"]))
    assert line.robust_won_low < line.robust_won < line.robust_won_high
    assert lines.loc["natural", ["clean_lost", "robust_won"]].tolist() == [0, 0]
    assert (lines.images == 60).all()


def test_natural_training_stands_at_the_origin_and_the_others_where_they_trade(folder):
    summary = summarise(folder)
    (axes,) = tradeoff(summary).axes
    marks = [line for line in axes.get_lines() if line.get_marker() not in ("", "None")]
    points = {(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks}
    wanted = summary.tradeoff[["clean_lost", "robust_won"]].to_numpy() * 100
    assert (0.0, 0.0) in points
    assert all(any(np.allclose(point, want) for point in points) for want in wanted)


def test_without_natural_training_the_report_says_so(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28, "trades": 0.2}, attacked=FEW, images=20)
    summary = summarise(tmp_path)
    assert summary.tradeoff.empty
    assert "There is no row of natural training" in page(summary, {}, [])
    (axes,) = tradeoff(summary).axes
    assert "There is no row of natural training" in axes.texts[0].get_text()


def test_a_method_that_is_not_fully_attacked_trades_nothing_yet(tmp_path):
    make_report(tmp_path, {"natural": 0.05, "pgd_at": 0.28}, attacked=FEW, images=20)
    weakly = write_card(tmp_path, "trades")
    write_evidence(tmp_path, weakly, radii(0.3, 20, 0), attacks=("clean", "pgd20"), **FEW)
    write_failure(tmp_path, "mart")
    assert set(summarise(tmp_path).tradeoff.method) == {"natural", "pgd_at"}


@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_the_interval_of_a_difference_holds_it_and_is_that_of_wilson_against_a_sure_thing(first, second, data):
    right = data.draw(st.integers(0, first)), data.draw(st.integers(0, second))
    found = unpaired_difference(right, (first, second))
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    back = unpaired_difference(right[::-1], (second, first))
    assert (back.low, back.estimate, back.high) == pytest.approx((-found.high, -found.estimate, -found.low))


def test_the_interval_of_a_difference_is_newcombes():
    # Newcombe 1998, table II, contrast (a): 56/70 - 48/80, method 10.
    found = unpaired_difference((56, 48), (70, 80))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert wilson(56, 70).estimate == 0.8
