"""The journal of an attack in progress: what it kept comes back, and a damaged file is named."""

import pytest
import torch

from attacks.engine import Job, Outcome
from benchmark.errors import BadInput
from benchmark.journal import Journal


def outcomes(first=0):
    return [
        Outcome(Job(first, 0), torch.rand(3, 4, 5), 12, 10),
        Outcome(Job(first + 1, 2), None, 101, 101),
        Outcome(Job(first + 2, 1), torch.rand(3, 4, 5), 7, 0),
    ]


def test_what_was_kept_comes_back_in_order(tmp_path):
    journal = Journal(tmp_path / "part-00000.unfinished")
    assert journal.read() == {}
    first, second, other = outcomes(), outcomes(7), outcomes(20)
    journal.keep("apgd-t", first)
    journal.keep("apgd-t", second)
    journal.keep("square", other[1:2])
    kept = Journal(journal.folder).read()
    assert list(kept) == ["apgd-t", "square"]
    for found, expected in zip(kept["apgd-t"] + kept["square"], [*first, *second, other[1]], strict=True):
        assert found[0] == expected[0]
        assert found[2:] == expected[2:]
        assert (found.picture is None) == (expected.picture is None)
        assert found.picture is None or torch.equal(found.picture, expected.picture)


def test_a_closed_journal_leaves_nothing(tmp_path):
    journal = Journal(tmp_path / "unfinished")
    journal.keep("square", outcomes())
    journal.close()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named_with_the_mend(tmp_path):
    journal = Journal(tmp_path)
    journal.keep("fab-t", outcomes())
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match=f"{path.name} is no whole file .* delete it"):
        journal.read()
