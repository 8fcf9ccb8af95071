"""One experiment on several devices: what is written, what is refused, what becomes of the others when one fails."""

import os
import subprocess
import sys

import pytest
import torch

from benchmark import ranks, suite
from benchmark.devices import Devices, _first_of
from benchmark.errors import BadInput
from benchmark.experiment import plan
from benchmark.loggers import HISTORY
from benchmark.storage import load_weights, read_yaml
from benchmark.training import CARD, train

SMALL = {
    "recipe.epochs": 2,
    "recipe.batch_size": 32,
    "dataset.train_images": 95,
    "dataset.validation_images": 21,
    "inner_steps": 1,
}


def experiment(method="pgd_at", **changes):
    changed = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return plan(suite.load("quickstart", changed | {"methods": {method: None}}))[0]


def together(of, folder, tell=lambda *news: None):
    ranks.train_on_ranks(of, folder, Devices(2), tell)
    return read_yaml(folder / CARD)


def same_weights(one, other):
    left, right = load_weights(one), load_weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Stopped(Exception):
    """Stands for whatever ends the process that watches the others."""


def test_two_devices_write_what_one_would_and_go_on_after_a_kill(tmp_path):
    of, news = experiment(), []
    card = together(of, tmp_path / "whole", lambda *told: news.append(told))
    assert news == [("training", 1, 2), ("training", 2, 2)]
    alone = train(of, tmp_path / "alone")
    assert (card["devices"], alone["devices"]) == (2, 1)
    assert card.keys() == alone.keys()
    assert card["forward_passes"] == pytest.approx(alone["forward_passes"], rel=0.03)  # an image is dealt twice
    assert card["selection_forward_passes"] == alone["selection_forward_passes"]
    assert card["device_hours"] == pytest.approx(2 * card["seconds"] / 3600, abs=1e-5)
    assert len((tmp_path / "whole" / HISTORY).read_text().splitlines()) == 3  # the headings, and one line an epoch

    def stop(what, done, total):
        raise Stopped

    with pytest.raises(Stopped):
        together(of, tmp_path / "resumed", stop)
    assert not (tmp_path / "resumed" / CARD).exists()
    together(of, tmp_path / "resumed")
    assert same_weights(tmp_path / "whole" / "last.safetensors", tmp_path / "resumed" / "last.safetensors")
    assert same_weights(tmp_path / "whole" / "best.safetensors", tmp_path / "resumed" / "best.safetensors")


def test_an_error_of_one_process_ends_all_and_is_told(tmp_path):
    broken = experiment(recipe__learning_rate=1e30, recipe__schedule="constant")
    with pytest.raises(ranks.RankFailed, match="FloatingPointError: the training loss became nan"):
        together(broken, tmp_path)


def test_what_a_person_can_mend_stays_bad_input(tmp_path):
    (tmp_path / "resume.ckpt").write_bytes(b"torn")
    with pytest.raises(BadInput, match=r"resume\.ckpt cannot be read, it may be truncated"):
        together(experiment(), tmp_path)


NODE = """
import sys
from pathlib import Path
from benchmark import commands
from benchmark.devices import Devices
sys.exit(commands.run(
    "quickstart", methods=["pgd_at"], seeds=None, output=Path("report"), checkpoints=Path("weights"),
    devices=Devices(1, 2), data_root=None, download=False, processes=1,
    changes={"recipe.epochs": 2, "recipe.batch_size": 32, "dataset.train_images": 96, "inner_steps": 1,
             "evaluation.images": 20, "evaluation.attacks": ["pgd20"]}))
"""


def test_two_machines_train_one_experiment_and_the_first_one_reports(tmp_path):
    environment = Devices().meeting_place() | {"OMP_NUM_THREADS": "1"}  # a port that is free
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE],
            cwd=tmp_path,
            env=os.environ | environment | {"NODE_RANK": str(node)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    ended = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ended
    (card,) = (tmp_path / "weights").glob(f"*/{CARD}")
    assert read_yaml(card)["devices"] == 2
    assert (tmp_path / "report" / "leaderboard.csv").is_file()


@pytest.mark.parametrize("option", ["--devices", "--num-nodes"])
def test_less_than_one_device_is_refused(option, atbench, capsys):
    assert atbench("train", "natural", option, "0") == 2
    assert f"{option} is 1 or more, but found 0" in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_next_that_can(atbench, capsys, tmp_path):
    assert atbench("train", "natural", "--devices", "3", "--checkpoints", tmp_path) == 2
    assert "recipe.batch_size 64 cannot be shared out evenly over 3 devices" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"such as --set recipe\.batch_size=66"):
        Devices(3).share(64)
    assert Devices(2, 2).share(64) == 16


def test_statistics_that_cannot_be_synchronised_without_gpus_are_refused(tmp_path):
    with pytest.raises(BadInput, match="sync_batchnorm needs GPUs"):
        train(experiment(sync_batchnorm=True), tmp_path)


def test_how_many_devices_train_does_not_change_the_experiment_but_shared_statistics_do():
    assert experiment().name == experiment(sync_batchnorm=False).name != experiment(sync_batchnorm=True).name


def test_fewer_gpus_than_asked_for_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match=r"--devices 4 was asked for, but this machine has 1 GPU"):
        Devices(4).check()


@pytest.mark.parametrize(
    ("variables", "node"), [({"NODE_RANK": "1"}, 1), ({"SLURM_NODEID": "1"}, 1), ({"GROUP_RANK": "0"}, 0)]
)
def test_a_machine_finds_its_number_in_the_environment(variables, node, monkeypatch):
    for name in ("NODE_RANK", "SLURM_NODEID", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Devices(1, 2).node == node
    monkeypatch.setenv("NODE_RANK", "7")
    with pytest.raises(BadInput, match="NODE_RANK lies between 0 and 1, but found '7'"):
        _ = Devices(1, 2).node


def test_several_machines_without_a_meeting_place_are_told_what_to_set(monkeypatch):
    for name in ("NODE_RANK", "SLURM_NODEID", "GROUP_RANK", "MASTER_ADDR", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match="--num-nodes 2 needs NODE_RANK"):
        _ = Devices(1, 2).node
    with pytest.raises(BadInput, match="needs MASTER_ADDR"):
        Devices(1, 2).meeting_place()
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[03-07,12],login")
    monkeypatch.setenv("NODE_RANK", "0")
    assert Devices(1, 2).meeting_place()["MASTER_ADDR"] == "gpu03"
    assert _first_of("alpha,beta") == "alpha"
