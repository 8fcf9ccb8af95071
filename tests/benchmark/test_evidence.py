"""Evidence on disk: whole or absent, the same bytes for the same verdicts, and read back with every doubt named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.errors import BadInput
from benchmark.results import evidence
from benchmark.results.evidence import evidence_folder, finished_parts, read, write_part
from tests.benchmark.make_report import verdicts


def some(count=10, first=0, **changes):
    return verdicts("pgd20", 0.15, np.arange(count) % 3 == 0, first, **changes)


def place(report: Path, experiment="trades-0", checkpoint="last") -> Path:
    return evidence_folder(report, experiment, checkpoint, "pgd20", 0.15)


def test_what_is_written_is_read_back_with_experiment_and_checkpoint(tmp_path):
    write_part(place(tmp_path), some(10), 0)
    write_part(place(tmp_path), some(5, first=10), 1)
    found = read(tmp_path)
    assert found["index"].tolist() == list(range(15))
    assert set(found.experiment) == {"trades-0"}
    assert set(found.checkpoint) == {"last"}
    expected = pd.concat([some(10), some(5, first=10)], ignore_index=True)
    for name in evidence.SCHEMA.names:
        assert found[name].astype("str").tolist() == expected[name].astype("str").tolist()


def test_equal_verdicts_give_equal_bytes_whatever_the_order_of_columns(tmp_path):
    first = write_part(tmp_path / "a", some(), 0)
    second = write_part(tmp_path / "b", some()[evidence.SCHEMA.names[::-1]], 0)
    assert first.read_bytes() == second.read_bytes()


def test_a_part_can_be_written_again_over_itself(tmp_path):
    write_part(place(tmp_path), some(10), 0)
    write_part(place(tmp_path), some(4), 0)
    assert len(read(tmp_path)) == 4


def test_leftovers_of_a_killed_writer_are_ignored(tmp_path):
    write_part(place(tmp_path), some(), 0)
    for name in (".part-00001.parquet.77.tmp", "part-00002.parquet.tmp", "notes.txt"):
        (place(tmp_path) / name).write_bytes(b"half")
    assert [path.name for path in finished_parts(place(tmp_path))] == ["part-00000.parquet"]
    assert len(read(tmp_path)) == 10


def test_a_writer_killed_at_any_moment_leaves_only_whole_parts(tmp_path):
    script = (
        "from pathlib import Path; import numpy as np; from benchmark.results.evidence import write_part\n"
        "from tests.benchmark.make_report import verdicts\n"
        "number = 0\n"
        "while True:\n"
        f"    write_part(Path({str(place(tmp_path))!r}),"
        " verdicts('pgd20', 0.15, np.zeros(50, bool), 50 * number), number)\n"
        "    number += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    try:
        while len(finished_parts(place(tmp_path))) < 5:
            assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(read(tmp_path)) == 50 * len(finished_parts(place(tmp_path)))


def test_an_image_judged_twice_is_named_with_its_folder(tmp_path):
    write_part(place(tmp_path), some(10), 0)
    write_part(place(tmp_path), some(10, first=9), 1)
    with pytest.raises(BadInput, match=r"expected one verdict per image, found image 9 more than once in .*pgd20@0.15"):
        read(tmp_path)


def test_one_image_may_be_judged_on_two_checkpoints(tmp_path):
    for checkpoint in ("last", "best"):
        write_part(place(tmp_path, checkpoint=checkpoint), some(), 0)
    assert len(read(tmp_path)) == 20


@pytest.mark.parametrize("kept", [0, 4, 300])
def test_a_truncated_part_is_named_and_the_remedy_with_it(tmp_path, kept):
    path = write_part(place(tmp_path), some(), 0)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadInput, match=r"damaged one .*part-00000.parquet; delete it and run again"):
        read(tmp_path)


def test_a_part_with_other_columns_is_named(tmp_path):
    path = write_part(place(tmp_path), some(), 0)
    pq.write_table(pq.read_table(path).drop_columns(["margin"]), path)
    with pytest.raises(BadInput, match=r"found \['margin'\] missing .*part-00000.parquet"):
        read(tmp_path)


def test_a_part_in_the_folder_of_another_attack_is_named(tmp_path):
    write_part(evidence_folder(tmp_path, "trades-0", "last", "cw20", 0.15), some(), 0)
    with pytest.raises(BadInput, match=r"expected verdicts of cw20 at 0.15, found those of .*pgd20"):
        read(tmp_path)


def test_writing_without_a_column_says_which(tmp_path):
    with pytest.raises(BadInput, match=r"\['fooled'\] missing"):
        write_part(tmp_path, some().drop(columns="fooled"), 0)


def test_writing_a_value_that_does_not_fit_says_so(tmp_path):
    with pytest.raises(BadInput, match=r"expected values that fit the evidence columns"):
        write_part(tmp_path, some(label="three"), 0)


def test_a_missing_folder_and_an_empty_one_are_told_apart(tmp_path):
    with pytest.raises(BadInput, match=r"expected a report folder, found nothing at .*nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"expected evidence, found no finished part"):
        read(tmp_path)
    assert read(tmp_path, may_be_empty=True).empty


def test_only_the_wanted_columns_are_read(tmp_path):
    write_part(place(tmp_path), some(), 0)
    assert list(read(tmp_path, ["fooled"])) == ["index", "fooled", "attack", "epsilon", "experiment", "checkpoint"]


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=20), st.floats(0, 10, allow_nan=False))
def test_any_name_stays_inside_its_folder_and_is_read_back(tmp_path_factory, name, epsilon):
    report = tmp_path_factory.mktemp("report")
    try:
        folder = evidence_folder(report, name, "last", name, epsilon)
    except UnicodeEncodeError:  # half a surrogate pair is no text
        return
    assert folder.resolve().parents[2] == (report / "evidence").resolve()
    write_part(folder, verdicts(name, epsilon, np.zeros(2, bool)), 0)
    found = read(report)
    assert set(found.experiment) == {name} == set(found.attack)
    assert set(found.epsilon) == {epsilon}


@pytest.mark.parametrize("name", ["..", "../../etc/passwd", "/etc/passwd", ".hidden", "a/b", "pgd@20"])
def test_names_that_would_leave_the_folder_are_spelled_out(tmp_path, name):
    folder = evidence_folder(tmp_path, name, name, name, 0.1)
    assert folder.resolve().parents[2] == (tmp_path / "evidence").resolve()


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_names_no_file_system_takes_are_refused(tmp_path, name):
    with pytest.raises(BadInput, match=r"expected a name of 1 to 200 characters"):
        evidence_folder(tmp_path, name, "last", "clean", 0.0)
