"""What a faithful implementation of adversarial pre-training and fine-tuning must show."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from attacks import BadInput, ThreatModel
from benchmark import suite
from benchmark.experiment import plan
from benchmark.storage import save_weights
from methods import PGDAT, Pretraining
from methods.inner import Inner
from methods.recipe import Recipe
from methods.semi_supervised.pretraining import digest, usual_tuning
from methods.turned import negative_transposed
from tests.methods.tools import assert_same, images, loader, network, redrawn, trace, trainer, weights

THREAT = ThreatModel("linf", 0.1)
INNER = Inner(steps=2, step_size="epsilon/4", start="uniform", boxed=False, mode="train")
RECIPE = Recipe(epochs=3, learning_rate=0.05, schedule="cyclic")


class Watch(pl.Callback):
    """Notes weights, learning rate, radius and momentum as each step begins."""

    def __init__(self) -> None:
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        optimizer = trainer.optimizers[0]
        self.steps.append(
            {
                "weights": weights(pl_module.network),
                "rate": optimizer.param_groups[0]["lr"],
                "radius": pl_module.present_threat().epsilon,
                "settled": pl_module.settled,
            }
        )


class After(pl.Callback):
    """Notes what the method's own hook, which comes later, has left for the first forward of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.found, self.memory = epoch, None, None

    def setup(self, trainer, pl_module, stage):
        loss = pl_module.training_loss

        def watched(batch):
            if trainer.current_epoch == self.epoch and self.found is None:
                self.found, self.memory = weights(pl_module.network), len(trainer.optimizers[0].state)
            return loss(batch)

        pl_module.training_loss = watched


def method(recipe=RECIPE, body=None, **own):
    inner = own.pop("inner", INNER)
    return Pretraining(network() if body is None else body, THREAT, recipe=recipe, inner=inner, **own)


def fitted(of, *callbacks, epochs=None, data=None):
    trainer(epochs or of.data_passes(), *callbacks).fit(of, loader() if data is None else data, loader())
    return of


def test_stage_b_alone_at_the_whole_rate_is_pgd_training():
    ours = fitted(method(source="none", tuning_epochs=3))
    theirs = PGDAT(network(), THREAT, recipe=RECIPE, inner=INNER)
    fitted(theirs)
    assert_same(weights(ours.network), weights(theirs.network))


def test_without_stage_b_the_weights_are_those_of_pgd_training_on_the_source():
    x, y = images()
    source = DataLoader(TensorDataset(negative_transposed(x), y), batch_size=8)
    theirs = fitted(PGDAT(network(), THREAT, recipe=RECIPE, inner=INNER), data=source)
    ours = fitted(method(tuning_epochs=0))
    assert_same(weights(ours.network), weights(theirs.network))
    assert ours.settled


def test_stage_b_begins_with_all_of_stage_a_but_the_last_layer_and_without_its_momentum():
    watch, after = Watch(), After(2)
    ours = fitted(method(), watch, after)
    first = 2 * 3  # two of three epochs of three batches
    ended, began = watch.steps[first]["weights"], after.found
    assert {name for name in ended if not torch.equal(ended[name], began[name])} == {"8.weight", "8.bias"}
    assert after.memory == 0
    assert all(parameter.requires_grad for parameter in ours.network.parameters())
    trained = weights(ours.network)
    assert [name for name in trained if torch.equal(trained[name], began[name])] == []
    assert [step["settled"] for step in watch.steps] == [False] * 6 + [True] * 3
    assert [line["tuning"] for line in ours.history] == [0, 0, 1]
    body = network()
    body.load_state_dict(ended)
    assert ours.begun_from == digest(body)


def test_the_stand_in_is_the_image_mirrored_at_its_diagonal_and_inverted():
    x = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    assert negative_transposed(x).tolist() == [[[[1.0, 0.5], [0.75, 0.0]]]]
    assert negative_transposed(x, 0.0, 2.0)[0, 0, 0, 0] == 2
    with pytest.raises(BadInput, match="they are square, but found 2x1"):
        negative_transposed(x[..., :1])


