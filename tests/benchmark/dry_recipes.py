"""Every published recipe takes its dry step on its full network: ``tox run -e recipes``, no part of the usual tests.

pytest collects files of other names than ``test_*.py`` only where they are named.
"""

import pytest

from benchmark import published


@pytest.mark.parametrize("name", published.names())
def test_a_published_recipe_takes_its_dry_step(name, atbench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert atbench("train", "--recipe", name, "--dry") == 0
    assert not list(tmp_path.iterdir())
