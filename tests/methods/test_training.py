"""Methods as an ordinary Lightning user meets them: fit, validate, stop, resume, average."""

import math
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from attacks import BadInput, ThreatModel
from methods import TRADES, Natural, catalogue
from methods.per_image import PerImage
from methods.recipe import Recipe
from methods.selection import KeepBest, Score
from tests.methods.tools import EPSILON, assert_same, build, images, loader, network, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore")
every_method = pytest.mark.parametrize("name", catalogue.names())
THREAT = ThreatModel("linf", EPSILON)


class Watch(pl.Callback):
    """Remembers what the classifier was at every step and at every epoch's validation."""

    def __init__(self):
        self.steps, self.rates, self.validated, self.scores = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append(weights(module.network))

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.validated.append(weights(module.classifier()))
            self.scores.append(module.held_out_score)


class SaveEachEpoch(pl.Callback):
    """As the harness does: a plain callback, which Lightning runs before the module's own end of epoch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


class Scripted(Natural):
    """Has the held-out scores that a test wants."""

    scores: tuple[float, ...] = ()

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.held_out_score = Score(self.scores[self.current_epoch], 0.5)


@pytest.mark.parametrize("validation", [True, False])
def test_an_ordinary_trainer_fits_a_method_on_pairs(validation):
    method = TRADES(network(), THREAT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu").fit(
            method, loader(), loader(seed=2) if validation else None
        )
    assert [line["epoch"] for line in method.history] == [0, 1]
    assert all(math.isfinite(line["loss"]) for line in method.history)
    assert ("held_out_robust" in method.history[-1]) == validation
    assert (method.held_out_score is not None) == validation


@every_method
def test_training_lowers_the_loss_and_validation_scores_the_held_out_images(name):
    method = build(name, network(), steps=2, recipe=Recipe(learning_rate=0.05, schedule="constant"))
    trainer(6).fit(method, loader(indexed=True), loader(seed=2, indexed=True))
    first = math.log(3) if name == "free_at" else method.history[0]["loss"]  # its first losses see next to no noise
    assert method.history[-1]["loss"] < first
    score = method.held_out_score
    assert 0 <= score.robust <= score.clean <= 1
    assert method.history[-1]["held_out_robust"] == score.robust


def test_validate_alone_works_in_lightnings_inference_mode():
    method = build("pgd_at", network())
    trainer(1).validate(method, loader(), verbose=False)
    assert 0 <= method.held_out_score.robust <= method.held_out_score.clean <= 1


def test_natural_training_is_scored_on_clean_images_alone():
    method = build("natural", network())
    trainer(1).validate(method, loader(), verbose=False)
    assert method.held_out_score.robust == method.held_out_score.clean


def test_the_held_out_score_is_at_the_full_radius_whatever_the_ramp():
    ramped = build("pgd_at", network(), recipe=Recipe(epsilon_ramp=1.0))
    plain = build("pgd_at", network())
    for method in (ramped, plain):
        trainer(1).validate(method, loader(), verbose=False)
    assert ramped.held_out_score == plain.held_out_score


def test_an_epoch_without_validation_has_no_score_of_another_epoch():
    method = build("natural", network())
    trainer(3, check_val_every_n_epoch=2).fit(method, loader(), loader())
    assert ["held_out_clean" in line for line in method.history] == [False, True, False]


def test_a_loss_that_is_no_number_ends_the_run_with_the_epoch_and_the_mend(tmp_path):
    method = build("natural", network(), recipe=Recipe(learning_rate=1e30, schedule="constant"))
    with pytest.raises(FloatingPointError, match=r"became nan in epoch 0 .*lower recipe\.learning_rate \(1e\+30\)"):
        trainer(2, SaveEachEpoch(tmp_path)).fit(method, loader())
    assert list(tmp_path.iterdir()) == []  # no checkpoint from which the broken run would go on


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


@pytest.mark.parametrize("data", [loader(), DataLoader(Stream(), batch_size=8)])
def test_training_without_an_end_is_refused(data):
    epochs = -1 if hasattr(data.dataset, "__len__") else 1
    with pytest.raises(BadInput, match="give the Trainer max_steps, or max_epochs and data of known length"):
        trainer(epochs).fit(build("natural", network()), data)


# The best epoch


def test_keep_best_holds_the_weights_of_the_selected_epoch_bit_for_bit():
    method, watch, best = Scripted(network(), THREAT), Watch(), KeepBest()
    method.scores = (0.2, 0.7, math.nan, 0.6)
    trainer(4, best, watch).fit(method, loader(), loader())
    assert (best.epoch, best.score) == (1, Score(0.7, 0.5))
    assert_same(best.weights, watch.validated[1])
    assert any("running_var" in name for name in best.weights)
    assert not torch.equal(best.weights["0.weight"], method.network.state_dict()["0.weight"])


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_keep_best_pairs_each_epoch_with_its_own_score(sanity_steps):
    watch, best = Watch(), KeepBest()
    method = build("pgd_at", network(), steps=2, recipe=Recipe(learning_rate=0.02))
    trainer(5, best, watch, num_sanity_val_steps=sanity_steps).fit(method, loader(), loader(seed=2))
    assert best.score == max(watch.scores)
    assert watch.scores[best.epoch] == best.score
    assert best.score not in watch.scores[best.epoch + 1 :]
    assert_same(best.weights, watch.validated[best.epoch])
    assert best.score.robust >= method.held_out_score.robust


@every_method
def test_selection_does_not_change_the_training(name):
    with_selection, without = (build(name, network(dropout=0.3), steps=2) for _ in range(2))
    trainer(2, KeepBest()).fit(with_selection, loader(indexed=True), loader(seed=2))
    trainer(2).fit(without, loader(indexed=True))
    assert_same(weights(with_selection.network), weights(without.network))


# Resuming


@every_method
@pytest.mark.parametrize("indexed", [True, False])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(name, indexed, tmp_path):
    def fit(*, resume=None):
        settings = {"start": "previous", "early_stop": True} if name == "fast_at" else {"steps": 2}
        recipe = Recipe(learning_rate=0.02, average="ema", average_decay=0.9, schedule="cyclic")
        method, best = build(name, network(dropout=0.3), recipe=recipe, **settings), KeepBest()
        run = trainer(3, best, SaveEachEpoch(tmp_path))
        run.fit(method, loader(indexed=indexed), loader(seed=2), ckpt_path=resume, weights_only=True)
        return method, best

    if not indexed and any(isinstance(value, PerImage) for value in vars(build(name, network())).values()):
        with pytest.raises(BadInput, match=rf"{name} remembers something of every image: give .* of \(x, y, i"):
            fit()
        return
    method, best = fit()
    torch.manual_seed(99)  # another process has another global state
    resumed, best_resumed = fit(resume=tmp_path / "0.ckpt")
    assert_same(weights(method), weights(resumed))
    assert method.history == resumed.history
    assert (best.score, best.epoch) == (best_resumed.score, best_resumed.epoch)
    assert_same(best.weights, best_resumed.weights)


def test_lightnings_own_checkpoint_resumes_as_well(tmp_path):
    def fit(epochs, resume=None):
        method = build("pgd_at", network(dropout=0.3), steps=2, recipe=Recipe(schedule="constant"))
        saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_last=True)
        run = trainer(epochs, saver, enable_checkpointing=True)
        run.fit(method, loader(), ckpt_path=resume, weights_only=True)
        return method

    undisturbed = fit(4)
    fit(2)
    resumed = fit(4, resume=tmp_path / "last.ckpt")
    assert_same(weights(undisturbed), weights(resumed))
    assert undisturbed.history == resumed.history


def test_keep_best_survives_a_resumption_after_its_best_epoch(tmp_path):
    def fit(resume=None):
        method, best = Scripted(network(), THREAT), KeepBest()
        method.scores = (0.2, 0.7, 0.1, 0.6)
        trainer(4, best, SaveEachEpoch(tmp_path)).fit(method, loader(), loader(), ckpt_path=resume, weights_only=True)
        return best

    best, resumed = fit(), fit(tmp_path / "2.ckpt")
    assert (resumed.epoch, resumed.score) == (1, Score(0.7, 0.5))
    assert_same(best.weights, resumed.weights)


# The recipe at work


def average_by_hand(states, average, decay):
    mean = None
    for count, state in enumerate(states):
        if mean is None:
            mean = dict(state)
            continue
        kept = decay if average == "ema" else count / (count + 1)
        mean = {name: kept * mean[name] + (1 - kept) * value for name, value in state.items()}
    return mean


@pytest.mark.parametrize("average", ["ema", "swa"])
@pytest.mark.parametrize("begin", [0.0, 0.5, 1.0])
def test_the_classifier_is_the_average_of_the_weights_after_each_step(average, begin):
    recipe = Recipe(average=average, average_decay=0.8, average_from=begin, learning_rate=0.05)
    method, watch = build("natural", network(), recipe=recipe).double(), Watch()
    x, y = images()
    trainer(2, watch).fit(method, DataLoader(TensorDataset(x.double(), y), batch_size=8))
    total = len(watch.steps)
    averaged = [state for step, state in enumerate(watch.steps, start=1) if step / total >= begin]
    expected = average_by_hand(averaged, average, 0.8)
    found = method.classifier().state_dict()
    assert method.classifier() is not method.network
    assert all("num_batches" in name or torch.allclose(found[name], expected[name], atol=1e-12) for name in expected)


def test_before_averaging_begins_the_classifier_is_the_network_itself():
    method = build("natural", network(), recipe=Recipe(average="swa"))
    assert method.classifier() is method.network
    assert not any(parameter.requires_grad for parameter in method.averaged.parameters())


def test_averaged_weights_are_the_ones_that_are_scored_and_kept():
    best, method = KeepBest(), build("pgd_at", network(), steps=1, recipe=Recipe(average="ema", average_decay=0.5))
    trainer(1, best).fit(method, loader(), loader())
    assert_same(best.weights, weights(method.classifier()))
    right = method.classifier().eval()(images()[0]).argmax(1) == images()[1]
    assert method.held_out_score.clean == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_the_gradient_is_no_longer_than_the_recipe_allows(limit):
    recipe = Recipe(gradient_clip=limit, learning_rate=1.0, schedule="constant", momentum=0.0, weight_decay=0.0)
    method = build("natural", network(), recipe=recipe)
    before = nn.utils.parameters_to_vector(method.network.parameters()).detach().clone()
    trainer(1, limit_train_batches=1).fit(method, loader())
    moved = (nn.utils.parameters_to_vector(method.network.parameters()) - before).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-3) if limit == 0.01 else moved > 0.1


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_the_optimizer_decays_all_parameters_alike(name, kind):
    body = network()
    optimizer = Recipe(optimizer=name, weight_decay=3e-4, nesterov=True).build_optimizer(body.parameters())
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert group["weight_decay"] == 3e-4
    assert len(group["params"]) == len(list(body.parameters()))


def test_the_learning_rate_of_every_step_is_the_schedules():
    recipe = Recipe(learning_rate=0.2, schedule="cyclic", peak_at=0.5)
    watch = Watch()
    trainer(4, watch).fit(build("natural", network(), recipe=recipe), loader(batch_size=12))
    assert watch.rates == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.15, 0.1, 0.05, 0.0])


def test_the_last_step_of_an_epoch_already_has_the_next_epochs_rate():
    recipe = Recipe(learning_rate=0.1, schedule="piecewise", milestones=(0.5, 0.75))
    watch = Watch()
    trainer(4, watch).fit(build("natural", network(), recipe=recipe), loader(batch_size=12))
    assert watch.rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001])


def test_step_and_start_follow_the_ramp_of_epsilon():
    reached = []

    class Measure(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.draws.begin(epoch=0, step=batch_idx)
            adversarial = module.trace_step(batch).adversarial
            reached.append((adversarial - batch[0]).abs().max().item())

    method = build("fast_at", network(), recipe=Recipe(epsilon_ramp=0.5))
    trainer(4, Measure()).fit(method, loader(batch_size=12))
    ramp = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert reached == pytest.approx([EPSILON * share for share in ramp], rel=1e-4)


def test_adam_trains():
    method = build("natural", network(), recipe=Recipe(optimizer="adam", learning_rate=0.01, schedule="constant"))
    trainer(6).fit(method, loader())
    assert method.history[-1]["loss"] < method.history[0]["loss"]


def test_numbers_that_a_method_notes_stand_in_its_history():
    method = build("mart", network(), steps=1)
    trainer(1).fit(method, loader())
    assert 0 < method.history[0]["mean_doubt"] < 1
