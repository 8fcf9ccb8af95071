"""A suite's file: what it may say, what it is told where it says something else, and what comes out."""

from dataclasses import replace

import pytest
import yaml

from attacks import BadInput
from benchmark import suite
from benchmark.experiment import plan
from benchmark.suite import Suite, load, read_change


def write(folder, text, name="mine.yaml"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return str(path)


def complaint(*words, **changes):
    with pytest.raises(BadInput) as caught:
        plan(load(*words, **changes))
    return str(caught.value)


@pytest.mark.parametrize("name", suite.names())
def test_every_suite_that_comes_with_the_project_loads_and_plans(name):
    found = load(name)
    experiments = plan(found)
    assert found.name == name
    assert found.title
    assert len(experiments) == len(found.methods) * len(found.seeds) * len(found.dataset.folds)
    assert len({experiment.name for experiment in experiments}) == len(experiments)


@pytest.mark.parametrize("name", suite.names())
def test_a_suite_written_out_and_read_again_is_the_same_suite(name, tmp_path):
    plain = load(name).as_plain()
    path = write(tmp_path, yaml.safe_dump(plain, sort_keys=False))
    again = load(path)
    assert again == load(name)
    assert again.as_plain() == plain
    assert [experiment.name for experiment in plan(again)] == [experiment.name for experiment in plan(load(name))]


def test_digits_common_is_what_the_protocol_says():
    found = load("digits-common")
    recipe = found.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.momentum) == (30, 64, "sgd", 0.9)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.schedule) == (0.05, 5e-4, "cyclic")
    assert (found.threat.norm, found.threat.epsilon, found.inner_steps) == ("linf", 0.15, 7)
    assert found.evaluation.epsilons == [0.05, 0.1, 0.15, 0.2, 0.3]
    assert found.evaluation.ranked_at == [0.15, 0.2]
    assert found.dataset.augment is False
    assert "no evidence about methods on natural images" in found.note


def test_quickstart_differs_from_digits_common_only_where_its_file_says_so():
    quick, whole = load("quickstart"), load("digits-common")
    evaluation = replace(whole.evaluation, ranked_at=[0.15], images=200)
    same = {"name": "quickstart", "title": "Quickstart", "evaluation": evaluation, "methods": quick.methods}
    assert quick == replace(whole, **same, curves=None)
    assert len(quick.methods) == 8
    assert {e.name for e in plan(quick)} < {e.name for e in plan(whole)}  # so that weights are trained once for both


def test_a_suite_may_be_based_on_another_file_beside_it(tmp_path, monkeypatch):
    write(tmp_path / "suites", "based_on: quickstart\nname: base\nrecipe: {epochs: 3}\n", "base.yaml")
    child = write(tmp_path / "suites", "based_on: base.yaml\nname: child\nrecipe: {batch_size: 32}\n", "child.yaml")
    monkeypatch.chdir(tmp_path)
    found = load(child)
    assert (found.name, found.recipe.epochs, found.recipe.batch_size) == ("child", 3, 32)


def test_methods_of_a_suite_replace_those_that_it_is_based_on(tmp_path):
    found = load(write(tmp_path, "based_on: quickstart\nname: two\nmethods: {trades: {beta: 1}, natural: }\n"))
    assert found.methods == {"trades": {"beta": 1}, "natural": None}


def test_suites_that_are_based_on_each_other_are_told_so(tmp_path):
    first = write(tmp_path, "based_on: b.yaml\nname: a\n", "a.yaml")
    write(tmp_path, "based_on: a.yaml\nname: b\n", "b.yaml")
    assert "based_on leads in a circle" in complaint(first)


