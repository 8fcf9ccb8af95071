"""atbench verify: an untouched report holds; one byte altered anywhere, or one forged verdict, is found and named."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from benchmark import suite
from benchmark.asking import _answers, asked_again
from benchmark.commands import _keep_suite
from benchmark.experiment import plan
from benchmark.report import build
from benchmark.results import evidence, manifest, pictures, survey
from benchmark.results.cards import read_cards
from benchmark.results.evidence import Part
from benchmark.results.verify import contradictions, differences
from benchmark.storage import locked
from benchmark.tasks import Places, Task
from benchmark.verification import Account, Sources
from tests.benchmark.make_report import FEW, make_report, radii

QUICK = {
    **{"recipe.epochs": 2, "dataset.train_images": 300, "dataset.validation_images": 20, "methods": {"natural": None}},
    **{"evaluation.attacks": ["pgd20"], "evaluation.epsilons": [0.1, 0.3], "evaluation.ranked_at": [0.1]},
    **{"evaluation.images": 30, "evaluation.batch_size": 20, "evaluation.save_adversarial": True},
}


@pytest.fixture(scope="module", autouse=True)
def _without_figures_and_most_of_the_survey():
    with pytest.MonkeyPatch.context() as patch:  # most of the time of a build, and not what is tested here
        patch.setattr("benchmark.report.folder.FIGURES", ())
        patch.setattr("benchmark.results.survey.table1", survey.table1().head(2).copy)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a trained network under ``checkpoints`` and its report, pictures and all."""
    folder = tmp_path_factory.mktemp("finished")
    trained(folder, QUICK)
    return folder


def trained(folder, changes):
    chosen = suite.load("quickstart", changes)
    places = Places(folder / "checkpoints", folder / "report")
    places.report.mkdir(exist_ok=True)
    _keep_suite(places.report, chosen)
    for experiment in plan(chosen):
        for attacks in ((), ("clean", "pgd20")):
            Task(experiment, attacks).perform(places, chosen.evaluation, lambda *_: None)
    build(places.report)


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it, to be harmed."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def jobs(folder, attack="pgd20", epsilon=0.3, checkpoint="last"):
    (path,) = (folder / "report" / "evidence").glob(f"*/{checkpoint}/{attack}@{epsilon}")
    return path


def settle(folder, *, tables=True):
    """Make tables and manifest anew, as someone would who wants the report to pass."""
    (folder / "report" / manifest.NAME).unlink()
    build(folder / "report") if tables else manifest.write(folder / "report")


def asked(folder):
    """What the networks of the report have to object to it."""
    report = folder / "report"
    cards = {card["experiment"]: card for card in read_cards(report).contents}
    return [str(one) for one in asked_again(report, cards, Sources(), Account(), lambda *_: None)]


def test_an_untouched_report_holds_wherever_it_is_moved_to(folder, atbench, capsys):
    assert atbench("verify", folder / "report") == 0
    said = capsys.readouterr().out
    assert "files: all have the SHA-256" in said
    assert "leaderboard.csv" in said
    assert "networks: 2 with the weights that were measured; all 180 clean predictions hold" in said
    assert "lie in ball and pixel range and are misread as told" in said
    assert "not checked" not in said
    assert f"all holds: {folder / 'report'}" in said


def test_one_byte_altered_in_any_file_is_found_and_the_file_named(folder, atbench, capsys):
    report, draws = folder / "report", np.random.default_rng(0)
    files = [path for path in report.rglob("*") if path.is_file() and not path.name.startswith(".")]
    kinds = {"".join(path.suffixes[-2:]) for path in files}
    assert {".parquet", ".pictures.npz", ".yaml", ".csv", ".md", ".tex", ".html", ".json"} <= kinds
    for path in files:
        before = path.read_bytes()
        for place in {0, len(before) - 1, int(draws.integers(len(before)))}:
            altered = bytearray(before)
            altered[place] ^= 1 << int(draws.integers(8))
            path.write_bytes(altered)
            assert atbench("verify", report) == 1, (path, place)
            assert f"does not hold: {path.relative_to(report).as_posix()}" in capsys.readouterr().err or (
                path.name == manifest.NAME
            )
        path.write_bytes(before)
    assert atbench("verify", report, "--tables") == 0


