"""Methods that may reject: what they are attacked with, their threshold, and the figures that follow from both."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from attacks import BadInput, ThreatModel
from benchmark import rejection, suite
from benchmark.data import load
from benchmark.evaluation import evaluate, jobs
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import plan
from benchmark.fixed_steps import Subject
from benchmark.report import build
from benchmark.report.rejection import REJECTION, Rejecting
from benchmark.report.summary import summarise
from benchmark.results import evidence
from benchmark.results.rejection import AT_THRESHOLD, CONFIDENCE, Threshold, read_thresholds, threshold_path
from benchmark.results.verify import contradictions
from benchmark.storage import write_yaml
from benchmark.tasks import Places, Task, perform
from methods.rejection import Answers, judge, threshold
from tests.benchmark.test_evaluation import linear, random_images

SMALL = {
    "methods": {"natural": None, "ccat": None},
    "inner_steps": 2,
    "recipe.epochs": 4,
    "dataset.train_images": 400,
    "dataset.validation_images": 60,
    "evaluation.images": 40,
    "evaluation.attacks": ["pgd20"],
    "evaluation.epsilons": [0.1, 0.15],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A natural and a ccat network, attacked, in a report folder; the plan, the places and the settings."""
    folder = tmp_path_factory.mktemp("rejection")
    whole = suite.load("quickstart", SMALL)
    places, settings = Places(folder / "checkpoints", folder / "report"), whole.evaluation
    write_yaml(places.report / "suite.yaml", whole.as_plain())
    experiments = plan(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection, "STEPS", 12)
        for one in experiments:
            attacks = ("clean", *rejection.evaluation_of(one, settings).attacks)
            for task in (Task(one), Task(one, attacks)):
                perform(task, places, settings, lambda *news: None)
    return experiments, places, settings


def test_the_confidence_of_methods_that_may_reject_is_attacked_and_of_no_others(ran):
    (natural, ccat), places, settings = ran
    assert rejection.evaluation_of(natural, settings) == settings
    extended = rejection.evaluation_of(ccat, settings)
    assert extended == replace(settings, attacks=["pgd20", CONFIDENCE])
    assert rejection.evaluation_of(ccat, extended) == extended
    nothing = replace(settings, attacks=[])
    assert rejection.evaluation_of(ccat, nothing) == nothing
    asked = [job for job in jobs(extended, ranked=True) if job.attack == CONFIDENCE]
    assert [job.epsilon for job in asked] == [0.1, 0.15]
    assert not [job for job in jobs(extended, ranked=False) if job.attack == CONFIDENCE]
    found = evidence.read(places.report)
    attacked = found[found.attack == CONFIDENCE]
    assert set(attacked.experiment) == {ccat.name}
    assert set(attacked.checkpoint) == {"last"}
    assert not list(contradictions(found))


def test_the_threshold_follows_from_held_out_training_images_alone(ran):
    (_, ccat), places, _ = ran
    found = read_thresholds(places.report)
    assert list(found) == [(ccat.name, "last")]
    held_out = load("digits", train_images=400, validation_images=60).validation
    from benchmark.storage import load_weights

    network = ccat.build_method(ccat.build_network()).classifier().eval()
    network.load_state_dict(load_weights(places.checkpoints / ccat.name / "last.safetensors"))
    with torch.no_grad():
        highest, predicted = network(held_out.pixels()).softmax(1).max(1)
    clean = Answers((predicted != held_out.labels).numpy(), highest.numpy())
    threshold_ = found[ccat.name, "last"]
    assert threshold_.tau == pytest.approx(threshold(clean), abs=1e-6)
    assert (threshold_.images, threshold_.right) == (60, int((predicted == held_out.labels).sum()))
    assert (threshold_.true_positives, threshold_.classes) == (0.99, 10)


def test_work_that_is_done_is_not_done_again(ran, monkeypatch):
    (_, ccat), places, settings = ran
    monkeypatch.setattr(rejection, "STEPS", None)  # whoever attacked would fail
    before = threshold_path(places.report, ccat.name, "last").stat().st_mtime_ns
    perform(Task(ccat, (CONFIDENCE,)), places, settings, lambda *news: None)
    assert threshold_path(places.report, ccat.name, "last").stat().st_mtime_ns == before


def test_a_reports_figures_with_rejection_follow_from_its_verdicts(ran):
    (_, ccat), places, _ = ran
    summary, found = summarise(places.report), evidence.read(places.report)
    tau = read_thresholds(places.report)[ccat.name, "last"].tau
    own = found[(found.experiment == ccat.name) & (found.checkpoint == "last")]
    clean = own[own.attack == "clean"].sort_values("index")
    plain = Answers(clean.fooled.to_numpy(), clean.confidence.to_numpy())
    assert list(summary.rejection.epsilon) == [0.1, 0.15]
    board = summary.leaderboard.set_index(["method", "checkpoint", "epsilon"])
    for line in summary.rejection.to_dict("records"):
        wrong, confidence = [], []
        for index in clean["index"]:
            rows = own[(own["index"] == index) & (own.epsilon > 0) & (own.epsilon <= line["epsilon"])]
            errors = rows[rows.fooled]
            wrong.append(len(errors) > 0)
            confidence.append((errors if len(errors) else rows).confidence.max())
        judged = judge(plain, Answers(np.array(wrong), np.array(confidence)), tau)
        assert line["robust_error"] == pytest.approx(judged.error)
        assert (line["accepted"], line["images"]) == (judged.accepted.sum(), 40)
        right = plain.confidence[~plain.wrong]
        assert line["true_positive_rate"] == pytest.approx((right >= tau).mean())
        pgd = own[(own.attack == "pgd20") & (own.epsilon == line["epsilon"])]
        assert line["no_reject_pgd20"] == pytest.approx(1 - pgd.fooled.mean())
        assert np.isnan(line["no_reject_autoattack"])
    of_ccat = board.loc[("ccat", "last", 0.15)]
    assert of_ccat[AT_THRESHOLD] == pytest.approx(1 - line["robust_error"])
    assert of_ccat[f"{AT_THRESHOLD}_low"] <= of_ccat[AT_THRESHOLD] <= of_ccat[f"{AT_THRESHOLD}_high"]
    assert of_ccat.worst_case <= 1 - own[(own.attack == CONFIDENCE) & (own.epsilon == 0.15)].fooled.mean()
    assert np.isnan(board.loc[("natural", "last", 0.15)][AT_THRESHOLD])
    assert np.isnan(board.loc[("ccat", "best", 0.15)][AT_THRESHOLD])
    accuracy = summary.accuracy[summary.accuracy.attack == AT_THRESHOLD]
    assert list(accuracy.images) == list(summary.rejection.accepted)


