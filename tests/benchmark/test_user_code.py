"""A user's own method, data set and network: as CONTRIBUTING shows them."""

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from attacks import BadInput
from benchmark import suite, user_code
from benchmark.experiment import plan
from tests.benchmark.user_files import DATA, METHOD, NETWORK, QUICK, run, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def sections():
    """Title, code and command of each part of CONTRIBUTING that shows a file of one's own."""
    for part in re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE):
        if part.startswith("Your own"):
            code, command = (re.search(rf"^```{kind}\n(.*?)^```", part, re.S | re.M)[1] for kind in ("python", "sh"))
            yield pytest.param(code, command, id=part.splitlines()[0].split(",")[0])


@pytest.mark.parametrize(("code", "command"), list(sections()))
def test_what_contributing_shows_is_short_and_runs_from_a_folder_elsewhere(code, command, atbench, capsys):
    assert len(code.splitlines()) < 30
    _, *words = shlex.split(command)
    (file,) = re.findall(r"(\w+\.py):", command)
    write(code, file)
    assert atbench(*words, *([] if "--set" in words else ["--set"]), *QUICK) == 0, capsys.readouterr().err
    (report,) = Path("reports").iterdir()
    board = pd.read_csv(report / "leaderboard.csv")
    assert set(board.status) == {"done"}
    if "--method" in words:
        assert set(board.method) == {"mine", "pgd_at", "trades"}
        compared = pd.read_csv(report / "comparisons.csv")
        assert set(zip(compared.method, compared.against, strict=True)) == {("mine", "pgd_at"), ("mine", "trades")}
    if "--network" in words:
        assert set(board.network) == {"my_network.py:build"}
    if "--dataset" in words:
        assert report.name == "digits-common-mirrored_digits"
        assert "no evidence" not in (report / "leaderboard.csv").read_text()  # the note is about digits
    assert not list(Path().glob("**/__pycache__"))


def test_there_is_such_a_section_for_each_of_the_three():
    assert [section.id for section in sections()] == ["Your own method", "Your own data set", "Your own network"]


def test_one_file_may_hold_all_three_and_a_finished_run_is_not_done_again(atbench, capsys):
    write(METHOD + DATA + NETWORK, "mine/all.py")
    own = ["--method", "mine/all.py:Mine", "--dataset", "mine/all.py:my_data", "--network", "mine/all.py:build"]
    words = ["run", "digits-common", *own, "--against", "natural,", "pgd_at", "--output", "report", "--set", *QUICK]
    assert atbench(*words) == 0
    (card,) = [yaml.safe_load(path.read_text()) for path in Path("report/experiments").glob("mine-my_data-s0-*")]
    assert (card["method"], card["dataset"], card["network"], card["category"]) == (
        "mine",
        "my_data",
        "all.py:build",
        "own",
    )
    assert card["comparison_class"] == "A"
    before = Path("report/accuracy.csv").read_bytes()
    assert atbench(*words) == 0
    assert "finished already" in capsys.readouterr().err
    Path("report/comparisons.csv").unlink()
    assert atbench("report", "report") == 0  # which knows from the suite's file what is compared with what
    assert set(pd.read_csv("report/comparisons.csv").against) == {"natural", "pgd_at"}
    assert Path("report/accuracy.csv").read_bytes() == before


def test_a_method_without_a_family_runs_beside_the_suites_and_is_compared_with_pgd_at(atbench):
    write(METHOD)
    methods = ["--methods", "pgd_at", "natural", "--method", "my.py:Mine"]
    assert atbench(*run(*methods)) == 0
    compared = pd.read_csv("report/comparisons.csv")
    assert set(zip(compared.method, compared.against, strict=True)) == {("mine", "pgd_at"), ("natural", "pgd_at")}


def test_train_and_show_take_a_users_method(atbench, capsys):
    write(METHOD.replace("    def", '    """Mine: nothing new."""\n\n    def', 1))
    assert atbench("show", "my.py:Mine") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("mine: Mine, category own, ranked in class A")
    assert "Mine: nothing new." in shown
    assert atbench("train", "my.py:Mine", "--set", *QUICK, "methods.mine.inner.steps=2") == 0
    (folder,) = Path("checkpoints").iterdir()
    assert yaml.safe_load((folder / "card.yaml").read_text())["identity"]["settings"]["inner"]["steps"] == 2


def test_evaluate_takes_a_users_data_set(atbench):
    import torch

    from benchmark.storage import save_weights

    write(DATA)
    write(NETWORK, "net.py")
    save_weights(Path("w.safetensors"), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)).state_dict())
    words = ["evaluate", "--model", "net.py:build", "--weights", "w.safetensors", "--dataset", "my.py:my_data"]
    words += ["--attacks", "pgd20", "--output", "report"]
    assert atbench(*words) == 0
    assert set(pd.read_csv("report/accuracy.csv").images) == {60}


def test_a_suite_names_files_that_lie_beside_it(monkeypatch, tmp_path):
    write(METHOD, "suites/my.py")
    write(NETWORK, "suites/net.py")
    methods = "methods: {my.py:Mine: {inner: {steps: 3}}, pgd_at: }\nagainst: [pgd_at]\n"
    write(f"based_on: digits-common\nname: s\nnetwork: {{name: 'net.py:build'}}\n{methods}", "suites/s.yaml")
    first, second = plan(suite.load("suites/s.yaml"))
    assert (first.method, first.settings["inner"]["steps"], second.method) == ("mine", 3, "pgd_at")
    assert first.network.name == "net.py:build"
    monkeypatch.chdir("suites")
    assert [e.name for e in plan(suite.load("s.yaml"))] == [first.name, second.name]


