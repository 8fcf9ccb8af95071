"""Attacks that no method was trained on: what is run, what is reused, what the table says."""

import numpy as np
import pandas as pd
import pytest
import torch

from attacks import BadInput, ThreatModel
from benchmark import suite
from benchmark.data import load
from benchmark.evaluation import evaluate
from benchmark.evaluation_settings import Evaluation, Unseen
from benchmark.experiment import plan
from benchmark.fixed_steps import Subject
from benchmark.report import build
from benchmark.report.summary import summarise
from benchmark.report.unseen import heading
from benchmark.results.unseen import is_unseen
from benchmark.unseen import pgd50_l1, transferred
from tests.benchmark.make_report import FEW, make_report, verdicts, write_card, write_evidence, write_suite
from tests.models import curved, images

SMALL = ["recipe.epochs=1", "dataset.train_images=96", "dataset.validation_images=20", "evaluation.images=40"]


def attack_more(folder, experiment, attack, epsilon, fooled):
    from benchmark.results.evidence import evidence_folder, write_part

    write_part(evidence_folder(folder, experiment, "last", attack, epsilon), verdicts(attack, epsilon, fooled), 0)


def asking(**own):
    return {"epsilons": [0.1, 0.15], "attacks": ["pgd20"], "unseen": {"l2": [0.6], "l1": [2.0], **own}}


def test_the_suite_trains_nothing_that_digits_common_has_trained():
    unseen, common = suite.load("unseen"), suite.load("digits-common")
    assert [one.name for one in plan(unseen)] == [one.name for one in plan(common)]
    assert unseen.evaluation.epsilons == [unseen.threat.epsilon, 2 * unseen.threat.epsilon]


def test_the_radii_are_those_that_the_methods_of_the_union_train_with():
    unseen = suite.load("unseen")
    for one in plan(unseen):
        if one.method_class.card.comparison == "E":
            found = one.settings["radii"]
            assert ([found["l2"]], [found["l1"]]) == (unseen.evaluation.unseen.l2, unseen.evaluation.unseen.l1)


@pytest.mark.filterwarnings("ignore")
def test_a_run_attacks_in_every_norm_and_by_transfer_and_a_second_one_finds_it_all_there(atbench, tmp_path, capsys):
    words = ["run", "unseen", "--output", tmp_path / "r", "--checkpoints", tmp_path / "c", "--workers", 1]
    words += ["--methods", "natural", "pgd_at", "fgsm_at", "--set", *SMALL]
    assert atbench(*words) == 0
    table = pd.read_csv(tmp_path / "r" / "unseen.csv").set_index("method")
    assert {"pgd20@0.15", "pgd20@0.3", "pgd20_l2@0.6", "pgd50_l1@2", "union"} <= {*table}
    for source in ("natural", "pgd_at"):
        column = table[f"transfer_{source}@0.15"]
        assert column.isna().tolist() == [method == source for method in table.index]
    assert (table.images == 40).all()
    assert (table["union"] <= table[["pgd20@0.15", "pgd20_l2@0.6", "pgd50_l1@2"]].min(axis=1)).all()
    assert (tmp_path / "r" / "figures" / "unseen_attacks.png").stat().st_size > 5000
    assert "from natural" in (tmp_path / "r" / "unseen.md").read_text()
    assert 'id="unseen"' in (tmp_path / "r" / "index.html").read_text()
    board = pd.read_csv(tmp_path / "r" / "leaderboard.csv")
    assert (board.worst_case == board.pgd20).all()  # no ranking rests on them
    assert atbench("verify", tmp_path / "r") == 0
    capsys.readouterr()
    assert atbench(*words) == 0
    assert "everything in unseen is finished already" in capsys.readouterr().err
    part = next((tmp_path / "r").glob("evidence/pgd_at*/last/transfer_natural@0.15/part-00000.parquet"))
    before = part.read_bytes()
    part.unlink()
    assert atbench(*words) == 0
    before, after = pd.read_parquet(pd.io.common.BytesIO(before)), pd.read_parquet(part)
    pd.testing.assert_frame_equal(before.drop(columns="seconds"), after.drop(columns="seconds"))


