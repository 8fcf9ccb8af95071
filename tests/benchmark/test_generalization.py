"""Accuracy on training and on test images over the epochs: what is measured, and that measuring it changes nothing."""

import json

import pytest
import torch
import yaml

from attacks import BadInput
from benchmark import ranks, suite
from benchmark.curves import Curves
from benchmark.data import load
from benchmark.devices import Devices
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import plan
from benchmark.generalization import Generalization, Measured, bring, way_of
from benchmark.results.curves import NAME, curve_path, read_curves
from benchmark.storage import sha256
from benchmark.tasks import Places, Task, perform, restore
from benchmark.training import CARD, train

SMALL = {"recipe.epochs": 5, "dataset.train_images": 96, "dataset.validation_images": 30, "inner_steps": 1}
SMALL |= {"dataset.labels": 30}
CURVES = {"images": 20, "every": 2}
PASSES = 1 + 2 * 10 + 1  # of an image: clean, ten steps forward and backward, attacked


def experiment(name="pgd_at", curves=CURVES, **changes):
    changed = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return plan(suite.load("quickstart", changed | {"methods": {name: None}, "curves": curves}))[0]


def splits(of):
    chosen = of.dataset
    return load("digits", train_images=chosen.train_images, validation_images=chosen.validation_images)


def measured(of):
    return Measured.of(of, splits(of))


def content(folder):
    return json.loads((folder / NAME).read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    of, folder = experiment(), tmp_path_factory.mktemp("curves") / "with"
    return of, folder, train(of, folder)


def test_the_weights_and_the_card_are_the_same_with_curves_and_without(trained, tmp_path):
    of, folder, card = trained
    without = experiment(curves=None)
    assert without.name == of.name
    plain = train(without, tmp_path)
    assert not (tmp_path / NAME).exists()
    for file in ("last", "best"):
        assert sha256(folder / f"{file}.safetensors") == sha256(tmp_path / f"{file}.safetensors")
    moody = ("seconds", "device_hours", "peak_memory_mib", "memory_growth_mib")
    same = [{key: value for key, value in each.items() if not key.endswith(moody)} for each in (card, plain)]
    assert same[0] == same[1]  # the epoch that is kept, the passes of training and of selection, the history


def test_every_second_epoch_is_measured_and_so_are_the_networks_that_are_kept(trained):
    of, folder, card = trained
    found = content(folder)
    kept = {name: card["weights"][name]["epoch"] for name in ("last", "best")}
    assert (found["kept"], found["whole"], found["way"]) == (kept, True, way_of(of))
    epochs = {line["epoch"] for line in found["lines"]}
    assert epochs == {0, 2, 4, *kept.values()}
    assert len(found["lines"]) == 4 * len(epochs)
    assert {line["images"] for line in found["lines"]} == {20}
    for name, epoch in kept.items():
        network = restore(of, folder / f"{name}.safetensors", card["weights"][name]["sha256"])
        again = measured(of).lines(network, epoch)
        assert [line for line in found["lines"] if line["epoch"] == epoch] == again


def test_what_it_costs_is_counted_apart(trained):
    of, folder, _ = trained
    found = content(folder)
    last = 1 if of.curves.every == 2 else 0  # epoch 4 is measured in its turn and, as what is kept, once more
    looked = len(found["lines"]) // 4 + last
    assert found["cost"]["passes"] == pytest.approx(looked * 2 * 20 * PASSES / 96, abs=1e-5)
    assert found["cost"]["seconds"] > 0


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_training_that_was_stopped_measures_no_epoch_twice_and_leaves_none_out(trained, tmp_path, after):
    of, folder, _ = trained

    def tell(what, done, total):
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(of, tmp_path, tell=tell)
    assert not (tmp_path / NAME).exists()
    train(of, tmp_path)
    whole, resumed = content(folder), content(tmp_path)
    assert resumed["lines"] == whole["lines"]
    assert resumed["cost"]["passes"] == whole["cost"]["passes"]


def test_what_was_measured_in_another_way_is_not_gone_on_with():
    one, other = experiment(), experiment(curves={"images": 10})
    curve = Generalization(one, measured(one))
    curve.measure(one.build_network(), 0)
    again, another = Generalization(one, measured(one)), Generalization(other, measured(other))
    again.load_state_dict(curve.state_dict())
    another.load_state_dict(curve.state_dict())
    assert (again.lines, again.passes, another.lines) == (curve.lines, curve.passes, {})


def test_several_devices_measure_what_one_does_once(tmp_path):
    of = experiment(recipe__epochs=2, recipe__batch_size=32, curves={"images": 20})
    ranks.train_on_ranks(of, tmp_path, Devices(2), lambda *news: None)
    found = content(tmp_path)
    assert [line["epoch"] for line in found["lines"]] == [0] * 4 + [1] * 4
    assert found["cost"]["passes"] == pytest.approx(3 * 2 * 20 * PASSES / 96, abs=1e-5)  # the last epoch twice


def test_a_network_is_measured_in_eval_mode_and_left_as_it_was():
    of = experiment()
    network, modes = of.build_network(), []
    network.register_forward_hook(lambda module, *_: modes.append(module.training))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state()
    with torch.inference_mode():  # Lightning's
        first = measured(of).lines(network, 0)
    assert network.training
    assert not any(modes)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states)
    assert measured(of).lines(network, 0) == first  # nothing is drawn anew


