"""Free adversarial training: golden minibatches, the life of the noise, and the length of the training."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from attacks import BadInput, ThreatModel, counting
from methods import catalogue
from methods.recipe import Recipe
from tests.golden import assert_images, cases, first_layer_gradient, gradient_norm
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    build,
    images,
    loader,
    network,
    trace,
    trainer,
    weights,
)

# The cases "clamp_grad_0" show what torch.clamp of 2.14 would give; the authors' environments passed the gradient.
GOLDEN = [case for case in cases("free_at", "training_step") if case.settings.get("clamp_gradient_at_bounds", 1) == 1]


def recipe_of(case):
    decay = 1e-4 if "weight_decay 1e-4" in case.settings["optimizer"] else 5e-4
    return Recipe(optimizer="sgd", learning_rate=0.01, momentum=0.9, weight_decay=decay)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_two_minibatches_repeat_the_authors_code(case):
    s, expected = case.settings, case.expected
    method = catalogue.get("free_at")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        replays=s["replays_m"],
        step_size=s["step_size"],
        form="boxed" if "locuslab" in case.name else "official",
        recipe=recipe_of(case),
    ).double()
    x, y, index = case.batch
    losses, sums = [], []
    replay = method._replay

    def watched(batch):
        made = replay(batch)
        losses.append(made.loss.item())
        sums.append(made.adversarial.sum().item())
        return made

    method._replay = watched
    with counting(case.network) as passes:
        step = method.trace_step((x, y, index))
        method.update(step.loss)
        step = method.trace_step((x.flip(0)[:6], y.flip(0)[:6], index[:6]))
        gradients = torch.autograd.grad(step.loss, list(case.network.parameters()), retain_graph=True)
        for parameter, gradient in zip(case.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm, first = gradient_norm(case.network), first_layer_gradient(case.network).clone()
        method.update(step.loss)

    assert_images(step.adversarial, expected["x_adv"])
    assert step.loss.item() == pytest.approx(expected["loss"], rel=1e-7)
    assert losses == pytest.approx(expected["losses"], rel=1e-7)
    assert sums == pytest.approx(expected["model_input_sums"], rel=1e-9)
    assert norm == pytest.approx(expected["grad_norm"], rel=1e-7)
    torch.testing.assert_close(first.tolist(), expected["grad_first_layer"], rtol=1e-7, atol=1e-9)
    assert_images(method.noise.table, expected["noise_after"])
    length = torch.cat([p.flatten() for p in case.network.parameters()]).norm().item()
    assert length == pytest.approx(expected["param_l2_after"], rel=1e-7)
    batch_norms = [m for m in case.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.running_mean.sum().item() for m in batch_norms] == pytest.approx(expected["bn_running_mean_sums_after"])
    assert [m.running_var.sum().item() for m in batch_norms] == pytest.approx(expected["bn_running_var_sums_after"])
    assert batches_seen(case.network) == expected["bn_num_batches_tracked_after"]
    forwards = s["replays_m"] * (len(x) + 6)
    assert passes.forward == forwards
    assert s["replays_m"] * 2 == expected["model_forwards"]["total"] == expected["backward_passes"]


def batch_of(count=24):
    x, y = images(count)
    return x, y, torch.arange(count)


def finished(method, batch):
    step = trace(method, batch)
    method.update(step.loss)
    return step


@pytest.mark.parametrize("replays", [1, 3])
def test_each_replay_is_one_forward_one_backward_and_one_update(replays):
    method = build("free_at", network(), replays=replays).train()
    updates = []
    optimizer = method.optimizers_for(method.recipe)
    optimizer.register_step_post_hook(lambda *_: updates.append(1))
    method._own_optimizer = optimizer
    with counting(method.network) as passes:
        finished(method, batch_of())
    assert (passes.forward, passes.backward, len(updates)) == (24 * replays, 24 * replays, replays)
    assert batches_seen(method.network) == [replays, replays]


def test_the_very_first_replay_is_a_step_of_natural_training():
    free, natural = (build(key, network(), **s).train() for key, s in (("free_at", {"replays": 1}), ("natural", {})))
    assert torch.equal(trace(free, batch_of()).loss, trace(natural, batch_of()).loss)


def test_after_the_first_replay_each_entry_has_moved_by_all_of_epsilon_also_on_a_bound():
    method = build("free_at", network(), replays=1).train()
    x, y, index = batch_of()
    x[0] = 1.0
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(method.classification_loss(network().train()(leaf), y), leaf)
    finished(method, (x, y, index))
    torch.testing.assert_close(method.noise.table, EPSILON * gradient.sign())
    assert (gradient[0] != 0).any()  # saturated pixels do move


def test_the_noise_of_one_minibatch_is_where_the_next_one_starts_and_other_rows_stay():
    method = build("free_at", network(), replays=2).train()
    finished(method, batch_of(24))
    kept = method.noise.table.clone()
    x, y, index = batch_of(24)
    seen = []
    handle = method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    trace(method, (x[:10], y[:10], index[:10]))
    handle.remove()
    torch.testing.assert_close(seen[0], (x[:10] + kept[:10]).clamp(0, 1))
    assert torch.equal(method.noise.table[10:], kept[10:])


def test_noise_belongs_to_the_row_and_not_to_the_image():
    method = build("free_at", network(), replays=1).train()
    x, y, index = batch_of(8)
    finished(method, (x, y, index))
    kept = method.noise.table.clone()
    step = trace(method, (x.flip(0), y.flip(0), index.flip(0)))
    torch.testing.assert_close(step.adversarial, (x.flip(0) + kept).clamp(0, 1))


def test_one_replay_with_noise_that_is_forgotten_is_natural_training():
    free, natural = build("free_at", network(), replays=1).train(), build("natural", network()).train()
    optimizer = natural.optimizers_for(natural.recipe)
    for _ in range(3):
        free.noise.table = None
        finished(free, batch_of())
        optimizer.zero_grad()
        trace(natural, batch_of()).loss.backward()
        optimizer.step()
    assert_same(weights(free.network), weights(natural.network))


def test_noise_stays_in_the_ball_and_what_the_network_sees_in_the_range():
    method = build("free_at", network(), replays=4, step_size="0.7 epsilon").train()
    for _ in range(3):
        adversarial = finished(method, batch_of()).adversarial
        assert method.noise.table.abs().max() <= EPSILON
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_the_ascent_uses_the_weights_before_the_update():
    method = build("free_at", network(), replays=1, recipe=Recipe(learning_rate=10.0)).train()
    x, y, _ = batch_of()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(method.classification_loss(network().train()(leaf), y), leaf)
    finished(method, batch_of())
    assert torch.equal(method.noise.table.sign(), gradient.sign())


def test_the_boxed_form_keeps_image_and_noise_in_the_range_together():
    method = build("free_at", network(), replays=2, form="boxed").train()
    finished(method, batch_of())
    moved = batch_of()[0] + method.noise.table
    assert moved.min() >= 0
    assert moved.max() <= 1


def fitted(epochs=8, replays=4, **settings):
    recipe = Recipe(epochs=epochs, learning_rate=0.05, schedule="cyclic")
    method = build("free_at", network(), replays=replays, recipe=recipe, **settings)
    rates = []
    original = method.update

    def watched(loss):
        rates.append(method.optimizers().param_groups[0]["lr"])
        original(loss)

    method.update = watched
    engine = trainer(method.data_passes())
    engine.fit(method, loader(20, batch_size=8, indexed=True), loader(10, batch_size=10, indexed=True))
    return method, engine, rates


@pytest.mark.parametrize(("epochs", "replays"), [(8, 4), (5, 4), (3, 1), (2, 4)])
def test_a_training_has_the_updates_of_any_other_method_and_ends_with_a_validation(epochs, replays):
    method, engine, rates = fitted(epochs, replays)
    batches = math.ceil(epochs * 3 / replays)
    assert engine.global_step == len(rates) == batches * replays
    assert method.data_passes() == math.ceil(epochs / replays) == len(method.history)
    assert method.held_out_score is not None


def test_the_schedule_runs_over_the_updates_once_per_replay():
    _, _, rates = fitted(8, 4)
    assert rates[-1] == 0
    assert max(rates) == pytest.approx(0.05)
    assert rates.index(max(rates)) == len(rates) // 2 - 1
    assert len(set(rates[:12])) == 12  # another rate for every replay


def test_full_passes_see_the_data_as_often_as_others_and_update_more_often():
    method, engine, _ = fitted(3, 4, full_passes=True)
    assert (method.data_passes(), engine.global_step) == (3, 3 * 3 * 4)


@pytest.mark.parametrize(("epochs", "replays"), [(30, 4), (110, 8)])
def test_long_recipes_replay_eight_times_and_short_ones_four(epochs, replays):
    assert build("free_at", network(), recipe=Recipe(epochs=epochs)).replays == replays


def test_noise_goes_with_the_checkpoint_and_a_resumed_training_ends_the_same(tmp_path):
    def method():
        return build("free_at", network(), replays=2, recipe=Recipe(epochs=6, learning_rate=0.05))

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    whole = method()
    trainer(3, Keep()).fit(whole, loader(20, indexed=True))
    resumed = method()
    trainer(3).fit(resumed, loader(20, indexed=True), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert torch.equal(whole.noise.table, resumed.noise.table)
    assert_same(weights(whole.network), weights(resumed.network))


def test_another_batch_size_after_a_resumption_is_refused_unless_asked_for(tmp_path):
    def method():
        return build("free_at", network(), replays=2, recipe=Recipe(epochs=8))

    first = trainer(1)
    first.fit(method(), loader(24, batch_size=8, indexed=True))
    first.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(BadInput, match="noise for 8 images a batch and device, but found a batch of 6"):
        trainer(2).fit(
            method(), loader(24, batch_size=6, indexed=True), ckpt_path=tmp_path / "one.ckpt", weights_only=True
        )
    asked = method()
    asked.noise.resizes = True
    trainer(2).fit(asked, loader(24, batch_size=6, indexed=True), ckpt_path=tmp_path / "one.ckpt", weights_only=True)


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_the_gradient_of_every_update_is_no_longer_than_the_recipe_allows(limit):
    recipe = Recipe(1, gradient_clip=limit, learning_rate=1.0, schedule="constant", momentum=0.0, weight_decay=0.0)
    method = build("free_at", network(), replays=1, recipe=recipe)
    before = nn.utils.parameters_to_vector(method.network.parameters()).detach().clone()
    trainer(1, limit_train_batches=1).fit(method, loader())
    moved = (nn.utils.parameters_to_vector(method.network.parameters()) - before).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-3) if limit == 0.01 else moved > 0.1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"replays": 0}, "replays is 1 or more, but found 0"), ({"form": "other"}, "form is official or boxed")],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        build("free_at", network(), **settings)


def test_a_norm_without_signs_is_refused():
    with pytest.raises(BadInput, match=r"threat\.norm is 'l2'"):
        build("free_at", network(), ThreatModel("l2", 0.5))
