import subprocess
import sys

import pytest

import methods
from attacks import BadInput
from methods import catalogue
from methods.base import AdversarialTraining


@pytest.mark.parametrize("name", catalogue.names())
def test_every_key_loads_a_method_whose_card_repeats_the_key(name):
    method = catalogue.get(name)
    assert issubclass(method, AdversarialTraining)
    assert method.card.key == name
    assert method.__module__.endswith(f".{name}")
    assert getattr(methods, method.__name__) is method


def test_the_five_first_methods_are_there_in_the_surveys_order():
    assert [name for name in catalogue.names() if name in ("natural", "pgd_at", "trades", "mart", "fast_at")] == [
        "natural",
        "pgd_at",
        "trades",
        "mart",
        "fast_at",
    ]


@pytest.mark.parametrize(("written", "meant"), [("trade", "trades"), ("pgdat", "pgd_at"), ("fastat", "fast_at")])
def test_a_misspelling_suggests_the_nearest_name(written, meant):
    with pytest.raises(BadInput, match=f"no method '{written}': did you mean {meant}\\?"):
        catalogue.get(written)


def test_a_name_like_no_other_lists_those_that_are_there():
    with pytest.raises(BadInput, match="there are natural, fgsm_at"):
        catalogue.get("quux")


def test_two_methods_under_one_key_are_an_error_that_names_both():
    with pytest.raises(RuntimeError, match=r"key trades: methods\.a\.trades:One and methods\.b\.trades:Two"):
        catalogue._table(["a.trades:One", "b.trades:Two"])


def test_a_class_is_imported_by_its_name_and_an_unknown_one_is_refused():
    from methods import TRADES

    assert TRADES is catalogue.get("trades")
    with pytest.raises(ImportError, match="cannot import name 'Trads'"):
        from methods import Trads  # noqa: F401


def test_looking_names_up_imports_neither_torch_nor_lightning():
    script = (
        "import sys; from methods import catalogue; catalogue.names();"
        "assert not {'torch', 'pytorch_lightning'} & set(sys.modules), 'loaded too early'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