def planned(**changes):
    return plan(suite.load("digits-common", {"methods": {"my.py:Mine": None}, **changes}))[0]


def test_an_experiment_is_another_when_the_file_or_its_neighbours_change_and_the_same_when_it_moves():
    write("import layers\n" + METHOD)
    write("WIDTH = 1\n", "layers.py")
    name = planned().name
    assert name.startswith("mine-digits-s0-")
    write("import layers\n" + METHOD, "elsewhere/my.py")
    write("WIDTH = 1\n", "elsewhere/layers.py")
    assert planned(methods={"elsewhere/my.py:Mine": None}).name == name
    write("WIDTH = 2\n", "layers.py")
    assert planned().name != name
    write("WIDTH = 1\n", "layers.py")
    write("import layers\n" + METHOD + "\n")
    assert planned().name != name


def test_a_written_out_suite_with_a_users_code_reads_as_the_same_suite():
    from benchmark.own_parts import take_up

    write(METHOD + DATA + NETWORK)
    changes = {"methods": {"my.py:Mine": None}, "dataset.name": "my.py:my_data", "network": {"name": "my.py:build"}}
    taken = take_up(suite.load("digits-common", changes))
    write(yaml.safe_dump(taken.as_plain(), sort_keys=False), "out.yaml")
    assert suite.load("out.yaml") == taken
    assert plan(suite.load("out.yaml")) == plan(taken)


def test_a_method_that_failed_may_be_mended_but_one_that_was_measured_is_not_mixed_with_another(atbench, capsys):
    write(METHOD.replace("return", "1 / 0\n        return"))
    words = run("--method", "my.py:Mine", "--against", "natural")
    assert atbench(*words) == 1
    assert "failed: mine seed 0: training: my.py, line 7: ZeroDivisionError" in capsys.readouterr().err
    write(METHOD)
    assert atbench(*words) == 0
    board = pd.read_csv("report/leaderboard.csv")
    assert sorted(board[board.rank_low.notna()].method) == ["mine", "natural"]
    assert set(board.status) == {"done"}
    assert not list(Path("report/failures").iterdir())
    write(METHOD + "\n")
    capsys.readouterr()
    assert atbench(*words) == 2
    assert (
        "report holds results measured with another version of my.py: choose another --output"
        in capsys.readouterr().err
    )


def test_an_exception_in_the_third_batch_is_recorded_and_the_other_methods_go_on(atbench, capsys):
    body = "        if self.trainer.global_step == 2:\n            raise ValueError('the third\\n batch')\n"
    write(METHOD.replace("        return", body + "        return"))
    assert atbench(*run("--method", "my.py:Mine", "--against", "natural")) == 1
    assert "failed: mine seed 0: training: my.py, line 8: ValueError: the third batch" in capsys.readouterr().err
    (trace,) = Path("report/failures").glob("mine-*")
    assert trace.read_text().startswith("Traceback (most recent call last):")
    assert 'my.py", line 8, in training_loss' in trace.read_text()
    board = pd.read_csv("report/leaderboard.csv")
    assert dict(zip(board.method, board.status, strict=True)) == {"mine": "failed", "natural": "done"}
    assert "my.py, line 8: ValueError: the third batch" in board.set_index("method").status_note["mine"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys; sys.exit(3)", "my.py, line 7: SystemExit: 3"),
        ("return None", "training_loss (my.py, line 6) returns one number with its graph, but found None"),
        (
            "return self(batch.x).amax(1)",
            "returns one number with its graph, but found a tensor of shape (64,)",
        ),
        ("return self(batch.x).mean().detach()", "but found a tensor of shape () without a graph"),
    ],
)
def test_other_failures_in_training_are_told_with_their_line_too(body, says, atbench, capsys):
    write(METHOD.replace("return self", f"{body}\n        return self"))
    assert atbench("train", "my.py:Mine", "--set", *QUICK) == 1
    assert says in capsys.readouterr().err


def test_a_users_folder_neither_shadows_what_is_installed_nor_stays_unknown():
    write("raise RuntimeError('the wrong one')\n", "a/statistics.py")
    write("def later():\n    import neighbour\n    return neighbour.VALUE\n", "a/my.py")
    write("VALUE = 3\n", "a/neighbour.py")
    later = user_code.load(user_code.find("a/my.py:later", ""))
    import statistics

    assert later() == 3
    assert callable(statistics.mean)


def test_a_file_that_changes_while_a_command_runs_is_noticed():
    write(METHOD)
    code = user_code.find("my.py:Mine", "Mine")
    write(METHOD + "\n")
    with pytest.raises(BadInput, match=r"my\.py has changed since this command began"):
        user_code.load(code)


@pytest.mark.parametrize(
    ("name", "key"),
    [("Mine", "mine"), ("MyData", "my_data"), ("PGDPlus", "pgd_plus"), ("TRADES2", "trades2"), ("half_AT", "half_at")],
)
def test_a_class_name_becomes_a_key(name, key):
    assert user_code.UserCode("/x/my.py", name, "").key == key


def test_files_in_two_folders_have_neighbours_of_their_own_though_of_one_name(tmp_path):
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "helpers.py").write_text(f"SIDE = {side!r}\n")
        (tmp_path / side / "mine.py").write_text("import helpers\n\ndef build():\n    return helpers.SIDE\n")
    found = [user_code.find(f"{tmp_path / side / 'mine.py'}:build", "build") for side in ("left", "right")]
    assert [user_code.load(code)() for code in found] == ["left", "right"]
    assert user_code.load(found[0])() == "left"
