"""The development attack quick: what it finds and costs, and that nobody takes it for AutoAttack."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from attacks import ThreatModel
from attacks.quick import quick
from benchmark.data import Images
from benchmark.evaluation import Job, evaluate, jobs
from benchmark.evaluation_settings import Evaluation
from benchmark.report.figures import accuracy_over_epsilon
from benchmark.report.page import page
from benchmark.report.summary import summarise
from benchmark.report.table import readable_accuracy, readable_leaderboard, readable_table1
from benchmark.results.evidence import evidence_folder, write_part
from benchmark.storage import save_weights
from tests.benchmark.make_report import FEW, make_report, radii, verdicts, write_card, write_evidence, write_suite
from tests.models import Constant, linear

MARK = "quick (development attack, not AutoAttack)"


def grey(count=60, classes=10):
    network = linear(classes=classes)
    x = 0.5 + 0.1 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return network, x, network(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_it_finds_what_a_linear_network_loses_in_linf(classes):
    network, x, y = grey(classes=classes)
    radius = network.linf_radius(x, y)
    epsilon = float(radius.median())
    found = quick(network, x, y, ThreatModel("linf", epsilon), seed=0)
    sure = (radius - epsilon).abs() > 1e-4
    assert sure.sum() > 50
    assert torch.equal(torch.tensor([by != "" for by in found.by])[sure], (radius < epsilon)[sure])


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_it_runs_in_the_other_norms_and_stays_in_the_ball(norm):
    network, x, y = grey()
    radius = network._radius(x, y, 2 if norm == "l2" else torch.inf)  # of the dual norm; pixel range aside
    threat = ThreatModel(norm, float(radius.median()))
    found = quick(network, x, y, threat, seed=0)
    assert 0 < found.by.count("") < len(x)
    assert threat.distance(found.adversarial, x).max() <= threat.epsilon * (1 + 1e-5)


def test_an_image_that_holds_costs_an_eighteenth_of_what_autoattack_spends_on_it():
    network, x, y = grey(4)
    found = quick(network, x, y, ThreatModel("linf", 1e-4), seed=0)
    assert found.by.count("") == 4
    in_full = 7_800 + 1_900  # forward and backward, of AutoAttack standard on ten classes, as its authors' code does it
    assert (found.forward + found.backward).max() < in_full / 18


def test_verdicts_do_not_depend_on_slots_or_order():
    network, x, y = grey()
    threat = ThreatModel("linf", float(network.linf_radius(x, y).median()))
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    found = quick(network, x, y, threat, seed=0)
    again = quick(network, x[mixed], y[mixed], threat, seed=0, index=mixed, slots=7)
    assert [found.by[row] for row in mixed.tolist()] == again.by


def test_it_is_cheap_enough_for_every_epsilon_and_checkpoint():
    chosen = Evaluation(epsilons=[0.1, 0.2], ranked_at=[0.2], attacks=["quick"], sweep="descending")
    for ranked in (True, False):
        assert list(jobs(chosen, ranked=ranked)) == [Job("clean", 0.0), Job("quick", 0.1), Job("quick", 0.2)]


@pytest.mark.parametrize("engine", ["fast", "official"])
def test_it_leaves_evidence_under_its_own_name(engine):
    images = Images(torch.full((5, 1, 8, 8), 128, dtype=torch.uint8), torch.tensor([2, 2, 2, 0, 1]), torch.arange(5))
    chosen = Evaluation(epsilons=[0.1], ranked_at=[0.1], attacks=["quick"], engine=engine, batch_size=2)
    frame = evaluate(Wrapped(Constant([0.0, 0.1, 0.5])), images, ThreatModel(), chosen)
    own = frame[frame.attack == "quick"]
    assert own.fooled.tolist() == [False, False, False, True, True]
    assert own.by.tolist() == ["", "", "", "clean", "clean"]
    assert own.engine.str.startswith("fast").all()
    assert not own.carried.any()
    assert (own.forward[:3] > 180).all()


class Wrapped(nn.Sequential):
    """A module that has a parameter, as every network that is trained has."""


def with_quick(folder: Path, **suite) -> Path:
    """A report of two methods on which quick fools ten images more than all other attacks together."""
    methods = {"pgd_at": 0.28, "trades": 0.27}
    make_report(folder, methods, attacked=FEW, images=100, **suite)
    for method, radius in methods.items():
        fooled = radii(radius, 100, 0) < 0.15 * 1.3
        fooled[(~fooled).nonzero()[0][:10]] = True
        frame = verdicts("quick", 0.15, fooled, engine="fast 0.1.0")
        write_part(evidence_folder(folder, f"{method}-0", "last", "quick", 0.15), frame, 0)
    return folder


def test_the_leaderboard_has_a_column_for_it_that_says_what_it_is(tmp_path):
    summary = summarise(with_quick(tmp_path))
    board = summary.leaderboard[summary.leaderboard.epsilon == 0.15].query("checkpoint == 'last'")
    assert (board.quick == board.autoattack - 0.1).all()
    assert set(board.quick_note) == {"development attack, not AutoAttack"}
    assert (board.quick_low < board.quick).all()
    shown = readable_leaderboard(summary)
    assert shown[MARK].ne("").any()
    assert MARK in page(summary, {}, [])
    assert not [name for name in readable_table1(summary) if "quick" in name]


def test_it_has_no_part_in_worst_case_ranks_comparisons_or_engines(tmp_path):
    without = summarise(make_report(tmp_path / "a", {"pgd_at": 0.28, "trades": 0.27}, attacked=FEW, images=100))
    summary = summarise(with_quick(tmp_path / "b"))
    own = [name for name in summary.leaderboard if not name.startswith("quick")]
    pd.testing.assert_frame_equal(summary.leaderboard[own], without.leaderboard[own])
    pd.testing.assert_frame_equal(summary.comparisons, without.comparisons)
    pd.testing.assert_frame_equal(summary.autoattack_stages, without.autoattack_stages)
    pd.testing.assert_frame_equal(summary.table1, without.table1)
    assert without.leaderboard.quick.isna().all()
    assert MARK not in readable_leaderboard(without)


def test_a_quick_evaluation_half_way_keeps_no_method_from_its_rank(tmp_path):
    write_suite(tmp_path, ["pgd_at"], images=100)
    write_evidence(tmp_path, write_card(tmp_path, "pgd_at"), radii(0.28, 100, 0), **FEW)
    half = verdicts("quick", 0.15, radii(0.28, 50, 0) < 0.2)
    write_part(evidence_folder(tmp_path, "pgd_at-0", "last", "quick", 0.15), half, 0)
    assert summarise(tmp_path).leaderboard.query("checkpoint == 'last'").rank_low.tolist() == [1]


def test_a_report_of_quick_alone_shows_it_and_ranks_nothing(tmp_path):
    write_suite(tmp_path, ["pgd_at"], images=50, evaluation={"attacks": ["quick"]})
    write_card(tmp_path, "pgd_at")
    for attack, epsilon in (("clean", 0.0), ("quick", 0.15)):
        frame = verdicts(attack, epsilon, radii(0.28, 50, 0) < epsilon)
        write_part(evidence_folder(tmp_path, "pgd_at-0", "last", attack, epsilon), frame, 0)
    summary = summarise(tmp_path)
    (line,) = summary.leaderboard.to_dict("records")
    assert line["quick"] > 0
    assert pd.isna(line["worst_case"])
    assert pd.isna(line["rank_low"])
    assert (line["status"], line["images"]) == ("partial", 50)
    assert "development attack alone, which ranks nothing" in line["status_note"]
    assert "quick" in set(readable_accuracy(summary).attack)
    texts = [text.get_text() for text in accuracy_over_epsilon(summary).axes[0].texts]
    assert any("but by the development attack" in text for text in texts)


def test_the_command_line_takes_attack_as_well_as_attacks(atbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_weights(Path("w.safetensors"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict())
    Path("net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = ["evaluate", "--model", "net.py:build", "--weights", "w.safetensors", "--dataset", "digits"]
    assert atbench(*words, "--attack", "quick", "--images", 10, "--epsilon", "0.05", "0.1", "--output", "r") == 0
    accuracy = pd.read_csv("r/accuracy.csv")
    assert set(zip(accuracy.attack, accuracy.epsilon, strict=True)) == {
        ("clean", 0.0),
        ("quick", 0.05),
        ("quick", 0.1),
    }
    assert "development attack, not AutoAttack" in Path("r/leaderboard.csv").read_text()