def test_the_report_shows_the_rejection_column_beside_the_plain_figures(ran, monkeypatch):
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())
    _, places, _ = ran
    build(places.report)
    table = pd.read_csv(places.report / "rejection.csv")
    assert set(REJECTION) <= set(table.columns)
    heading = next(line for line in (places.report / "leaderboard.md").read_text().splitlines() if "PGD-20" in line)
    assert "with rejection" in heading
    assert "attack on confidence" in heading
    assert "without rejection (no reject)" in (places.report / "leaderboard.md").read_text()
    assert "no reject: PGD-20" in (places.report / "rejection.md").read_text()
    page = (places.report / "index.html").read_text()
    assert "With rejection" in page
    assert "(meant: 99)" in page


def test_a_report_without_thresholds_has_no_such_table(tmp_path):
    from tests.benchmark.make_report import FEW, make_report

    report = make_report(tmp_path, {"pgd_at": 0.28}, images=20, attacked=FEW)
    assert summarise(report).rejection.empty
    assert Rejecting(report).table.empty
    assert not (report / "rejection.csv").exists()


@pytest.mark.parametrize(("tau", "classes", "mark"), [(0.19, 10, True), (0.2, 10, False), (0.9, 2, True)])
def test_a_threshold_near_that_of_guessing_is_marked_red(tau, classes, mark):
    told = Threshold(tau, 0.99, 200, 195, classes).mark
    assert told == ("red: threshold near chance" if mark else "")


def test_a_damaged_threshold_is_named(tmp_path):
    path = threshold_path(tmp_path, "one", "last")
    write_yaml(path, {"tau": 0.4})
    with pytest.raises(BadInput, match=r"expected a threshold, found something else: .*threshold.yaml; delete it"):
        read_thresholds(tmp_path)
    path.write_text(yaml.safe_dump({"tau": 0.4, "colour": 1}))
    with pytest.raises(BadInput, match="expected a threshold"):
        read_thresholds(tmp_path)


# The attack


class Unsure(nn.Module):
    """Reads grey as class 1 with little confidence; brighter pixels make it sure of 1, darker ones of 0."""

    def forward(self, x):
        bright = 40 * (x.flatten(1).mean(1) - 0.5) + 0.4
        return torch.stack([-bright, bright, torch.full_like(bright, -9)], 1)


def test_an_image_misread_as_it_stands_is_attacked_too_for_it_may_have_been_refused(monkeypatch):
    monkeypatch.setattr(rejection, "STEPS", 10)
    images = random_images(4, low=127, high=129, classes=1)  # label 0, read as 1
    settings = Evaluation(epsilons=[0.1], ranked_at=[0.1], attacks=["pgd20", CONFIDENCE], batch_size=4)
    frame = evaluate(Unsure(), images, ThreatModel("linf", 0.1), settings)
    clean, attacked, pgd = (frame[frame.attack == name] for name in ("clean", CONFIDENCE, "pgd20"))
    assert clean.fooled.all()
    assert set(attacked.by) == {"clean"}
    assert (attacked.confidence > 0.99).all()
    assert (clean.confidence < 0.75).all()
    np.testing.assert_allclose(pgd.confidence, clean.confidence)  # an ordinary attack leaves it as it is
    assert not list(contradictions(frame.assign(experiment="one", checkpoint="last")))


def test_restarts_find_no_less_than_the_start_from_the_image_and_draws_are_keyed(monkeypatch):
    monkeypatch.setattr(rejection, "STEPS", 5)
    images, network = random_images(6), linear()
    x, y, index = images.pixels(), images.labels, images.index
    subject = Subject(network, ThreatModel("linf", 0.05), Evaluation())
    whole = rejection.confidence(subject, x, y, index)
    part = rejection.confidence(subject, x[2:4], y[2:4], index[2:4])
    torch.testing.assert_close(whole.adversarial[2:4], part.adversarial)
    assert set(whole.by) == {CONFIDENCE}
    per_image = 3 * (2 * 5 + 1) + 2
    assert (whole.forward.tolist(), whole.backward.tolist()) == ([per_image] * 6, [3 * 5] * 6)
    monkeypatch.setattr(rejection, "RESTARTS", 1)
    single = rejection.confidence(subject, x, y, index)
    from attacks.objectives import wrong_confidence_with

    with torch.no_grad():
        values = [wrong_confidence_with(y)(network(found.adversarial)) for found in (whole, single)]
    assert (values[0] >= values[1] - 1e-6).all()