def test_a_change_wins_over_the_file_and_makes_what_is_missing():
    found = load("quickstart", {"recipe.epochs": 2, "methods.pgd_at.inner.steps": 3, "dataset.train_images": 200})
    assert (found.recipe.epochs, found.dataset.train_images) == (2, 200)
    assert found.recipe.batch_size == load("quickstart").recipe.batch_size
    steps = {e.method: e.settings["inner"]["steps"] for e in plan(found) if "inner" in e.settings}
    assert steps == dict.fromkeys(steps, 7) | {"pgd_at": 3}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("recipe.epochs=2", "recipe.epochs", 2),
        ("threat.epsilon=8/255", "threat.epsilon", "8/255"),
        ("evaluation.attacks=[pgd20, cw20]", "evaluation.attacks", ["pgd20", "cw20"]),
        ("methods.natural=", "methods.natural", None),
        ("title=a=b", "title", "a=b"),
    ],
)
def test_a_change_reads_as_yaml(text, key, value):
    assert read_change(text) == (key, value)


@pytest.mark.parametrize("text", ["recipe.epochs", "=3", "a=[1"])
def test_a_change_that_is_none_is_shown_how_to_be_one(text):
    with pytest.raises(BadInput, match="--set"):
        read_change(text)


def test_numbers_may_be_written_as_people_write_them():
    found = load(
        "quickstart",
        {
            "recipe.learning_rate": "1e-2",  # which YAML takes for a word
            "threat.epsilon": "8/255",
            "evaluation.epsilons": ["8/255", "0.1", 0.2],
            "evaluation.ranked_at": ["8/255"],
        },
    )
    assert found.recipe.learning_rate == 0.01
    assert found.threat.epsilon == 8 / 255
    assert found.evaluation.epsilons == [8 / 255, 0.1, 0.2]
    assert found.evaluation.ranked_at == [8 / 255]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipee: {epochs: 2}", "'recipee': did you mean recipe?"),
        ("recipe: {epoch: 2}", "'epoch': did you mean epochs?"),
        ("evaluation: {imags: 2}", "'imags': did you mean images?"),
        ("recipe: {epochs: two}", "recipe.epochs"),
        ("recipe: {epochs: 0}", "recipe.epochs lies between 1"),
        ("recipe: {optimizer: sdg}", "recipe.optimizer"),
        ("recipe:", "recipe holds keys"),
        ("dataset: digits", "dataset holds keys"),
        ("track: commun", "track"),
        ("seeds: 3", "seeds"),
        ("seeds: []", "seeds holds at least one value"),
        ("seeds: [1, 1]", "seeds holds every value once"),
        ("dataset: {folds: []}", "dataset.folds holds at least one value"),
        ("methods: {}", "methods names at least one"),
        ("methods: [pgd_at]", "methods"),
        ("threat: {norm: l3}", "threat.norm"),
        ("threat: {epsilon: much}", "threat.epsilon is a number in pixel units"),
        ("evaluation: {epsilons: [-0.1]}", "evaluation.epsilons is a number in pixel units"),
        ("evaluation: {ranked_at: [0.5]}", "evaluation.ranked_at lies among evaluation.epsilons"),
        ("evaluation: {ranked_at: []}", "evaluation.ranked_at holds at least one value"),
        ("evaluation: {attacks: [pgd20, pgd20]}", "evaluation.attacks holds every value once"),
        ("evaluation: {ranked_checkpoint: best, checkpoints: [last]}", "evaluation.ranked_checkpoint"),
        ("evaluation: {batch_size: 0}", "evaluation.batch_size is 1 or more"),
        ("evaluation: {images: 0}", "evaluation.images is 1 or more"),
        ("evaluation: {steps: 0}", "evaluation.steps is 1 or more"),
        ("evaluation: {step_size: epsilon/x}", "evaluation.step_size is written like"),
    ],
)
def test_a_mistake_in_a_suite_is_told_with_file_and_key(text, says, tmp_path):
    path = write(tmp_path, f"based_on: quickstart\nname: mine\n{text}\n")
    told = complaint(path)
    assert told.startswith(f"{path}: ")
    assert says in told
    assert "<class" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": {"trade": None}}, "did you mean trades?"),
        ({"methods.trades.betta": 3}, "methods.trades: Option 'betta' is not accepted: did you mean beta?"),
        ({"methods.pgd_at.inner.step": 3}, "did you mean steps?"),
        ({"methods.pgd_at.inner.start": "unifrm"}, "uniform"),
        ({"inner_steps": -1}, "inner.steps is 0 or more"),
        ({"dataset.name": "digit"}, "did you mean digits?"),
        ({"network.name": "digits_cn"}, "did you mean digits_cnn?"),
        ({"recipe.epochs.more": 3}, "epochs holds a value, not keys"),
    ],
)
def test_a_mistake_in_a_name_or_a_methods_setting_is_told_with_what_comes_nearest(changes, says):
    told = complaint("quickstart", changes=changes)
    assert says in told
    assert "\n" not in told


