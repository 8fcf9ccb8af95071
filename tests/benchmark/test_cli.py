"""The command line as a newcomer meets it: help, lists, mistakes, exit codes."""

import subprocess
import sys

import pytest
import yaml

from benchmark import architectures, data, suite
from benchmark.storage import sha256
from methods import catalogue

COMMANDS = ("run", "train", "evaluate", "report", "verify", "list", "show", "speed")
SMALL = ["--set", "recipe.epochs=1", "dataset.train_images=64", "dataset.validation_images=20"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_is_readable_and_has_an_example(command, atbench, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert atbench(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"example: atbench {command} " in text
    assert "<class" not in text
    assert "typing" not in text
    assert "type:" not in text  # what the parser would add
    assert "Namespace" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_without_a_command_tells_of_all_of_them(atbench, capsys):
    assert atbench("--help") == 0
    asked = capsys.readouterr().out
    assert atbench() == 2
    assert capsys.readouterr().out == asked
    for command in COMMANDS:
        assert f"\n    {command} " in asked


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("suites", [*suite.names(), *suite.recipes()]),
        ("datasets", [*data.names(), *data.described_only()]),
        ("architectures", [*architectures.names(), "torchvision/NAME"]),
    ],
)
def test_a_list_has_a_line_with_a_word_about_each(what, names, atbench, capsys):
    assert atbench("list", what) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == list(names)
    assert all(len(text) > 3 for _, text in lines)


def test_the_list_of_methods_has_a_line_of_figures_for_each_and_below_it_what_it_does(atbench, capsys):
    assert atbench("list", "methods") == 0
    text = capsys.readouterr().out
    above, *lines = text.split("\n\n")[0].splitlines()
    assert above.split() == ["method", "class", "category", "passes", "seconds", "memory", "(MiB)"]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == catalogue.names()
    for name in catalogue.names():
        card, said = catalogue.get(name).card, " ".join(text.split())
        note = " (reconstruction)" if card.reconstruction else ""
        assert f"{name}{note} {card.comparison} {card.category} " in said
        assert " ".join(catalogue.get(name).__doc__.splitlines()[0].split()) in said
        assert card.broken in said
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("name", catalogue.names())
def test_show_tells_equation_settings_and_published_figures(name, atbench, capsys):
    assert atbench("show", name) == 0
    text = capsys.readouterr().out
    assert text.startswith((f"{name}: ", f"{name} (reconstruction): "))
    assert "Settings" in text
    assert "Published" in text
    assert "AutoAttack by third parties" in text
    assert "nan" not in text.split("Published")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runn"], "invalid choice: 'runn'"),
        (["run"], "required: run.suite"),
        (["run", "quikstart"], "did you mean quickstart?"),
        (["run", "quickstart", "--methods", "trade"], "did you mean trades?"),
        (["run", "quickstart", "--seeds", "0", "0"], "seeds holds every value once"),
        (["run", "quickstart", "--workers", "0"], "--workers is 1 or more"),
        (["run", "quickstart", "--set", "recipe.epoch=2"], "did you mean epochs?"),
        (["run", "quickstart", "--set", "recipe.epochs"], "--set takes KEY=VALUE"),
        (["run", "quickstart", "--set", "threat.epsilon=8/0"], "threat.epsilon"),
        (["run", "quickstart", "--bogus"], "--bogus"),
        (["train", "trade"], "did you mean trades?"),
        (["train", "trades", "--suite", "digits"], "did you mean digits-common?"),
        (["report", "nothing/here"], "nothing/here"),
        (["show", "trade"], "did you mean trades?"),
        (["list", "method"], "invalid choice: 'method'"),
        (["evaluate", "--model", "x.py:build"], "weights"),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_a_sentence(words, says, atbench, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert atbench(*words) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_changes_add_up_however_often_they_are_given(atbench, capsys, tmp_path):
    words = [
        "run",
        "quickstart",
        "--output",
        tmp_path / "report",
        "--set",
        "recipe.epochs=0",
        "--set",
        "recipe.momentum=3",
    ]
    assert atbench(*words) == 2
    assert "recipe.epochs" in capsys.readouterr().err  # the first of them was not forgotten


def test_a_folder_that_cannot_be_written_is_named(atbench, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert atbench("run", "quickstart", "--output", tmp_path / "file") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_train_leaves_weights_and_their_card(atbench, capsys, tmp_path):
    words = ["train", "fast_at", *SMALL, "--seed", 3, "--checkpoints", tmp_path]
    assert atbench(*words) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("fast_at-digits-s3-")
    card = yaml.safe_load((folder / "card.yaml").read_text())
    said = capsys.readouterr().err
    for name, kept in card["weights"].items():
        assert sha256(folder / f"{name}.safetensors") == kept["sha256"]
        assert str(folder / f"{name}.safetensors") in said  # in one line, so that it can be copied
    before = (folder / "card.yaml").stat().st_mtime_ns
    assert atbench(*words) == 0
    assert str(folder / "best.safetensors") in capsys.readouterr().err
    assert (folder / "card.yaml").stat().st_mtime_ns == before


def test_a_training_that_fails_ends_with_exit_code_1_and_leaves_its_traceback(atbench, capsys, tmp_path):
    broken = ("recipe.learning_rate=1.0e+38", "recipe.weight_decay=1.0e+4", "recipe.schedule=constant")
    assert atbench("train", "trades", *SMALL, *broken, "--checkpoints", tmp_path) == 1
    assert "failed: trades seed 0: training: FloatingPointError" in capsys.readouterr().err
    (trace,) = tmp_path.glob("trades-*/failure.txt")
    assert "Traceback" in trace.read_text()


def test_neither_help_nor_lists_of_words_nor_a_report_import_torch(tmp_path):
    (tmp_path / "suite.yaml").write_text("name: x\nevaluation: {ranked_at: [0.1], attacks: [pgd20]}\nmethods: {a: }\n")
    (tmp_path / "experiments").mkdir()
    card = {"experiment": "a-1", "method": "a", "comparison_class": "A", "seed": 0, "status": "failed", "error": "no"}
    (tmp_path / "experiments" / "a-1.yaml").write_text(yaml.safe_dump(card))
    script = """
import sys
from benchmark import cli
for words in (["--help"], ["report", sys.argv[1]]):
    try:
        cli.main(words)
    except SystemExit as ended:
        assert not ended.code, ended.code
    heavy = {"torch", "pytorch_lightning", "methods.base"} & set(sys.modules)
    assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "index.html").is_file()
