"""Black-box figures: which networks the pictures are made on, how, to whom they are shown, and what rests on them."""

import pandas as pd
import pytest
import torch

from attacks import BadInput, ThreatModel, cross_entropy_with
from attacks.pgd import fgsm
from benchmark import suite
from benchmark.evaluation import evaluate
from benchmark.evaluation_settings import Evaluation, Surrogate
from benchmark.experiment import plan
from benchmark.fixed_steps import Subject
from benchmark.results import evidence
from benchmark.results.surrogate import SURROGATE
from benchmark.results.worst_case import WORST_CASE, with_worst_case
from benchmark.storage import read_yaml
from benchmark.surrogate import STEPS, shown, surrogates
from methods.ensemble.members import Ensemble
from tests.methods.tools import images, network

SMALL = {
    "recipe.epochs": 1,
    "dataset.train_images": 64,
    "dataset.validation_images": 20,
    "evaluation.images": 20,
    "evaluation.attacks": ["pgd20"],
    "evaluation.epsilons": [0.1, 0.15],
    "evaluation.ranked_at": [0.15],
    "inner_steps": 1,
}


def subject(epsilon=0.1):
    return Subject(network(seed=9), ThreatModel("linf", epsilon), Evaluation())


def test_every_name_of_the_evidence_has_its_steps():
    assert tuple(STEPS) == SURROGATE
    assert Surrogate(attacks=["fgsm", "pgd20", "pgd30"]).names == list(SURROGATE)
    assert suite.load("digits-common").evaluation.surrogate.names == list(SURROGATE)


def test_pictures_are_made_on_the_surrogate_whatever_the_network_that_sees_them():
    x, y = images()
    surrogate = Ensemble([network(seed=1), network(seed=2)]).eval()
    for name in SURROGATE:
        first, other = (
            shown(
                surrogate,
                name,
                Subject(network(seed=s), ThreatModel("linf", 0.1), Evaluation()),
                x,
                y,
                y,
            )
            for s in (3, 4)
        )
        assert torch.equal(first.adversarial, other.adversarial)
        assert (first.adversarial - x).abs().max() <= 0.1 + 1e-6
        assert set(first.by) == {name}
        assert first.forward[0].item() == 2 * STEPS[name].number  # of two networks


def test_fgsm_is_one_step_of_epsilon_and_the_others_climb_in_steps_of_their_own():
    x, y = images()
    surrogate = network(seed=1).eval()
    found = shown(surrogate, "surrogate_fgsm", subject(), x, y, torch.arange(24)).adversarial
    assert torch.equal(found, fgsm(surrogate, x, y, ThreatModel("linf", 0.1)))
    climb = cross_entropy_with(y)
    losses = [climb(surrogate(shown(surrogate, name, subject(), x, y, y).adversarial)).mean() for name in SURROGATE]
    assert losses[0] < losses[1]
    assert [(STEPS[name].number, STEPS[name].length) for name in SURROGATE] == [
        (1, "epsilon"),
        (20, "epsilon/4"),
        (30, "epsilon/10"),
    ]


@pytest.mark.parametrize(
    ("seeds", "networks", "expected"),
    [([0], 1, {0: [1]}), ([0], 3, {0: [1, 2, 3]}), ([0, 1, 2], 1, {0: [1, 2], 1: [0, 2]}), ([5, 2], 2, {5: [2, 6]})],
)
def test_a_surrogate_is_natural_training_with_the_suites_other_seeds_then_with_further_ones(seeds, networks, expected):
    changes = {"methods": {"gal": None}, "seeds": seeds, "evaluation.surrogate.networks": networks}
    whole = suite.load("digits-common", changes)
    for one in plan(whole):
        found = surrogates(one, whole)
        if one.seed in expected:
            assert [other.seed for other in found] == expected[one.seed]
        assert {other.method for other in found} == {"natural"}
        assert one.seed not in [other.seed for other in found]
    rows = plan(suite.load("digits-common", changes | {"methods": {"natural": None}}))
    natural = {one.seed: one.name for one in rows}
    assert all(other.name == natural.get(other.seed, other.name) for other in found)  # trained once, for both


def test_a_run_shows_them_to_ensembles_and_ranks_by_none_of_them(atbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = ["run", "digits-common", "--methods", "natural", "gal", "--output", "report", *sets]
    assert atbench(*command) == 0
    every = [read_yaml(path) for path in (tmp_path / "report/experiments").glob("*.yaml")]
    cards = {card["experiment"]: card for card in every}
    assert sorted(card["method"] for card in cards.values()) == ["gal", "natural"]
    assert len(list((tmp_path / "checkpoints").glob("natural-*"))) == 2  # the surrogate is no row
    found = evidence.read(tmp_path / "report", ["fooled", "carried"])
    told = found[found.attack.isin(SURROGATE)]
    assert {cards[name]["method"] for name in told.experiment.unique()} == {"gal"}
    assert set(told.checkpoint) == {"last"}
    assert set(told.attack) == set(SURROGATE)
    assert sorted(told.epsilon.unique()) == [0.1, 0.15]
    board = pd.read_csv(tmp_path / "report/leaderboard.csv").query("checkpoint == 'last'").set_index("method")
    assert board.loc["gal", list(SURROGATE)].notna().all()
    assert board.loc["natural", list(SURROGATE)].isna().all()
    text = (tmp_path / "report/leaderboard.md").read_text()
    assert "PGD-30 of a surrogate" in text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "report/evidence").rglob("*.parquet")}
    assert atbench(*command) == 0  # nothing is done twice
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "report/evidence").rglob("*.parquet")}


def test_no_worst_case_holds_them():
    rows = [("clean", 0.0, [False, False]), ("pgd20", 0.1, [True, False]), ("surrogate_pgd30", 0.1, [False, True])]
    frame = pd.concat(
        pd.DataFrame(
            {
                "experiment": "one",
                "checkpoint": "last",
                "attack": attack,
                "epsilon": epsilon,
                "index": [0, 1],
                "fooled": fooled,
                "carried": False,
            }
        )
        for attack, epsilon, fooled in rows
    )
    joined = with_worst_case(frame)
    assert joined[joined.attack == WORST_CASE].fooled.tolist() == [True, False]


def test_attacks_of_the_callers_own_stand_beside_the_protocols():
    from benchmark.data import load

    tests = load("digits").test.take(torch.arange(4))
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    settings = Evaluation(attacks=["mine"], epsilons=[0.1], ranked_at=[0.1], batch_size=4)
    with pytest.raises(BadInput, match="there is no attack 'mine'"):
        evaluate(body, tests, ThreatModel("linf", 0.1), settings)
    own = {"mine": lambda subject, x, y, index: shown(body, "surrogate_fgsm", subject, x, y, index)}
    assert set(evaluate(body, tests, ThreatModel("linf", 0.1), settings, own=own).attack) == {"clean", "mine"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"evaluation.surrogate.networks": 0}, "evaluation.surrogate.networks is 1 or more, but found 0"),
        ({"evaluation.surrogate.attacks": ["fgsm", "fgsm"]}, "evaluation.surrogate.attacks holds every value once"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, says):
    with pytest.raises(BadInput, match=says):
        suite.load("digits-common", change)


def test_a_suite_without_a_surrogate_is_written_out_as_ever():
    plain = suite.load("digits-common", {"evaluation.surrogate.attacks": []}).as_plain()
    assert "surrogate" not in plain["evaluation"]
