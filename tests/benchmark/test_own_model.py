"""Evaluate a model that somebody trained elsewhere: their file, their weights, and what may be wrong with either."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from benchmark.results import evidence
from benchmark.storage import save_weights

LINEAR = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    save_weights(Path("w.safetensors"), network.state_dict())
    Path("net.py").write_text(LINEAR)


def words(*others, model="net.py:build", weights="w.safetensors", attacks=("pgd20",)):
    plain = [
        "evaluate",
        "--model",
        model,
        "--weights",
        weights,
        "--dataset",
        "digits",
        "--images",
        20,
        "--batch-size",
        5,
    ]
    return [*plain, "--epsilon", "0.1", "--output", "report", "--attacks", *attacks, *others]


def test_a_model_of_ones_own_is_attacked_and_reported(atbench, capsys):
    assert atbench(*words("--epsilon", "8/255", "0.2", attacks=("pgd20", "cw20"))) == 0
    assert "report: report/index.html" in capsys.readouterr().err
    accuracy = pd.read_csv("report/accuracy.csv")
    assert set(accuracy.method) == {"w"}
    assert (accuracy.images == 20).all()
    assert set(zip(accuracy.attack, accuracy.epsilon.round(4), strict=True)) == {
        ("clean", 0.0),
        *((attack, e) for attack in ("pgd20", "cw20", "worst_case") for e in (0.0314, 0.2)),
    }
    board = pd.read_csv("report/leaderboard.csv")
    assert (board.method.tolist(), board.epsilon.tolist(), board.network.tolist()) == (["w"], [0.2], ["net.py:build"])


def test_scaled_logits_are_what_attacks_see_and_the_report_is_of_that_scale_alone(atbench, capsys):
    assert atbench(*words("--logit-scale", "1/15")) == 0
    assert yaml.safe_load(Path("report/experiments/w.yaml").read_text())["logit_scale"] == 1 / 15
    assert atbench("verify", "report") == 0
    assert atbench(*words()) == 2
    assert "logit_scale 0.0666" in capsys.readouterr().err
    small = evidence_of("clean", 0.0)
    Path("report").rename("small")
    assert atbench(*words()) == 0
    plain = evidence_of("clean", 0.0)
    assert small.clean_prediction.tolist() == plain.clean_prediction.tolist()
    assert small.margin.tolist() == pytest.approx((plain.margin / 15).tolist(), rel=1e-4, abs=1e-6)


def evidence_of(attack, epsilon):
    folder = evidence.evidence_folder(Path("report"), "w", "last", attack, epsilon)
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("part-*.parquet"))))


@pytest.mark.parametrize("wrong", ["0", "-1", "much", "1/0"])
def test_a_logit_scale_that_is_none_is_named(wrong, atbench, capsys):
    assert atbench(*words(f"--logit-scale={wrong}")) == 2
    assert "--logit-scale is " in capsys.readouterr().err


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(atbench, monkeypatch, capsys):
    assert atbench(*words()) == 0
    undisturbed = Path("report/accuracy.csv").read_bytes()
    Path("report").rename("undisturbed")
    write, written = evidence.write_part, []

    def write_three(folder, frame, number):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        return write(folder, frame, number)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "write_part", write_three)
        assert atbench(*words()) == 130
    assert "goes on where it was" in capsys.readouterr().err
    parts = {path: path.stat().st_mtime_ns for path in Path("report").rglob("part-*")}
    assert len(parts) == 3
    assert atbench(*words()) == 0
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert Path("report/accuracy.csv").read_bytes() == undisturbed


def test_more_images_than_there_are_means_all_of_them(atbench):
    assert atbench(*words("--images", 100_000, "--batch-size", 200)) == 0
    assert (pd.read_csv("report/accuracy.csv").images == 400).all()


def test_a_pytorch_file_of_data_parallel_weights_gives_the_same_figures(atbench):
    from benchmark.storage import load_weights

    assert atbench(*words("--name", "model", "--output", "one")) == 0
    state = {f"module.{key}": value for key, value in load_weights(Path("w.safetensors")).items()}
    torch.save({"state_dict": state}, "w.pth")
    assert atbench(*words("--name", "model", "--output", "two", weights="w.pth")) == 0
    assert Path("one/accuracy.csv").read_bytes() == Path("two/accuracy.csv").read_bytes()


def test_an_architecture_may_be_named_in_place_of_a_file(atbench):
    from benchmark.architectures import build

    network = build("digits_cnn", classes=10, channels=1, size=8, mean=(0.5,), std=(0.5,))
    save_weights(Path("cnn.safetensors"), network.state_dict())
    assert atbench(*words(model="digits_cnn", weights="cnn.safetensors")) == 0


def test_a_file_may_import_its_neighbours_and_hold_dataclasses(atbench):
    Path("sub").mkdir()
    Path("sub/layers.py").write_text(LINEAR)
    Path("sub/model.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import layers\n\n"
        "@dataclass\n"
        "class Settings:\n"
        "    width: int = 64\n\n"
        "def build():\n"
        "    return layers.build()\n"
    )
    assert atbench(*words(model="sub/model.py:build")) == 0


def test_a_name_stays_inside_its_folder(atbench, tmp_path):
    plain = words("--name", "../../away")
    at = plain.index("--output")
    assert atbench(*plain[:at], *plain[at + 2 :]) == 0
    (made,) = (tmp_path / "reports").iterdir()
    assert (made / "index.html").is_file()
    assert set(pd.read_csv(made / "accuracy.csv").method) == {"../../away"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def build(:\n", "model.py, line 1: SyntaxError"),
        ("import nothing_of_that_name\n", "model.py, line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "model.py, line 2: SystemExit"),
        ("def build():\n    x = 1\n    return 1 / 0\n", "model.py, line 3: build() failed with ZeroDivisionError"),
        ("def build(width):\n    return width\n", "build() failed with TypeError"),
        ("def build():\n    return 3\n", "returns an nn.Module, but found int"),
        ("def make():\n    return 3\n", "has no function 'build': it has make"),
        (
            LINEAR.replace("return", "net =") + "    net.forward = lambda x: net[1](x)\n    return net\n",
            "model.py, line 5: the network failed on images of shape (2, 1, 8, 8) with RuntimeError",
        ),
        (LINEAR.replace("return", "net =") + "    net.forward = lambda x: (x, x)\n    return net\n", "found a tuple"),
        (LINEAR.replace("64, 10", "64, 5"), "1.weight has shape (10, 64), the network wants (5, 64)"),
        (LINEAR.replace("nn.Flatten()", "nn.Flatten(), nn.Linear(64, 64)"), "2.weight is missing"),
    ],
)
def test_a_mistake_in_the_users_file_is_told_with_file_and_line(text, says, atbench, capsys):
    Path("model.py").write_text(text)
    assert atbench(*words(model="model.py:build")) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not Path("report").exists()


@pytest.mark.parametrize(
    ("changed", "others", "says"),
    [
        ({"model": "net.py"}, [], "such as net.py:build"),
        ({"model": "nothing.py:build"}, [], "there is no file nothing.py"),
        ({"model": "digits_cn"}, [], "did you mean digits_cnn?"),
        ({"weights": "nothing.pt"}, [], "there is no weights file nothing.pt"),
        ({"weights": "net.py"}, [], "net.py"),
        ({}, ["--dataset", "digit"], "did you mean digits?"),
        ({}, ["--dataset", "mnist", "--data-root", "."], "--download"),
        ({}, ["--epsilon", "much"], "epsilons is a number in pixel units"),
        ({}, ["--images", "0"], "--images is 1 or more"),
        ({}, ["--batch-size", "0"], "--batch-size is a number from 1 on, or auto"),
        ({}, ["--attacks", "pgd"], "there is no attack 'pgd'"),
        ({}, ["--norm", "l3"], "invalid choice"),
    ],
)
def test_a_mistake_in_the_words_is_told_before_anything_is_written(changed, others, says, atbench, capsys):
    assert atbench(*words(*others, **changed)) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not Path("report").exists()


@pytest.mark.parametrize("others", [["--norm", "l2"], ["--seed", "1"], ["--batch-size", "4"], ["--images", "10"]])
def test_verdicts_measured_in_another_way_are_not_mixed_in(others, atbench, capsys):
    assert atbench(*words()) == 0
    before = Path("report/suite.yaml").read_bytes()
    assert atbench(*words(*others)) == 2
    assert f"holds verdicts measured with {others[0].strip('-').replace('-', '_')}" in capsys.readouterr().err
    assert Path("report/suite.yaml").read_bytes() == before


def test_other_weights_under_the_same_name_are_not_mixed_in(atbench, capsys):
    assert atbench(*words("--name", "x")) == 0
    save_weights(Path("other.safetensors"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict())
    assert atbench(*words("--name", "x", weights="other.safetensors")) == 2
    assert "measured with weights" in capsys.readouterr().err