def test_a_misspelt_suite_is_told_what_comes_nearest(tmp_path):
    assert "did you mean quickstart?" in complaint("quikstart")
    assert "digits-common, digits-variants, quickstart" in complaint("cifar")
    path = write(tmp_path, "based_on: quikstart\nname: x\n")
    assert complaint(path).startswith(f"{path}: based_on: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "key: value pairs"),
        ("- a\n", "key: value pairs"),
        ("name: [a\n", "line 2"),
        ("methods: {natural: }\n", "name"),
    ],
)
def test_a_file_that_is_no_suite_is_named(text, says, tmp_path):
    path = write(tmp_path, text)
    told = complaint(path)
    assert path in told
    assert says in told


def test_a_file_that_is_not_there_is_named():
    assert "nothere.yaml" in complaint("nothere.yaml")


def test_reading_a_suite_executes_nothing(tmp_path):
    path = write(tmp_path, f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    assert path in complaint(path)
    assert not (tmp_path / "made").exists()


def test_a_suites_name_follows_from_what_changes_the_weights_and_from_nothing_else():
    def names(**changes):
        return {e.method: e.name for e in plan(load("quickstart", changes))}

    plain = names()
    for key, value in {
        "recipe.epochs": 29,
        "recipe.learning_rate": 0.2,
        "recipe.batch_size": 32,
        "recipe.average": "ema",
        "seeds": [1],
        "network.settings.width": 8,
        "dataset.train_images": 400,  # enough for 200 labels
        "dataset.validation_images": 100,
        "dataset.folds": [1],
        "dataset.augment": True,
        "precision": "bf16-mixed",
    }.items():
        changed = names(**{key: value})
        assert [method for method in plain if changed[method] == plain[method]] == [], key
    for key, value in {
        "title": "another",
        "note": "another",
        "name": "another",
        "evaluation.images": 3,
        "evaluation.attacks": ["pgd20"],
        "evaluation.seed": 5,
    }.items():
        assert names(**{key: value}) == plain, key


def test_a_threat_and_inner_steps_are_nothing_to_natural_training():
    plain = {e.method: e.name for e in plan(load("quickstart"))}
    for key, value, same in (
        ("threat.epsilon", 0.3, {"natural"}),
        ("threat.norm", "l2", {"natural"}),
        ("inner_steps", 3, {"natural", "free_at", "fast_at"}),  # these take one step by definition
        ("methods.pgd_at.inner.steps", 3, set(plain) - {"pgd_at"}),
    ):
        changed = {e.method: e.name for e in plan(load("quickstart", {key: value}))}
        assert {method for method in plain if changed[method] == plain[method]} == same, key


def test_an_experiments_name_is_a_plain_folder_name():
    for experiment in plan(load("quickstart", {"seeds": [0, 1], "dataset.folds": [0, 3]})):
        assert experiment.name.replace("-", "").replace("_", "").isalnum()
        assert f"-s{experiment.seed}-" in experiment.name
        assert ("-f3-" in experiment.name) == (experiment.fold == 3)


def test_evaluation_sorts_its_radii_and_a_default_suite_is_legal():
    found = load("quickstart", {"evaluation.epsilons": [0.2, 0.1, 0.1], "evaluation.ranked_at": [0.2, 0.1]})
    assert found.evaluation.epsilons == found.evaluation.ranked_at == [0.1, 0.2]
    assert Suite(name="x").evaluation.ranked_at == [8 / 255]
