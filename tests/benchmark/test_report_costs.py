"""What a report says of costs, and of single-step methods that overfitted catastrophically."""

import html
import re

import numpy as np
import pandas as pd
import pytest

from benchmark.cli import main
from benchmark.report import build
from benchmark.report.page import page
from benchmark.report.summary import summarise
from benchmark.report.table import readable_alarm, readable_costs, readable_leaderboard
from tests.benchmark.make_report import (
    FEW,
    make_report,
    radii,
    watched,
    write_card,
    write_evidence,
    write_failure,
    write_suite,
)


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())


def table(folder, name):
    return pd.read_csv(folder / f"{name}.csv")


def test_costs_have_a_line_per_experiment_and_stand_beside_passes_in_the_leaderboard(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    dear = {"seconds": 10.5, "device_hours": 0.5, "devices": 4, "peak_memory_mib": 900.0, "device": "NVIDIA H100"}
    experiment = write_card(tmp_path, "pgd_at", seed=1, **dear)
    write_evidence(tmp_path, experiment, radii(0.28, 20, 1), **FEW)
    write_failure(tmp_path, "mart")
    build(tmp_path)
    costs = table(tmp_path, "costs")
    assert list(costs.columns) == [
        *("method", "method_note", "seed", "fold", "devices", "device_name", "forward_passes", "backward_passes"),
        *("selection_passes", "seconds", "seconds_relative_to_natural", "selection_seconds", "device_hours"),
        *("peak_memory_mib", "peak_memory_of", "memory_growth_mib", "status", "experiment", "suite_note"),
    ]
    assert costs[["method", "seed", "status"]].to_numpy().tolist() == [
        ["mart", 0, "failed"],
        ["pgd_at", 0, "done"],
        ["pgd_at", 1, "done"],
    ]
    line = costs.iloc[2]
    assert (line.device_name, line.devices, line.device_hours, line.peak_memory_mib) == ("NVIDIA H100", 4, 0.5, 900)
    assert (line.forward_passes, line.backward_passes, line.selection_passes) == (270, 270, 120)
    assert (line.seconds, line.selection_seconds) == (10.5, 1.5)
    ranked = table(tmp_path, "leaderboard").query("method == 'pgd_at'").iloc[0]
    assert (ranked.passes, ranked.seconds, ranked.peak_memory_mib) == (540, 7.0, 900)  # averages, but the most memory
    assert ranked.device_hours == pytest.approx((0.5 + 0.000972) / 2)
    for text in ((tmp_path / "leaderboard.md").read_text(), (tmp_path / "index.html").read_text()):
        assert "device-hours" in text
        assert "900" in text
    assert "NVIDIA H100" in (tmp_path / "index.html").read_text()


def test_seconds_are_held_against_natural_training_of_the_same_seed_network_and_device(tmp_path):
    write_suite(tmp_path, ["natural", "pgd_at", "trades"], seeds=(0, 1), images=20)
    for method, seed, seconds, more in (
        ("natural", 0, 2.0, {}),
        ("natural", 1, 4.0, {}),
        ("pgd_at", 0, 16.0, {}),
        ("pgd_at", 1, 24.0, {}),
        ("trades", 0, 30.0, {"device": "NVIDIA H100"}),  # where natural was not trained
        ("trades", 1, 36.0, {}),
        ("mart", 1, 36.0, {"network": "small_cnn"}),
        ("fat", 2, 36.0, {}),
    ):
        write_evidence(tmp_path, write_card(tmp_path, method, seed, seconds=seconds, **more), radii(0.2, 20, 0), **FEW)
    summary = summarise(tmp_path)
    found = summary.costs.set_index(["method", "seed"]).seconds_relative_to_natural
    assert found.dropna().to_dict() == {
        ("natural", 0): 1, ("natural", 1): 1, ("pgd_at", 0): 8, ("pgd_at", 1): 6, ("trades", 1): 9,
    }  # fmt: skip
    board = summary.leaderboard.set_index("method").seconds_relative_to_natural
    assert board[["natural", "pgd_at", "trades"]].tolist() == [1, 7, 9]
    assert board[["mart", "fat"]].isna().all()
    assert readable_leaderboard(summary).set_index("method")["times natural"][["pgd_at", "mart"]].tolist() == [
        "7.0",
        "",
    ]
    assert readable_costs(summary)["times natural"].tolist() == ["", "", "1.0", "1.0", "8.0", "6.0", "", "9.0"]


def test_without_natural_training_nothing_is_held_against_it(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    summary = summarise(tmp_path)
    assert summary.costs.seconds_relative_to_natural.isna().all()
    assert summary.leaderboard.seconds_relative_to_natural.isna().all()


def test_what_training_added_to_the_memory_stands_beside_the_peak(tmp_path):
    write_suite(tmp_path, ["pgd_at"], images=20)
    for seed, growth in ((0, 30.5), (1, 41.0)):
        experiment = write_card(tmp_path, "pgd_at", seed, memory_growth_mib=growth)
        write_evidence(tmp_path, experiment, radii(0.2, 20, 0), **FEW)
    summary = summarise(tmp_path)
    assert summary.costs.memory_growth_mib.tolist() == [30.5, 41]
    assert summary.leaderboard.memory_growth_mib.tolist() == [41]
    assert readable_leaderboard(summary)["training's share (MiB)"].tolist() == ["41"]
    assert readable_costs(summary)["training's share (MiB)"].tolist() == ["30", "41"]


def test_a_card_without_costs_leaves_cells_empty(tmp_path):
    write_suite(tmp_path, ["mine"], images=20)
    nothing = dict.fromkeys(("devices", "device", "device_hours", "peak_memory_mib", "peak_memory_of", "seconds"))
    write_evidence(tmp_path, write_card(tmp_path, "mine", **nothing), radii(0.2, 20, 0), **FEW)
    build(tmp_path)
    assert table(tmp_path, "costs")[["devices", "device_hours", "peak_memory_mib"]].isna().all().all()
    assert table(tmp_path, "leaderboard")[["device_hours", "peak_memory_mib"]].isna().all().all()
    for name in ("index.html", "leaderboard.md"):
        assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"<script>.*?</script>", "", (tmp_path / name).read_text()))


