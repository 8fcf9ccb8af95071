"""Published recipes: what each file must say, and that its evaluation is the row's of Table 1."""

import inspect
import re

import pytest
import yaml

from attacks import BadInput
from attacks.pixels import Pixels, fraction
from benchmark import published, suite
from benchmark.experiment import resolve
from benchmark.results import survey
from methods import catalogue
from methods.recipe import Recipe

ROWS = survey.table1().drop_duplicates("method_key").set_index("method_key")
# Which settings of Recipe count only for one optimizer or schedule; every recipe says the others that are not off.
COUNTS = {
    "sgd": {"momentum"},
    "adam": set(),
    "rmsprop": {"momentum", "rms_decay", "rms_epsilon"},
    "constant": set(),
    "piecewise": {"milestones"},
    "exponential": {"decay", "decay_every"},
    "cyclic": {"peak_at"},
    "cosine": set(),
}
ALWAYS = {"epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule"}
LOSSES = {"ce": {"ce"}, "margin": {"margin"}, "ce and margin": {"both"}}
WITHOUT_SOURCE = ("name", "title", "note", "track", "seeds", "based_on")


def key_of(name):
    return name.removeprefix("published/")


def row_of(name):
    return ROWS.loc[key_of(name)] if key_of(name) in ROWS.index else None


def plain(name):
    return yaml.safe_load((suite.FOLDER / f"{name}.yaml").read_text())


def test_every_method_of_the_catalogue_has_its_recipe():
    assert {key_of(name) for name in published.names()} == {*catalogue.names()}


@pytest.mark.parametrize("name", published.names())
def test_a_recipe_is_a_suite_of_one_method_that_resolves(name):
    found = published.load(name)
    key = key_of(name)
    assert (found.name, found.track, list(found.methods)) == (f"published-{key}", "published", [key])
    assert catalogue.get(key).card.key == key
    settings = resolve(key, found.methods[key] or {}, found.inner_steps)
    for setting, value in (found.methods[key] or {}).items():
        if isinstance(value, dict):
            assert {part: settings[setting][part] for part in value} == value
        else:
            assert settings[setting] == value


@pytest.mark.parametrize("name", published.names())
def test_a_recipe_written_out_and_read_again_is_the_same(name, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(published.load(name).as_plain(), sort_keys=False))
    assert published.load(str(path)) == published.load(name)


@pytest.mark.parametrize("name", published.names())
def test_a_recipe_says_every_setting_of_its_method(name):
    kind = catalogue.get(key_of(name))
    if not kind.faces_adversary:
        return
    said = plain(name)["methods"][key_of(name)] or {}
    known = set(inspect.signature(kind.__init__).parameters) - {"self", "network", "threat", "common", "recipe", "seed"}
    assert set(said) == known
    if "inner" in known:
        start = said["inner"]["start"]
        needed = {"steps", "step_size", "start", "mode", "keep"} | ({"scale", "boxed"} if start != "none" else set())
        assert needed <= set(said["inner"])


@pytest.mark.parametrize("name", published.names())
def test_a_recipe_says_how_it_is_trained(name):
    said = plain(name)["recipe"]
    needed = ALWAYS | COUNTS[said["optimizer"]] | COUNTS[said["schedule"]]
    assert needed <= set(said)
    assert set(said) <= set(Recipe.__dataclass_fields__)
    if said["schedule"] == "piecewise":
        assert ("decay" in said) != ("levels" in said)


@pytest.mark.parametrize("name", published.names())
def test_every_value_of_a_recipe_has_its_source_behind_it(name):
    text, block = (suite.FOLDER / f"{name}.yaml").read_text(), False
    assert text.startswith(f"# {key_of(name)}: ")
    for line in text.splitlines():
        word = re.match(r"\s*([\w@]+):", line)
        block = not word and block
        if block or line.lstrip().startswith("#") or line.startswith(WITHOUT_SOURCE):
            block = block or line.endswith(">-")
            continue
        value = line.split("  #")[0].partition(":")[2].strip()
        if value:
            assert re.search(r"  # (spec|row|ours): .", line), line