def test_one_byte_altered_in_the_weights_is_found(folder, atbench, capsys):
    (path,) = folder.glob("checkpoints/*/last.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert atbench("verify", folder / "report") == 1
    told = capsys.readouterr().err
    assert "does not hold: weights of natural-digits-s0-" in told
    assert "expected SHA-256" in told


def test_a_file_taken_away_or_added_to_the_evidence_is_found(folder, atbench, capsys):
    part = jobs(folder) / "part-00000.parquet"
    hidden = part.rename(folder / "hidden")
    assert atbench("verify", folder / "report") == 1
    assert "part-00000.parquet: expected a file with SHA-256" in capsys.readouterr().err
    hidden.rename(part)
    shutil.copy(part, part.with_name("part-00009.parquet"))
    assert atbench("verify", folder / "report") == 1
    assert "part-00009.parquet: expected a file that manifest.json records" in capsys.readouterr().err


def test_notes_of_ones_own_beside_a_report_are_nobodys_business(folder, atbench):
    (folder / "report" / "README.md").write_text("measured on a train\n")
    assert atbench("verify", folder / "report", "--tables") == 0


def forged(folder, change, number=0, **where):
    """Change the verdicts of a part by ``change(frame)``, and settle tables and manifest."""
    place = jobs(folder, **where)
    frame = pd.read_parquet(place / f"part-{number:05d}.parquet")
    found = change(frame)
    evidence.write_part(place, frame, number)
    settle(folder)
    return found


def row_of(frame, kind):
    picked = frame[(frame.by == "pgd20") if kind == "fooled" else ~frame.fooled]
    row = picked.index[0]
    return row, int(frame.loc[row, "index"])


def test_a_fooled_image_that_is_passed_off_as_robust_is_named(folder, atbench, capsys):
    def hold(frame):
        row, index = row_of(frame, "fooled")
        frame.loc[row, ["prediction", "fooled", "by", "margin"]] = (frame.loc[row, "label"], False, "", -1.0)
        return index

    index = forged(folder, hold)
    assert atbench("verify", folder / "report") == 1
    told = capsys.readouterr().err
    assert f"last, pgd20 at 0.3, image {index}: expected a picture of each fooled image" in told
    assert "found one of an image that is not fooled" in told


def test_a_fooled_image_without_a_picture_is_named(folder, atbench, capsys):
    def fool(frame):
        row, index = row_of(frame, "held")
        frame.loc[row, ["prediction", "fooled", "by", "margin"]] = (
            (frame.loc[row, "label"] + 1) % 10,
            True,
            "pgd20",
            1.0,
        )
        return index

    index = forged(folder, fool, epsilon=0.1)
    assert atbench("verify", folder / "report") == 1
    assert f"last, pgd20 at 0.1, image {index}: expected a picture" in capsys.readouterr().err


def test_verdicts_about_another_image_or_label_or_prediction_are_named(folder):
    def another_label(frame):
        frame.loc[0, ["label", "clean_prediction"]] = (3, 3)
        frame.loc[0, ["prediction", "fooled", "by", "margin"]] = (3, False, "", -1.0)

    def another_image(frame):
        frame.loc[0, "index"] = 1_000_000

    def another_clean_prediction(frame):
        row = frame.index[(frame.by == "") | (frame.by == "pgd20")][0]
        wrong = (frame.loc[row, "label"] + 1) % 10
        frame.loc[row, ["clean_prediction", "prediction", "fooled", "by", "margin"]] = (wrong, wrong, True, "clean", 1)

    def another_class(frame):
        row = frame.index[frame.by == "pgd20"][0]
        others = {*range(10)} - {frame.loc[row, "label"], frame.loc[row, "prediction"]}
        frame.loc[row, "prediction"] = min(others)

    path = jobs(folder) / "part-00000.parquet"
    before = pd.read_parquet(path)
    for change, says in (
        (another_label, "as in the test set, found label 3"),
        (another_image, "expected an image that was tested on, found none with index 1000000"),
        (another_clean_prediction, "for the test image, found class"),
        (another_class, "for its picture, found class"),
    ):
        frame = before.copy()
        change(frame)
        evidence.write_part(path.parent, frame, 0)
        assert says in asked(folder)[0], change
        assert ", last, pgd20 at 0.3, image " in asked(folder)[0]


def test_a_picture_that_does_not_fool_or_lies_outside_is_named(folder):
    path = pictures.beside(jobs(folder) / "part-00000.parquet")
    saved = pictures.read(path, 20, (1, 8, 8))
    assert saved.rounded.all()
    unmoved = saved.steps.copy()
    unmoved[1] = 0
    longer = saved.step.copy()
    longer[2] *= 1.01
    stray = np.full((1, 1, 8, 8), 1.5, "float32")
    first = np.arange(len(saved.index)) == 0
    exact = {"rounded": ~first, "steps": saved.steps[1:], "step": saved.step[1:], "exact": stray}
    for changes, row, says in (
        ({"steps": unmoved}, 1, "(its label)"),
        ({"step": longer}, 2, "expected a picture within 0.3 of its image (linf)"),
        (exact, 0, "expected a picture with pixels in [0, 1], found [1.5, 1.5]"),
    ):
        pictures.write(path, dataclasses.replace(saved, **changes))
        told = asked(folder)[0]
        assert f"last, pgd20 at 0.3, image {saved.index[row]}: " in told
        assert says in told


def test_a_truncated_picture_file_is_told_even_where_the_manifest_was_made_for_it(folder, atbench, capsys):
    path = pictures.beside(jobs(folder) / "part-00000.parquet")
    path.write_bytes(path.read_bytes()[:100])
    settle(folder, tables=False)
    assert atbench("verify", folder / "report") == 1
    assert "last, pgd20 at 0.3: expected a picture of each of" in capsys.readouterr().err


def test_a_figure_that_does_not_follow_from_the_verdicts_is_named_with_its_line(folder, atbench, capsys):
    report = folder / "report"
    for name, column in (("leaderboard.csv", "worst_case_low"), ("accuracy.csv", "high")):
        before = (report / name).read_bytes()
        table = pd.read_csv(report / name, dtype=str, keep_default_na=False)
        table.loc[1, column] = "0.97"
        table.to_csv(report / name, index=False)
        manifest.write(report)
        assert atbench("verify", report, "--tables") == 1
        told = capsys.readouterr().err
        assert f"does not hold: {name}, line 3 (" in told
        assert f"), {column}: expected '" in told
        assert "found '0.97'" in told
        (report / name).write_bytes(before)


def test_tables_made_anew_do_not_hide_that_a_part_was_altered(folder, atbench, capsys):
    part = jobs(folder) / "part-00000.parquet"
    frame = pd.read_parquet(part)
    frame["seconds"] += 1
    evidence.write_part(part.parent, frame, 0)
    assert atbench("report", folder / "report") == 0
    assert atbench("verify", folder / "report") == 1
    assert f"does not hold: {part.relative_to(folder / 'report').as_posix()}: expected SHA" in capsys.readouterr().err


def test_a_batch_that_was_deleted_is_repeated_and_recorded_anew(folder, atbench):
    part = jobs(folder) / "part-00000.parquet"
    part.unlink()
    assert atbench("verify", folder / "report") == 1
    manifest.forget_missing(folder / "report")  # as `atbench run` does before it attacks
    trained(folder, QUICK)
    assert part.is_file()
    assert atbench("verify", folder / "report") == 0


def test_a_report_may_go_without_its_page_but_not_with_another(folder, atbench, capsys):
    page = folder / "report" / "index.html"
    page.write_bytes(page.read_bytes() + b" ")
    assert atbench("verify", folder / "report") == 1
    assert "does not hold: index.html" in capsys.readouterr().err
    page.unlink()
    assert atbench("verify", folder / "report") == 0


def test_the_folder_of_a_killed_run_is_told_from_an_altered_one(folder, atbench, capsys):
    report = folder / "report"
    part = jobs(folder) / "part-00001.parquet"
    hidden = part.rename(folder / "hidden")
    manifest.forget_missing(report)
    journal = jobs(folder) / "part-00001.unfinished" / "000000.square.safetensors"
    journal.parent.mkdir()
    journal.write_bytes(b"what the attack has so far, and nobody rests on")
    hidden.rename(part)  # written, and then the run was killed
    assert atbench("verify", report) == 1
    assert "`atbench report` records what a kill left" in capsys.readouterr().err
    assert atbench("report", report) == 0
    assert "unfinished" not in (report / manifest.NAME).read_text()
    assert atbench("verify", report) == 0


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "--checkpoints FOLDER says where they lie"),
        (lambda folder: (folder / "report" / manifest.NAME).unlink(), "there is no"),
        (lambda folder: shutil.rmtree(folder / "report" / "evidence"), "expected evidence, found no finished part"),
        (lambda folder: shutil.rmtree(folder / "report"), "expected a report folder, found nothing at"),
    ],
)
def test_what_is_needed_and_not_there_is_exit_code_2_and_a_sentence(harm, says, folder, atbench, capsys):
    harm(folder)
    assert atbench("verify", folder / "report") == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_weights_that_were_moved_are_found_where_one_says(folder, atbench, capsys):
    (folder / "checkpoints").rename(folder / "elsewhere")
    assert atbench("verify", folder / "report") == 2
    assert "tables: leaderboard.csv" in capsys.readouterr().out  # what could be checked was
    assert atbench("verify", folder / "report", "--checkpoints", folder / "elsewhere") == 0
    assert atbench("verify", folder / "report", "--tables") == 0
    assert "not checked: what the networks say" in capsys.readouterr().out