def collapsed(folder, seed=0, **weights):
    epochs = {"last": {"sha256": "0" * 64, "epoch": 3}, "best": {"sha256": "1" * 64, "epoch": 1}} | weights
    marks = {"catastrophic_overfitting": 2, "label_leaking": [3]}
    history = watched(0.3, 0.5, 0.1, 0.0)
    history[3]["held_out_fgsm"] = 0.95
    experiment = write_card(folder, "fast_at", seed, weights=epochs, history=history, **marks)
    write_evidence(folder, experiment, radii(0.1, 20, seed), checkpoints=["last", "best"], epsilons=[0.1, 0.15])


def test_a_method_that_overfitted_catastrophically_is_marked_and_its_best_checkpoint_stands_beside(tmp_path, capsys):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    collapsed(tmp_path)
    build(tmp_path)
    board = table(tmp_path, "leaderboard").set_index(["method", "checkpoint"])
    assert board.catastrophic_overfitting["fast_at", "last"] == 2
    assert board.alarm["fast_at", "last"] == "catastrophic overfitting in epoch 2; label leaking"
    for sound in (("fast_at", "best"), ("pgd_at", "last")):  # `best` was kept before the collapse
        assert np.isnan(board.catastrophic_overfitting[sound])
    assert board.rank_low.notna()["fast_at", "last"]  # marked, and left in the table
    sentence = (
        "fast_at seed 0: catastrophic overfitting in epoch 2 (from 0), PGD-10 on held-out images fell from 50.0 to "
        "10.0 %, FGSM is 70.0 %; `last` is of epoch 3, `best` is of epoch 1"
    )
    assert sentence in html.unescape((tmp_path / "index.html").read_text())
    for name in ("leaderboard.md", "leaderboard.tex", "index.html"):
        assert "catastrophic overfitting in epoch 2; label leaking" in (tmp_path / name).read_text()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert not ended.value.code
    told = capsys.readouterr()
    assert told.err == f"alarm: {sentence}\n"
    assert told.out == f"{tmp_path / 'index.html'}\n"


def test_the_report_shows_fgsm_and_pgd_of_single_step_methods_epoch_by_epoch(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    collapsed(tmp_path)
    summary = summarise(tmp_path)
    assert summary.alarm.method.tolist() == ["fast_at"] * 4
    assert summary.alarm.held_out_pgd10.tolist() == [0.3, 0.5, 0.1, 0.0]
    assert summary.alarm.mark.tolist() == ["", "", "catastrophic overfitting", "label leaking"]
    shown = readable_alarm(summary)
    assert shown["PGD-10"].tolist() == ["30.0", "50.0", "10.0", "0.0"]
    assert shown["FGSM"].tolist() == ["70.0", "70.0", "70.0", "95.0"]


def test_of_several_networks_the_mark_counts_those_that_collapsed(tmp_path):
    write_suite(tmp_path, ["fast_at"], seeds=(0, 1), images=20)
    collapsed(tmp_path)
    experiment = write_card(tmp_path, "fast_at", 1, history=watched(0.3, 0.5), catastrophic_overfitting=None)
    write_evidence(tmp_path, experiment, radii(0.2, 20, 1), **FEW)
    line = summarise(tmp_path).leaderboard.query("checkpoint == 'last'").iloc[0]
    assert line.alarm == "catastrophic overfitting in epoch 2 (1 of 2 networks); label leaking (1 of 2 networks)"


def test_an_early_stop_that_went_back_before_the_collapse_leaves_a_sound_row(tmp_path):
    write_suite(tmp_path, ["fast_at"], images=20)
    collapsed(tmp_path, last={"sha256": "0" * 64, "epoch": 1})
    summary = summarise(tmp_path)
    assert summary.leaderboard.catastrophic_overfitting.isna().all()
    assert "alarm" not in readable_leaderboard(summary)
    assert "catastrophic overfitting in epoch 2" in page(summary, {}, [])  # that it happened is told


def test_what_a_method_says_of_its_own_training_stands_beside_its_row(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, attacked=FEW, images=20)
    for seed, largest in ((0, 0.2), (1, 0.4)):
        experiment = write_card(tmp_path, "iaat", seed=seed, remarks={"radius_mean": 0.1, "radius_max": largest})
        write_evidence(tmp_path, experiment, radii(0.2, 20, seed), **FEW)
    build(tmp_path)
    told = table(tmp_path, "leaderboard").set_index("method").remarks.fillna("")
    assert set(told.loc[["iaat"]]) == {"radius max 0.3, radius mean 0.1"}  # YAML has sorted them
    assert set(told.loc[["pgd_at"]]) == {""}
    shown = readable_leaderboard(summarise(tmp_path)).set_index("method").remark
    assert "radius max 0.3" in str(shown.loc["iaat"])