@pytest.mark.parametrize("name", [name for name in published.names() if row_of(name) is not None])
def test_a_recipe_is_evaluated_as_its_row_was(name):
    found, row = published.load(name), row_of(name)
    attack, evaluation = found.evaluation.row, found.evaluation
    assert attack is not None
    assert evaluation.attacks[0] == "row"
    assert {"pgd20", "autoattack"} <= set(evaluation.attacks)
    assert attack.epsilon == pytest.approx(fraction(row.eval_epsilon))
    if row.eval_loss in LOSSES:
        assert {attack.loss} == LOSSES[row.eval_loss]
    if row.eval_targeted:
        assert (attack.target != "none") == (row.eval_targeted == "yes")
    if row.eval_steps:
        assert attack.steps == int(row.eval_steps)
    if row.eval_step_size:
        printed = Pixels.read(row.eval_step_size).at(attack.epsilon)
        assert Pixels.read(attack.step_size).at(attack.epsilon) == pytest.approx(printed)
    if row.eval_random_start:
        assert attack.random_start == (row.eval_random_start == "yes")
    if row.eval_restarts:
        assert attack.restarts == int(row.eval_restarts)
    if row.eval_iterate:
        assert attack.iterate == row.eval_iterate
    if row.checkpoint != "unknown":
        assert evaluation.ranked_checkpoint == row.checkpoint.partition("-")[0]


@pytest.mark.parametrize("name", [name for name in published.names() if row_of(name) is not None])
def test_a_recipe_trains_on_the_data_and_at_the_radius_of_its_row(name):
    found, row = published.load(name), row_of(name)
    assert survey.letters(found.dataset.name).startswith(survey.letters(row.dataset_read))
    trained = re.search(r"\d+/\d+|0\.\d+", row.train_epsilon)
    if trained and "up to" not in row.train_epsilon:
        assert found.threat.epsilon == pytest.approx(fraction(trained[0]), abs=1e-3)


# What is told to those who write one


def test_a_suite_of_several_methods_is_no_recipe():
    with pytest.raises(BadInput, match="such as published/trades, but quickstart has 8: name the method and --suite"):
        published.load("quickstart")


@pytest.mark.parametrize("wrong", ["trades", "published/trade", "publishd/trades"])
def test_a_misspelled_recipe_is_told_the_nearest(wrong):
    with pytest.raises(BadInput, match=f"there is no suite '{wrong}': did you mean published/trades?"):
        published.load(wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"evaluation.row.epsilon": 0.5}, "evaluation.row.epsilon lies among evaluation.ranked_at"),
        ({"evaluation.row.epsilon": "much"}, "evaluation.row.epsilon is a number in pixel units"),
        ({"evaluation.row.steps": 0}, "evaluation.row.steps is 1 or more"),
        ({"evaluation.row.restarts": 0}, "evaluation.row.restarts is 1 or more"),
        ({"evaluation.row.step_size": "long"}, "evaluation.row.step_size is a number in pixel units"),
        ({"evaluation.row.loss": "kl"}, "evaluation.row.loss: Expected a Literal.*kl"),
        ({"evaluation.row.restart": 2}, "there is no key evaluation.row.restart: did you mean restarts?"),
        ({"evaluation.row.colour": 2}, "there is no key evaluation.row.colour: it has epsilon, steps, loss"),
        ({"evaluation.row": {"steps": 20}}, "evaluation.row says epsilon, but found only steps"),
        ({"evaluation.row": "PGD-20"}, "evaluation.row holds keys and their values, but found 'PGD-20'"),
        ({"evaluation.row.target": "random", "evaluation.row.labels": "predicted"}, "labels is true where the row has"),
    ],
)
def test_a_mistake_in_a_rows_attack_is_named(change, says):
    with pytest.raises(BadInput, match=says):
        published.load("published/trades", change)


def test_a_suite_without_a_row_cannot_attack_as_one(atbench, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert atbench("run", "quickstart", "--set", "evaluation.attacks=[row]") == 2
    assert "the attack row is what evaluation.row says, but this suite has none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