def test_a_report_that_is_being_written_is_left_alone(folder, atbench, capsys):
    with locked(folder / "report"):
        assert atbench("verify", folder / "report") == 2
    assert "another atbench is writing to" in capsys.readouterr().err


def test_of_a_report_without_pictures_all_else_is_checked_and_it_is_said(tmp_path, atbench, capsys):
    trained(tmp_path, QUICK | {"evaluation.save_adversarial": False, "recipe.epochs": 1})
    report = tmp_path / "report"
    assert "save_adversarial" not in (report / "suite.yaml").read_text()
    assert atbench("verify", report) == 0
    said = capsys.readouterr().out
    assert "all 180 clean predictions hold" in said
    assert "their pictures were not saved (--save-adversarial)" in said
    (report / manifest.NAME).unlink()  # as of a report made before there was one
    assert atbench("verify", report) == 0
    assert "not checked: the files' SHA-256" in capsys.readouterr().out


def test_a_report_of_several_seeds_and_attacks_holds_in_its_tables(tmp_path, atbench, capsys):
    report = make_report(tmp_path / "made up", {"pgd_at": 0.28, "trades": 0.27}, (0, 1), attacked=FEW)
    for path in report.rglob("*.parquet"):
        method, seed = path.parents[2].name.split("-")
        frame = pd.read_parquet(path)
        misread = radii({"pgd_at": 0.28, "trades": 0.27}[method], 200, int(seed))[frame["index"]] < 0  # as made up
        frame.loc[misread, "clean_prediction"] = frame.prediction
        frame.loc[misread, "by"] = "clean"
        frame["margin"] = np.where(frame.fooled, 0.5, -0.5)
        evidence.write_part(path.parent, frame, int(path.stem.removeprefix("part-")))
    build(report)
    assert atbench("verify", report, "--tables") == 0
    assert "comparisons.csv" in capsys.readouterr().out


