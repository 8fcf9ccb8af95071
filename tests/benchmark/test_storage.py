"""Files that are whole or not there, weights from strangers, and one writer for each folder."""

import errno
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from attacks import BadInput
from benchmark import storage
from benchmark.storage import atomically, load_weights, locked, read_yaml, save_weights, sha256, write_text, write_yaml

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.counter": torch.tensor(3)}


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomically(path) as temporary:  # noqa: PT012 - half a file, then an error
        temporary.write_text("ne")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["file"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
    assert path.read_text() == "new"


def test_folders_on_the_way_are_made(tmp_path):
    write_yaml(tmp_path / "a" / "b" / "c.yaml", {"b": 1, "a": [1, "ü"]})
    assert read_yaml(tmp_path / "a" / "b" / "c.yaml") == {"b": 1, "a": [1, "ü"]}
    assert (tmp_path / "a" / "b" / "c.yaml").read_text() == "b: 1\na:\n- 1\n- ü\n"  # in the order given


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [lambda path: write_text(path, "new"), lambda path: save_weights(path, WEIGHTS)])
def test_a_full_disk_is_told_with_the_files_name_and_keeps_the_old_file(number, write, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match=f"no space left for {path}"):
        write(path)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["file"]


def test_a_disk_that_fills_up_only_when_it_is_flushed_is_told_too(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(BadInput, match="no space left"):
        write_text(tmp_path / "file", "new")
    assert leftovers(tmp_path) == []


def test_other_errors_of_the_disk_come_through(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "file" / "below", "new")


@pytest.mark.parametrize("content", ["a: [1", "- 1", "", "a: !!python/name:os.system"])
def test_yaml_that_is_no_mapping_of_plain_values_is_named(content, tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(content)
    with pytest.raises(BadInput, match=str(path)):
        read_yaml(path)
    with pytest.raises(BadInput, match="there is no file"):
        read_yaml(tmp_path / "other.yaml")


def test_weights_come_back_bit_for_bit_with_the_hash_of_their_file(tmp_path):
    path = tmp_path / "w.safetensors"
    digest = save_weights(path, WEIGHTS)
    assert digest == sha256(path)
    read = load_weights(path)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[key], WEIGHTS[key]) for key in WEIGHTS)
    assert digest == save_weights(tmp_path / "again.safetensors", dict(WEIGHTS))


def test_weights_that_share_memory_are_saved(tmp_path):
    tied = torch.arange(4.0)
    save_weights(tmp_path / "w.safetensors", {"a": tied, "b": tied, "c": tied[::2]})
    assert load_weights(tmp_path / "w.safetensors")["c"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("wrap", [lambda found: found, lambda found: {"state_dict": found, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_pytorch_file_may_hold_the_weights_below_state_dict_and_from_data_parallel(wrap, prefix, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(wrap({prefix + key: value for key, value in WEIGHTS.items()}), path)
    assert load_weights(path).keys() == WEIGHTS.keys()


def test_a_prefix_that_only_some_entries_have_is_part_of_their_names(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert load_weights(tmp_path / "w.pt").keys() == {"module.a", "b"}


@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_weights_are_named(kept, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    torch.save(WEIGHTS, path) if suffix == ".pt" else save_weights(path, WEIGHTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(BadInput) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
    assert "truncated" in str(caught.value)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, made):
        self.made = str(made)

    def __reduce__(self):
        return os.mkdir, (self.made,)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(how, tmp_path):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    content = {"a": torch.ones(1), "b": Payload(made)}
    torch.save(content, path) if how == "torch.save" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(BadInput, match=str(path)):
        load_weights(path)
    assert not made.exists()


def test_who_saved_the_whole_network_is_told_to_save_its_state_dict(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(BadInput, match="save the state dict alone"):
        load_weights(tmp_path / "whole.pt")


@pytest.mark.parametrize(
    ("content", "found"), [({"model": {"a": torch.ones(1)}}, "under 'model'"), ([1], "a list"), ({"a": 1}, "a int")]
)
def test_something_else_than_a_state_dict_is_named(content, found, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=found):
        load_weights(tmp_path / "w.pt")


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(BadInput, match="there is no weights file"):
        load_weights(tmp_path / "w.pt")
    with pytest.raises(BadInput, match="there is no weights file"):
        load_weights(tmp_path)  # a folder


HOLD = """
import sys, time
from pathlib import Path
from benchmark.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_belongs_to_one_process_until_that_is_killed(tmp_path):
    folder = tmp_path / "report"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=str(folder)), locked(folder):
            pass
        with locked(tmp_path / "another"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locked(folder):
            pass


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    with locked(tmp_path):
        pass