def test_the_union_counts_an_image_only_where_it_holds_in_every_norm(tmp_path):
    write_suite(tmp_path, ["pgd_at", "msd", "avg_max"], images=100, evaluation=asking())
    for method in ("pgd_at", "msd", "avg_max"):
        name = write_card(tmp_path, method, comparison_class="A" if method == "pgd_at" else "E")
        write_evidence(tmp_path, name, np.full(100, 9.0), attacks=("clean",), **FEW)
        image = np.arange(100)
        attack_more(tmp_path, name, "pgd20", 0.15, image < 10)
        attack_more(tmp_path, name, "pgd20", 0.1, image < 5)
        attack_more(tmp_path, name, "pgd20_l2", 0.6, (image >= 5) & (image < 20))
        if method != "avg_max":
            attack_more(tmp_path, name, "pgd50_l1", 2.0, image >= (70 if method == "msd" else 90))
    table = summarise(tmp_path).unseen.set_index("method")
    assert (table.union["pgd_at"], table.union["msd"]) == (0.7, 0.5)
    assert np.isnan(table.union["avg_max"])  # one norm is missing
    assert table.index[0] == "pgd_at"
    assert (table.rank_low["msd"], pd.isna(table.rank_low["avg_max"])) == (1, True)
    assert table["pgd50_l1@2"]["pgd_at"] == pytest.approx(0.9)
    board = summarise(tmp_path).leaderboard.set_index("method")
    assert board.worst_case["msd"] == 0.9  # of Linf alone
    assert "ranked by that: atbench run unseen" in board.status_note["msd"]
    assert pd.isna(board.rank_low["msd"])


def test_a_report_without_such_attacks_has_neither_table_nor_figure(tmp_path):
    make_report(tmp_path, {"pgd_at": 0.28}, images=20, attacked=FEW)
    names = {path.name for path in build(tmp_path)}
    assert not {name for name in names if name.startswith("unseen")}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("clean", "clean"),
        ("pgd20@0.3", "Linf 0.3, PGD-20"),
        ("pgd50_l1@2", "L1 2, PGD-50 sparse"),
        ("autoattack_l2@0.6", "L2 0.6, AutoAttack"),
        ("transfer_pgd_at@0.15", "from pgd_at"),
    ],
)
def test_a_heading_names_norm_radius_and_attack(column, words):
    assert heading(column) == words


def test_pictures_that_fool_their_own_network_are_shown_to_another_and_the_first_success_counts():
    source, target, x = curved(seed=1), curved(seed=2), images()
    y = target(x).argmax(1)
    subject = Subject(target, ThreatModel("linf", 0.3), Evaluation())
    found = transferred(source, subject, x, y, torch.arange(len(x)))
    moved = found.adversarial - x
    assert moved.abs().max() <= 0.3 + 1e-6
    itself = transferred(target, subject, x, y, torch.arange(len(x)))
    fooled = [(target(one.adversarial).argmax(1) != y).sum() for one in (found, itself)]
    assert fooled[1] > fooled[0]
    assert (found.forward == 40).all()  # of the source: PGD-20 and CW-20


def test_the_sparse_attack_stays_in_its_ball_and_does_not_depend_on_the_batch():
    network, x = curved(), images()
    y = network(x).argmax(1)
    subject, index = Subject(network, ThreatModel("l1", 4.0), Evaluation()), torch.arange(len(x))
    whole = pgd50_l1(subject, x, y, index).adversarial
    assert ThreatModel("l1").distance(whole, x).max() <= 4.0 + 1e-4
    part = pgd50_l1(subject, x[3:5], y[3:5], index[3:5]).adversarial
    torch.testing.assert_close(part, whole[3:5], rtol=0, atol=1e-5)
    assert (network(whole).argmax(1) != y).any()


def test_autoattack_in_other_norms_runs_on_our_engine_where_the_suite_has_it(monkeypatch, tmp_path):
    from benchmark.unseen import UnseenTask

    one = plan(suite.load("unseen"))[0]
    radii_of = UnseenTask(one)._radii
    asked = Unseen(l2=[0.6], l1=[])
    assert radii_of(Evaluation(attacks=["pgd20"], unseen=asked)) == {"pgd20_l2": [0.6]}
    assert set(radii_of(Evaluation(attacks=["autoattack"], unseen=asked))) == {"pgd20_l2", "autoattack_l2"}


def test_an_attack_of_the_callers_own_leaves_verdicts_under_its_name():
    test = load("digits").test.take(torch.arange(5))
    settings = Evaluation(attacks=["mine"], epsilons=[0.1], ranked_at=[0.1])
    with pytest.raises(BadInput, match="no attack 'mine'"):
        evaluate(curved(), test, ThreatModel("linf", 0.1), settings)
    found = evaluate(
        curved(), test, ThreatModel("l1", 0.1), settings, attacks=["mine"], own={"mine": pgd50_l1}
    )  # fmt: skip
    assert set(found.attack) == {"mine"}


def test_radii_are_read_like_epsilons_and_mistakes_are_named():
    assert Unseen(l2=["128/255"]).l2 == [128 / 255]
    with pytest.raises(BadInput, match=r"evaluation\.unseen\.l1"):
        Unseen(l1=["far"])
    with pytest.raises(BadInput, match="every value once"):
        Unseen(transfer_from=["natural", "natural"])
    assert "unseen" not in suite.load("digits-common").as_plain()["evaluation"]
    assert [is_unseen(name) for name in ("pgd20", "pgd20_l2", "transfer_mart", "autoattack")] == [
        False,
        True,
        True,
        False,
    ]