def test_a_network_that_draws_in_eval_mode_leaves_trainings_generator_alone():
    of = experiment()

    class Drawing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = of.build_network()

        def forward(self, x):
            return self.body(x + 0.1 * torch.randn_like(x))

    states = torch.get_rng_state()
    measured(of).lines(Drawing(), 0)
    assert torch.equal(torch.get_rng_state(), states)


def test_training_images_are_neither_held_out_nor_without_a_label():
    parts, rst = measured(experiment()).parts, measured(experiment("rst")).parts
    of = experiment("rst")
    held_out = set(splits(of).validation.index.tolist())
    assert len(parts["train"]) == len(parts["test"]) == 20
    assert not held_out & set(parts["train"].index.tolist())
    assert set(rst["train"].index.tolist()) <= set(of.labelled)
    assert len(measured(experiment("rst", curves={"images": 50})).parts["train"]) == 30
    assert torch.equal(parts["test"].index, splits(of).test.index[:20])


def test_of_a_training_that_had_no_curves_the_networks_that_were_kept_are_measured(trained, tmp_path):
    of, folder, card = trained
    train(experiment(curves=None), tmp_path / of.name)
    path = curve_path(tmp_path / "report", of.name)
    bring(of, tmp_path / of.name, card["weights"], path, None)
    whole, found = content(folder), json.loads(path.read_text())
    kept = set(whole["kept"].values())
    assert found["lines"] == [line for line in whole["lines"] if line["epoch"] in kept]
    assert (found["whole"], found["kept"]) == (False, whole["kept"])
    lines, costs = read_curves(tmp_path / "report")
    assert set(lines.epoch) == kept
    assert not costs.whole.any()


def test_a_task_brings_the_curve_into_the_report(trained, tmp_path):
    of, folder, _ = trained
    places = Places(folder.parent, tmp_path)
    (folder.parent / of.name).mkdir()
    for path in (CARD, NAME):
        (folder.parent / of.name / path).write_bytes((folder / path).read_bytes())
    perform(Task(of), places, Evaluation(), lambda *news: None)
    assert curve_path(tmp_path, of.name).read_bytes() == (folder / NAME).read_bytes()


def test_curves_are_no_part_of_an_experiment_and_stand_in_the_suite_where_asked_for(tmp_path):
    asked = suite.load("quickstart", {"curves": {}})
    assert asked.curves == Curves(images=200, every=1)
    assert asked.as_plain()["curves"] == {"images": 200, "every": 1}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(asked.as_plain()))
    assert suite.load(str(tmp_path / "again.yaml")) == asked
    assert "curves" not in suite.load("quickstart").as_plain()
    assert suite.load("quickstart", {"curves.every": 4}).curves == Curves(every=4)
    assert experiment().name == experiment(curves=None).name


@pytest.mark.parametrize(
    ("curves", "sentence"),
    [
        ({"images": 0}, "curves.images is 1 or more, but found 0"),
        ({"every": -1}, "curves.every is 1 or more, but found -1"),
        ({"evry": 2}, "there is no key curves.evry: did you mean every?"),
        ({"x": 2}, "there is no key curves.x: it has images, every"),
        ({"images": "many"}, "curves.images is a whole number, but found 'many'"),
        ({"images": True}, "curves.images is a whole number, but found True"),
        (200, "curves holds keys and their values, such as images: 200, but found 200"),
    ],
)
def test_a_mistake_in_the_setting_is_told_with_its_key(curves, sentence):
    with pytest.raises(BadInput, match=sentence.replace("?", r"\?")):
        suite.load("quickstart", {"curves": curves})


def test_a_damaged_curve_is_named_in_one_sentence(trained, tmp_path):
    path = curve_path(tmp_path, "mine")
    path.parent.mkdir()
    for text in ("{", "[]", json.dumps(content(trained[1]) | {"kept": {"last": 4, "best": 99}})):
        path.write_text(text)
        with pytest.raises(BadInput, match=r"expected the curves of a training, found .*mine\.json; delete it"):
            read_curves(tmp_path)
