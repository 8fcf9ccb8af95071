"""The house has three floors and imports only go down; tables and pages are made without PyTorch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("attacks", "methods", "benchmark")


def imports(file: Path) -> set[str]:
    """Every module that ``file`` imports anywhere, also inside functions, as dotted names."""
    found: set[str] = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            # What a table of names loads when asked for counts as well, where it is written out.
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def floor(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize(("lower", "higher"), [("attacks", {"methods", "benchmark"}), ("methods", {"benchmark"})])
def test_imports_only_go_down(lower, higher):
    assert files(lower)
    up = {
        f"{file.relative_to(ROOT)}: {name}" for file in files(lower) for name in imports(file) if floor(name) in higher
    }
    assert not up


def test_no_floor_imports_the_tests():
    assert not [file for file in files(*FLOORS) if any(floor(name) == "tests" for name in imports(file))]


def test_only_the_official_engine_imports_the_authors_package():
    users = [str(file.relative_to(ROOT)) for file in files(*FLOORS) if "pyautoattack" in map(floor, imports(file))]
    assert users == ["attacks/official.py"]


def test_methods_never_open_a_file():
    # attacks knows PyTorch, methods know Lightning; data, configs and folders are the harness's.
    readers = {"yaml", "pandas", "pyarrow", "pathlib", "json", "torchvision"}
    found = {f"{f.relative_to(ROOT)}: {name}" for f in files("attacks", "methods") for name in imports(f)}
    assert not {entry for entry in found if floor(entry.split(": ")[1]) in readers}


READERS = files("benchmark/results", "benchmark/report")


@pytest.mark.parametrize("file", READERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_reading_never_names_torch(file):
    heavy = {"torch", "torchvision", "pytorch_lightning", "torchmetrics"}
    assert not {name for name in imports(file) if floor(name) in heavy}


def test_reading_never_loads_torch():
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in READERS]
    if not modules:
        pytest.skip("benchmark/results and benchmark/report are not there yet")
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'pytorch_lightning', 'torchvision'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_importing_a_floor_changes_nothing_and_loads_little():
    code = (
        "import sys, attacks.errors\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "from attacks import *\n"
        "import attacks.pgd, attacks.clip, attacks.official\n"
        "after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "assert torch.equal(before[0], after[0]) and before[1:] == after[1:]\n"
        "assert 'pyautoattack' not in sys.modules\n"
        "assert fgsm is attacks.pgd.fgsm and callable(margin)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_a_name_that_attacks_does_not_have_is_an_attribute_error():
    import attacks

    with pytest.raises(AttributeError, match="module 'attacks' has no attribute 'pgdd'"):
        attacks.pgdd  # noqa: B018