def test_verdicts_that_contradict_themselves_are_named():
    frame = pd.DataFrame(
        {
            "experiment": "a",
            "checkpoint": "last",
            "attack": "pgd20",
            "epsilon": 0.1,
            "index": [4, 7],
            "label": 1,
            "clean_prediction": 1,
            "prediction": [1, 2],
            "fooled": [False, True],
            "by": ["", "pgd20"],
            "margin": [-1.0, 1.0],
        }
    )
    assert not list(contradictions(frame))
    for column, value in {"fooled": False, "by": "", "clean_prediction": 0, "margin": -1.0, "prediction": 1}.items():
        wrong = frame.copy()
        wrong.loc[1, column] = value
        found = list(contradictions(wrong))
        assert found, column
        assert all(one.where == "a, last, pgd20 at 0.1, image 7" for one in found)


def test_figures_may_differ_in_their_last_digits_alone(tmp_path):
    (tmp_path / "t.csv").write_text("method,low\na,0.123456789012\nb,\n")
    assert not list(differences(tmp_path, "t.csv", "method,low\na,0.123456789013\nb,\n"))
    (found,) = differences(tmp_path, "t.csv", "method,low\na,0.123457\nb,\n")
    assert found.where == "t.csv, line 2 (a), low"
    assert list(differences(tmp_path, "t.csv", "method,low\na,0.123456789012\nb,0.5\n"))
    assert list(differences(tmp_path, "t.csv", "method,low\na,0.123456789012\n"))


