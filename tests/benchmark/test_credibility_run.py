"""Probes as part of `atbench run` and `atbench evaluate`: made once, kept, made anew where more is asked."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmark.storage import save_weights
from tests.benchmark.test_own_model import LINEAR, words

SMALL = [
    *("recipe.epochs=2", "dataset.train_images=160", "dataset.validation_images=30", "inner_steps=2"),
    *("evaluation.images=6", "evaluation.attacks=[pgd20]", "evaluation.epsilons=[0.1]", "evaluation.ranked_at=[0.1]"),
    "evaluation.checkpoints=[last]",
]

FEW_WORDS = words("--images", 6)  # the thorough probes cost seconds an image


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    save_weights(Path("w.safetensors"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict())
    Path("net.py").write_text(LINEAR)


def probes():
    return {path: path.stat().st_mtime_ns for path in Path("report/credibility").rglob("*.json")}


def test_a_model_of_ones_own_is_probed_once_and_again_where_more_is_asked(atbench):
    assert atbench(*FEW_WORDS) == 0
    first = probes()
    assert [path.name for path in first] == ["last.json"]
    (board,) = pd.read_csv("report/leaderboard.csv").to_dict("records")
    assert board["credibility"].split(":")[0] in ("green", "amber")
    assert atbench(*FEW_WORDS) == 0
    assert probes() == first
    assert atbench(*FEW_WORDS, "--credibility", "full") == 0
    assert probes() != first
    found = json.loads(Path("report/credibility/w/last.json").read_text())
    assert found["depth"] == "full"
    assert {"restarts", "Square against white-box"} <= {check["name"] for check in found["checks"]}
    full = probes()
    assert atbench(*FEW_WORDS) == 0
    assert probes() == full
    table = pd.read_csv("report/credibility.csv").set_index("check")
    assert table.note["transfer"] == "no other trained model in the report"


def test_a_model_that_hides_its_gradient_is_red_in_the_table_of_its_evaluation(atbench):
    hidden = "class Round(nn.Module):\n    def forward(self, x):\n        return (16 * x).round() / 16\n\n"
    built = "def build():\n    return nn.Sequential(Round(), nn.Flatten(), nn.Linear(64, 10))\n"
    Path("net.py").write_text(f"from torch import nn\n\n{hidden}{built}")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(64, 10))
    save_weights(Path("w.safetensors"), network.state_dict())
    assert atbench(*words("--images", 60, "--batch-size", 60)) == 0
    (mark,) = pd.read_csv("report/leaderboard.csv").credibility
    assert mark.startswith("red: ")
    assert "zero gradients" in mark


def test_a_suite_probes_its_models_and_in_full_shows_them_each_others_pictures(atbench):
    asked = ["run", "quickstart", "--methods", "natural", "fast_at", "--output", "report", "--workers", 2]
    asked += ["--save-adversarial", "--set", *SMALL, "evaluation.epsilons=[0.1,0.3]"]
    assert atbench(*asked) == 0
    cheap = probes()
    assert sorted(path.name for path in cheap) == ["last.json", "last.json", "last.saved.json", "last.saved.json"]
    assert set(pd.read_csv("report/credibility.csv").set_index("check").colour["saved pictures"]) == {"green"}
    marks = pd.read_csv("report/leaderboard.csv").credibility
    assert not marks.str.startswith("not probed").any()
    assert atbench(*asked) == 0
    assert probes() == cheap
    assert atbench(*asked, "--credibility", "full") == 0
    assert sum(path.name.endswith(".transfer.json") for path in probes()) == 2
    table = pd.read_csv("report/credibility.csv").set_index("check")
    assert set(table.colour["transfer"]) <= {"green", "amber", "red"}
    assert table.note["transfer"].str.startswith("of 1 models").all()
    full = probes()
    assert atbench(*asked, "--credibility", "full") == 0
    assert probes() == full
