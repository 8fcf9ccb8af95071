"""Saved pictures are looked at once an evaluation is through, again where they changed, and what was found is kept."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmark.credibility.pictures import read_saved
from benchmark.data import load
from benchmark.report import build
from benchmark.results import evidence, manifest, pictures
from benchmark.results.pictures import Pictures
from benchmark.storage import save_weights
from tests.benchmark.test_own_model import LINEAR, words

MODEL = words("--save-adversarial", "--epsilon", 0.3, "--images", 100, "--batch-size", 50)
FOUND = Path("report/credibility/w/last.saved.json")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())
    monkeypatch.setattr("benchmark.credibility.run.CHEAP", ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    save_weights(Path("w.safetensors"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict())
    Path("net.py").write_text(LINEAR)


def line(report="report"):
    return pd.read_csv(f"{report}/credibility.csv").set_index("check").loc["saved pictures"]


def spoil():
    """Put the test image in place of the first picture that was saved."""
    path = min(Path("report/evidence").rglob("pgd20@0.3/*.pictures.npz"))
    saved = pictures.read(path, 50, (1, 8, 8))
    assert saved.rounded[0]
    saved.steps[0] = 0
    pictures.write(path, saved)
    return path


def test_pictures_of_an_evaluation_are_looked_at_once_and_anew_when_they_change(atbench):
    assert atbench(*MODEL) == 0
    assert (line().colour, line().value) == ("green", 0)
    assert line().images == len(list(kept()))
    first = FOUND.stat().st_mtime_ns
    assert atbench(*MODEL) == 0
    assert FOUND.stat().st_mtime_ns == first
    spoil()
    assert atbench(*MODEL) == 0
    assert (line().colour, line().note) == ("red", "1 of pgd20 at 0.3")
    assert "saved pictures" in pd.read_csv("report/leaderboard.csv").credibility[0]


def kept():
    for path in Path("report/evidence").rglob("*.pictures.npz"):
        yield from pictures.read(path, 50, (1, 8, 8)).index


def test_damaged_pictures_are_told_as_a_check_that_failed(atbench):
    assert atbench(*MODEL) == 0
    path = spoil()
    path.write_bytes(path.read_bytes()[:-40])
    assert atbench(*MODEL) == 0
    assert line().colour == "amber"
    assert "damaged" in line().note


def test_where_no_picture_was_saved_the_check_says_so(atbench):
    assert atbench(*words()) == 0
    assert (line().colour, line().note) == ("not applicable", "no pictures were saved")
    assert not FOUND.exists()


def test_pictures_are_unfolded_a_few_at_a_time(atbench, monkeypatch):
    assert atbench(*MODEL) == 0
    unfolded = []
    whole = Pictures.of
    monkeypatch.setattr(Pictures, "of", lambda self, x: unfolded.append(len(x)) or whole(self, x))
    every = list(read_saved(evidence.parts_of(Path("report"), "w", "last"), load("digits").test, size=2))
    assert max(unfolded) == 2
    assert sum(len(one.labels) for one in every) == len(list(kept()))


def test_some_rows_of_pictures_are_the_same_pictures():
    draws = np.random.default_rng(0)
    x = draws.random((9, 1, 4, 4), dtype=np.float32)
    rounded = draws.random(9) < 0.5
    steps = draws.integers(-127, 127, (rounded.sum(), 1, 4, 4)).astype("int8")
    step = np.full(rounded.sum(), 0.01, np.float32)
    saved = Pictures(np.arange(9, dtype=np.int32), rounded, steps, step, x[~rounded])
    for start in range(9):
        some = saved.rows(start, start + 4).of(x[start : start + 4])
        np.testing.assert_array_equal(some, saved.of(x)[start : start + 4])


def test_an_altered_finding_is_not_passed_over_because_the_tables_were_made_anew(atbench, capsys):
    assert atbench(*MODEL) == 0
    FOUND.write_text(FOUND.read_text().replace('"value": 0.0', '"value": 0.5'))
    assert atbench("verify", "report") == 1
    assert "does not hold: credibility/w/last.saved.json" in capsys.readouterr().err
    build(Path("report"))
    assert atbench("verify", "report") == 1
    assert "does not hold: credibility/w/last.saved.json" in capsys.readouterr().err
    FOUND.unlink()
    assert atbench(*MODEL) == 0
    assert atbench("verify", "report") == 0


def test_marks_are_recomputed_from_what_was_found(atbench, capsys):
    assert atbench(*MODEL) == 0
    board = Path("report/leaderboard.csv")
    (mark,) = pd.read_csv(board).credibility
    board.write_text(board.read_text().replace(mark, "red: nothing"))
    Path("report/manifest.json").unlink()
    manifest.write(Path("report"))
    assert atbench("verify", "report") == 1
    assert "leaderboard.csv, line 2 (A w last 0.3), credibility" in capsys.readouterr().err
    build(Path("report"))
    table = Path("report/credibility.csv")
    table.write_text(table.read_text().replace("green", "red", 1))
    Path("report/manifest.json").unlink()
    manifest.write(Path("report"))
    assert atbench("verify", "report") == 1
    assert "credibility.csv, line" in capsys.readouterr().err


def test_a_network_is_not_probed_by_its_saved_pictures_alone(atbench):
    assert atbench(*MODEL) == 0
    Path("report/credibility/w/last.json").unlink()
    build(Path("report"))
    assert pd.read_csv("report/leaderboard.csv").credibility[0].endswith("not probed")