def test_an_answer_on_the_boundary_is_listed_and_held_against_nobody():
    part, account = Part(Path("p"), "a", "last", "pgd20", 0.1), Account()
    frame = pd.DataFrame({"index": [5, 6, 7], "label": [0, 0, 0], "prediction": [1, 1, 99]})
    logits = torch.tensor([[1.0, 1.0 - 5e-6, 0.0], [1.0, 0.99, 0.0], [1.0, 0.0, 0.0]])
    found = [one.where for one in _answers(part, frame, logits, "prediction", "its picture", account)]
    assert found == ["a, last, pgd20 at 0.1, image 6", "a, last, pgd20 at 0.1, image 7"]
    (line,) = account.boundary
    assert line.startswith("a, last, pgd20 at 0.1, image 5: its picture is 1 or 0, their logits differ by less than")


NETWORK = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"


@pytest.fixture
def evaluated(tmp_path, monkeypatch, atbench):
    """A folder with a model of one's own and the report of its evaluation."""
    import sys

    from benchmark.storage import save_weights

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    save_weights(Path("w.safetensors"), network.state_dict())
    Path("net.py").write_text(NETWORK)
    plain = ["evaluate", "--model", "net.py:build", "--weights", "w.safetensors", "--dataset", "digits"]
    more = ["--images", 20, "--epsilon", "0.1", "--attacks", "pgd20", "--output", "report"]
    assert atbench(*plain, *more, "--save-adversarial") == 0
    return [*plain, *more]


def test_the_evaluation_of_a_model_of_ones_own_is_rechecked_from_its_card(evaluated, atbench, tmp_path, monkeypatch):
    card = yaml.safe_load(Path("report/experiments/w.yaml").read_text())
    assert card["code"]["network"]["path"] == str(tmp_path / "net.py")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert atbench("verify", "../report") == 0


def test_weights_and_code_of_ones_own_may_be_moved_but_not_changed(evaluated, atbench, capsys):
    Path("code").mkdir()
    Path("net.py").rename("code/net.py")
    Path("w.safetensors").rename("v.safetensors")
    assert atbench("verify", "report") == 2
    assert "--weights FILE says where they lie" in capsys.readouterr().err
    assert atbench("verify", "report", "--weights", "v.safetensors") == 2
    assert "--code FOLDER says where it lies" in capsys.readouterr().err
    words = ["verify", "report", "--weights", "v.safetensors", "--code", "code"]
    assert atbench(*words) == 0
    Path("code/net.py").write_text(NETWORK + "# but for this\n")
    assert atbench(*words) == 2
    assert "is not what the report was measured with" in capsys.readouterr().err


def test_code_that_came_inside_a_report_is_not_run_unasked(evaluated, atbench, capsys):
    path = Path("report/experiments/w.yaml")
    card = yaml.safe_load(path.read_text())
    Path("net.py").rename("report/net.py")
    card["code"]["network"]["path"] = str(Path("report/net.py").absolute())
    path.write_text(yaml.safe_dump(card))
    Path("report", manifest.NAME).unlink()
    build(Path("report"))
    assert atbench("verify", "report") == 2
    assert "came with the report: read it, then give --code" in capsys.readouterr().err
    assert atbench("verify", "report", "--code", "report") == 0


def test_pictures_cannot_be_asked_for_or_left_out_half_way(evaluated, atbench, capsys):
    assert atbench(*evaluated) == 2
    assert "holds verdicts measured with save_adversarial True, now it is None" in capsys.readouterr().err
    assert atbench(*evaluated, "--save-adversarial") == 0