def test_one_step_without_a_start_is_fgsm_of_a_quarter_of_epsilon():
    (x, y), ours = images(), method(inner=replace(INNER, steps=1, start="none")).train()
    point = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(network().train()(point), y, reduction="sum")
    (slope,) = torch.autograd.grad(loss, point)
    expected = (x + 0.025 * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(trace(ours, (x, y)).adversarial, expected)


@pytest.mark.parametrize(("centre", "least", "most"), [("image", 0.09, 0.1), ("start", 0.12, 0.2)])
def test_images_stay_within_epsilon_but_for_the_authors_slip(centre, least, most):
    x, y = torch.full((24, 1, 8, 8), 0.5), images()[1]
    ours = method(centre=centre, inner=replace(INNER, steps=5)).train()
    assert least <= (trace(ours, (x, y)).adversarial - 0.5).abs().max() <= most + 1e-6


def test_the_published_rate_of_stage_b_falls_from_a_thousandth_to_nothing_step_by_step():
    ours = method(recipe=Recipe(epochs=5, learning_rate=0.1, schedule="cosine"), source="none", tuning_rate=0.01)
    ours.total_updates = lambda: 1955
    rates = [ours.learning_rate_at((step + 1) / 1955) for step in range(1955)]
    assert rates[0] == pytest.approx(1e-3, rel=1e-5)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates == sorted(set(rates), reverse=True)


def test_each_stage_runs_the_whole_schedule_and_the_radius_is_ramped_in_stage_a_alone():
    watch, recipe = Watch(), replace(RECIPE, epochs=6, epsilon_ramp=0.5)
    fitted(method(recipe=recipe, tuning_rate=0.5), watch)  # twelve steps and six
    rates = [step["rate"] for step in watch.steps]
    assert [max(rates[:12]), rates[11], max(rates[12:]), rates[17]] == pytest.approx([0.05, 0, 0.025, 0])
    radii = [step["radius"] for step in watch.steps]
    assert radii == pytest.approx([0.1 * min(1, (step + 1) / 6) for step in range(12)] + [0.1] * 6)


@pytest.mark.parametrize(("epochs", "tuning"), [(1, 1), (2, 1), (3, 1), (10, 3), (30, 10), (105, 5), (110, 5)])
def test_stage_b_is_a_third_of_short_trainings_and_a_twenty_first_of_long_ones(epochs, tuning):
    assert usual_tuning(epochs) == tuning
    ours = method(recipe=Recipe(epochs=epochs))
    assert (ours.data_passes(), ours.source_epochs) == (epochs, epochs - tuning)


@pytest.mark.parametrize(
    ("rate", "steps", "peak"),
    [
        (0.1, 100, 0.02),
        (0.1, 237, 0.0084),
        (0.1, 1400, 0.0014),
        (0.1, 1955, 0.001),
        (0.1, 9000, 0.001),
        (0.01, 9, 0.01),
    ],
)
def test_the_rate_of_stage_b_makes_up_for_few_steps(rate, steps, peak):
    ours = method(recipe=Recipe(learning_rate=rate))
    assert rate * ours.rate_factor(steps) == pytest.approx(peak, rel=0.03)
    assert method(tuning_rate=0.01).rate_factor(steps) == 0.01


def test_a_weight_average_begins_anew_with_stage_b():
    recipe = replace(RECIPE, average="swa")
    ours = fitted(method(recipe=recipe))
    assert int(ours.averaged.n_averaged) == 3


def test_weights_of_another_task_are_taken_up_and_its_last_layer_makes_room(tmp_path):
    body = redrawn(network(), 5)
    body[-1] = torch.nn.Linear(96, 7)
    ours, after = method(source=str(tmp_path / "other.safetensors")), After(0)
    ours.begin_from(weights(body))
    taken = weights(ours.network)
    assert [name for name in taken if not torch.equal(taken[name], weights(body)[name])] == ["8.weight", "8.bias"]
    fitted(ours, after)
    assert [name for name in taken if not torch.equal(taken[name], after.found[name])] == ["8.weight", "8.bias"]
    assert (ours.data_passes(), ours.source_epochs) == (1, 0)
    assert "another task" in ours.remarks()["mark"]
    with pytest.raises(
        BadInput, match=r"of this network in .*other\.safetensors, its last layer aside, but found other 0\.bias"
    ):
        ours.begin_from({name.replace("0.", "00."): value for name, value in weights(body).items()})


def test_a_file_of_weights_is_known_by_its_hash_and_not_by_its_place(tmp_path):
    names = []
    for file, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{file}.safetensors"
        save_weights(path, redrawn(network(), seed).state_dict())
        (of,) = plan(suite.load("quickstart", {"methods": {"pretraining": {"source": str(path)}}}))
        names.append(of.name)
    assert names[0] == names[1] != names[2]
    (gone,) = plan(suite.load("quickstart", {"methods": {"pretraining": {"source": "no.safetensors"}}}))
    with pytest.raises(BadInput, match="source names a file of weights, but there is no"):
        _ = gone.name


def test_the_row_says_that_its_source_is_a_stand_in():
    told = fitted(method()).remarks()
    assert (told["source_epochs"], told["tuning_epochs"]) == (2, 1)
    assert told["mark"].startswith("extra data: none, stand-in source")
    assert "not to be ranked" in method(centre="start").remarks()["centre"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": "imagenet"}, "source is mirrored, none or a FILE.safetensors, but found 'imagenet'"),
        ({"tuning_epochs": 4}, r"tuning_epochs lies between 0 and recipe.epochs \(3\)"),
        ({"source": "none", "tuning_epochs": 0}, r"tuning_epochs lies between 1 and recipe.epochs \(3\)"),
        ({"tuning_rate": -1.0}, "tuning_rate is 0 or more"),
        ({"centre": "x"}, "centre is one of image, start"),
    ],
)
def test_mistakes_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        method(**wrong)
