"""What a faithful implementation of fast adversarial training must show."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.pgd import pgd
from methods import FastAT
from methods.recipe import Recipe
from methods.selection import KeepBest
from tests.methods.tools import assert_same, batches_seen, gradients, images, loader, network, trace, trainer, weights

THREAT = ThreatModel("linf", 0.1)


def method(threat=THREAT, body=None, **settings_):
    return FastAT(network() if body is None else body, threat, **settings_).train()


def middle(count=200):
    """Images whose whole ball lies in the pixel range."""
    return images(count)[0] * 0.5 + 0.25, images(count)[1]


def test_a_step_of_epsilon_from_the_image_itself_is_fgsm_training():
    x, y = images()
    adversarial = trace(method(start="zero", step_size="epsilon"), (x, y)).adversarial
    by_hand = pgd(network().train(), x, cross_entropy_with(y), THREAT, start=x, steps=1, step_size=0.1)
    assert torch.equal(adversarial, by_hand)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 100),
    st.sampled_from([1 / 255, 0.1, 0.4]),
    st.sampled_from(["uniform", "zero", "previous"]),
    st.sampled_from(["cifar", "mnist", "imagenet"]),
)
def test_every_form_stays_in_ball_and_box(seed, epsilon, start, form):
    ours = method(THREAT.at(epsilon), start=start, form=form)
    for step in range(2):
        x, y = images(6, seed + step)
        adversarial = trace(ours, (x, y), step).adversarial
        assert (adversarial - x).abs().max() <= epsilon + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_a_step_of_two_epsilon_forgets_its_start():
    x, y = middle()
    moved = (trace(method(step_size="2 epsilon"), (x, y)).adversarial - x).abs()
    assert (moved > 0.1 - 1e-6).float().mean() > 0.99  # but for pixels without a gradient


def test_by_default_three_pixels_in_eight_end_inside_the_ball():
    x, y = middle()
    moved = (trace(method(), (x, y)).adversarial - x).abs()
    assert (moved < 0.1 - 1e-6).float().mean().item() == pytest.approx(0.375, abs=0.01)


def test_a_step_is_two_forwards_two_backwards_and_two_updates_of_statistics_in_train_mode():
    x, y = images()
    ours = method()
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (2 * len(x), 2 * len(x))
    assert batches_seen(ours.network) == [2, 2]


def test_the_statistics_move_once_on_the_start_and_once_on_the_result():
    x, y = images()
    ours, by_hand = method(), network().train()
    start = ours.inner.begin(x, THREAT, ours.draws)
    step = trace(ours, (x, y))
    by_hand(start)
    by_hand(step.adversarial)
    assert_same(weights(ours.network), weights(by_hand))


def test_the_weights_gradient_is_that_of_the_second_forward_alone():
    x, y = images()
    ours, alone = method(), network().train()
    step = trace(ours, (x, y))
    loss = torch.nn.functional.cross_entropy(alone(step.adversarial), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(alone.parameters()))])
    torch.testing.assert_close(gradients(ours, step.loss), expected)


def first_input(form, x, y):
    """What the network sees when the gradient is taken."""
    seen, ours = [], method(THREAT.at(0.4), form=form)
    ours.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    step = trace(ours, (x, y))
    return seen[0], step


def test_the_cifar_script_boxes_the_start_and_the_mnist_script_does_not():
    x, y = images()
    (boxed, _), (free, _) = (first_input(form, x, y) for form in ("cifar", "mnist"))
    assert free.min() < 0
    assert free.max() > 1
    assert torch.equal(boxed, free.clamp(0, 1))


def test_the_imagenet_script_clips_in_the_path_so_that_pixels_outside_do_not_step():
    x, y = images()
    seen, step = first_input("imagenet", x, y)
    free, _ = first_input("mnist", x, y)
    assert torch.equal(seen, free.clamp(0, 1))
    outside = (free < 0) | (free > 1)
    assert torch.equal(step.adversarial[outside], seen[outside])


def test_a_previous_start_is_the_last_perturbation_of_the_same_row():
    (x, y), (other, labels) = middle(12), (middle(24)[0][12:], middle(24)[1][12:])
    ours, zero, seen = method(start="previous"), method(start="zero"), []
    first = trace(ours, (x, y)).adversarial
    assert torch.equal(first, trace(zero, (x, y)).adversarial)  # there is no perturbation yet
    ours.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    second = trace(ours, (other[:8], labels[:8]), step=1).adversarial  # a smaller batch at the end of an epoch
    torch.testing.assert_close(seen[0], other[:8] + (first - x)[:8])
    torch.testing.assert_close(ours.previous.table[:8], second - other[:8])
    torch.testing.assert_close(ours.previous.table[8:], (first - x)[8:])


def test_the_number_of_steps_is_no_setting():
    with pytest.raises(TypeError, match="inner"):
        method(inner=None)


@pytest.mark.parametrize("wrong", [{"start": "random"}, {"form": "svhn"}, {"step_size": "2 eps"}])
def test_a_silly_setting_is_refused_by_name(wrong):
    (name, _), *_ = wrong.items()
    with pytest.raises(BadInput, match=name):
        method(**wrong)


# The early stop


class Collapse(pl.Callback):
    """Scripts the accuracy under PGD-5 of each epoch, and keeps the weights of each."""

    def __init__(self, *accuracies):
        self.accuracies, self.weights = accuracies, []

    def setup(self, trainer, module, stage):
        module._holds_under_pgd5 = lambda x, y, index: (
            torch.arange(len(x)) < len(x) * self.accuracies[trainer.current_epoch]
        ).long()

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.weights.append(SimpleNamespace(network=weights(module.network), all=weights(module)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_collapse_ends_the_training_on_the_weights_of_the_epoch_before(average):
    recipe = Recipe(learning_rate=0.02, schedule="constant", average=average, average_decay=0.5)
    ours, script, best = method(early_stop=True, recipe=recipe), Collapse(0.75, 1.0, 0.25, 1.0), KeepBest()
    trainer(4, script, best).fit(ours, loader(), loader())
    assert len(ours.history) == 3
    assert_same(weights(ours), script.weights[1].all)
    assert not torch.equal(script.weights[1].network["0.weight"], script.weights[2].network["0.weight"])
    if average == "none":
        assert_same(best.weights, script.weights[best.epoch].network)


@pytest.mark.filterwarnings("ignore")
def test_a_fall_of_a_fifth_or_a_slow_decline_is_no_collapse():
    ours = method(early_stop=True, recipe=Recipe(learning_rate=0.02))
    trainer(4, Collapse(1.0, 0.875, 0.75, 0.625)).fit(ours, loader(), loader())
    assert len(ours.history) == 4


@pytest.mark.filterwarnings("ignore")
def test_without_the_early_stop_a_collapse_runs_to_the_end():
    ours = method(recipe=Recipe(learning_rate=0.02))
    trainer(3, Collapse(1.0, 0.0, 0.0)).fit(ours, loader(), loader())
    assert len(ours.history) == 3


@pytest.mark.filterwarnings("ignore")
def test_what_the_sanity_check_counted_is_not_the_first_epochs():
    ours = method(early_stop=True, recipe=Recipe(learning_rate=0.02))
    trainer(1, Collapse(0.5), num_sanity_val_steps=1).fit(ours, loader(), loader())
    assert len(ours._pgd5) == 3
    assert ours.sound["accuracy"] == 0.5


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_had_collapsed_does_not_go_on_when_it_is_resumed(tmp_path):
    recipe = Recipe(learning_rate=0.02, schedule="constant")
    ours, script = method(early_stop=True, recipe=recipe), Collapse(1.0, 0.25, 1.0, 1.0)
    run = trainer(4, script)
    run.fit(ours, loader(), loader())
    run.save_checkpoint(tmp_path / "ended.ckpt")
    again = method(early_stop=True, recipe=recipe)
    trainer(4, script).fit(again, loader(), loader(), ckpt_path=tmp_path / "ended.ckpt", weights_only=True)
    assert_same(weights(again), weights(ours))
    assert again.history == ours.history


def test_the_check_is_pgd5_in_steps_of_a_quarter_and_moves_no_statistics():
    x, y = images()
    ours = method(early_stop=True)
    with counting(ours.network) as passes:
        first = ours._holds_under_pgd5(x, y, torch.arange(len(y)))
    assert torch.equal(first, ours._holds_under_pgd5(x, y, torch.arange(len(y))))
    assert passes.forward <= 6 * len(x)
    assert batches_seen(ours.network) == [0, 0]
