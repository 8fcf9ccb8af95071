"""What an experiment is: settings written out, a name that follows from them, one difference between two methods."""

import pytest
import yaml

from benchmark import suite
from benchmark.experiment import plan, resolve
from methods import catalogue

every_method = pytest.mark.parametrize("name", catalogue.names())


@every_method
def test_settings_survive_yaml(name):
    settings = resolve(name, {}, 7)
    read = yaml.safe_load(yaml.safe_dump(settings))
    assert read == settings
    assert resolve(name, read, 5) == settings  # written out, they no longer ask the preset for anything


@every_method
def test_the_presets_inner_steps_go_to_the_methods_that_have_them(name):
    inner = resolve(name, {}, 7).get("inner")
    by_definition = {  # one step, or a number of its own
        *("fgsm_at", "kurakin", "eat", "free_at", "fast_at", "gradalign", "single_step_checkpoints", "sads", "fgsmr"),
        *("yopo", "bilateral", "feature_scatter", "adv_interp"),
    }
    assert (inner is None) == (name in by_definition)
    assert inner is None or inner["steps"] == 7


def test_a_methods_own_steps_come_before_the_presets():
    assert resolve("pgd_at", {"inner": {"steps": 3}}, 7)["inner"]["steps"] == 3


def test_between_two_methods_of_a_common_suite_nothing_differs_but_the_method():
    first, *others = plan(suite.load("digits-common"))
    assert first.method == "natural"
    reference = others[0].identity()
    for other in others[1:]:
        differing = {key for key, value in other.identity().items() if value != reference.get(key)}
        data = set() if other.labels is None else {"dataset", "teacher"}  # class D: other data, that is fewer labels
        assert differing <= {"method", "settings"} | data
    differing = {key for key, value in first.identity().items() if value != reference[key]}
    assert differing == {"method", "settings", "threat"}  # natural training has no adversary: one run serves all


def test_names_tell_experiments_apart_and_stay_the_same():
    names = [experiment.name for experiment in plan(suite.load("digits-common"))]
    assert len(set(names)) == len(names)
    assert names == [experiment.name for experiment in plan(suite.load("digits-common"))]
