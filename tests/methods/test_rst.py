"""What a faithful implementation of robust self-training must show, and how it is used as a library."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from attacks import BadInput, ThreatModel, counting, kl_divergence
from methods import RST, TRADES, Natural
from methods.recipe import Recipe
from methods.unlabelled import HIDDEN, predicted_labels
from tests.methods.tools import batches_seen, gradients, images, network, statistics, toy, trace, trainer

THREAT = ThreatModel("linf", 8 / 255)


def method(body=None, threat=THREAT, steps=3, **settings):
    made = RST(network() if body is None else body, threat, **settings).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def hiding(y, *rows):
    return y.index_fill(0, torch.tensor(rows), HIDDEN)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_where_every_label_is_known_the_step_is_that_of_trades(norm, smoothing):
    batch, threat, recipe = images(), ThreatModel(norm, 0.1), Recipe(label_smoothing=smoothing)
    ours = method(threat=threat, unsup_fraction=0.0, recipe=recipe)
    trades = TRADES(network(), threat, inner=ours.inner, recipe=recipe).train()
    step, expected = trace(ours, batch), trace(trades, batch)
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(trades, expected.loss))
    assert ours.labelled_rows(64, 200, 1000) == 64


def test_without_beta_it_is_clean_training_and_runs_nothing_in_eval_mode():
    (x, y), modes = images(), []
    ours, natural = method(beta=0.0), Natural(network(), THREAT).train()
    ours.network.register_forward_hook(lambda body, *_: modes.append(body.training))
    step, expected = trace(ours, (x, y)), natural.trace_step((x, y)).loss
    assert torch.equal(step.loss, expected)
    assert torch.equal(step.adversarial, x)
    assert modes == [True]
    torch.testing.assert_close(gradients(ours, step.loss), gradients(natural, expected))


def test_pseudo_labels_stand_in_for_hidden_labels_and_change_nothing_but_the_cross_entropy():
    (x, y), index = images(), torch.arange(24) + 100
    hidden, losses, entropies = hiding(y, 1, 5, 6), [], []
    for labels in ([0, 1, 2], [2, 2, 0]):
        ours = method(body=network().double())
        ours.learn_from(index[[1, 5, 6]], torch.tensor(labels))
        step = trace(ours, (x.double(), hidden, index))
        clean, attacked = ours.network(x.double()), ours.network(step.adversarial)
        targets = hidden.clone()
        targets[[1, 5, 6]] = torch.tensor(labels)
        losses.append(step.loss.item() - 6 * kl_divergence(clean, attacked).mean().item())
        entropies.append(torch.nn.functional.cross_entropy(clean, targets).item())
    assert losses == pytest.approx(entropies, rel=1e-9)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_label_that_is_there_comes_before_a_pseudo_label():
    x, y = images()
    ours, other = method(), method()
    ours.learn_from(torch.arange(24), torch.zeros(24, dtype=torch.int64))
    assert torch.equal(trace(ours, (x, y)).loss, trace(other, (x, y)).loss)


@pytest.mark.parametrize("beta", [0.0, 6.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_all_labels_hidden_and_no_pseudo_label_the_divergence_is_what_remains(beta, smoothing):
    x, y = images()
    ours = method(beta=beta, recipe=Recipe(label_smoothing=smoothing), body=network().double())
    step = trace(ours, (x.double(), torch.full_like(y, HIDDEN)))
    expected = beta * kl_divergence(ours.network(x.double()), ours.network(step.adversarial)).mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    step.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in ours.network.parameters())


def test_the_entropy_term_is_the_mean_over_images_without_a_target():
    (x, y), hidden = images(), [0, 3, 4, 7]
    plain, weighted = (method(body=network().double(), entropy_weight=weight) for weight in (0.0, 0.5))
    losses = [trace(ours, (x.double(), hiding(y, *hidden))).loss.item() for ours in (plain, weighted)]
    p = plain.network(x.double()).softmax(1)[hidden]
    assert losses[1] - losses[0] == pytest.approx(0.5 * -(p * p.log()).sum(1).mean().item(), rel=1e-6)


def test_the_variant_without_pseudo_labels_does_not_look_at_them():
    x, y = images()
    batch = x, hiding(y, 2, 3), torch.arange(24)
    with_labels, without = method(pseudo_labels=False), method(pseudo_labels=False)
    with_labels.learn_from(batch[2], y)
    assert torch.equal(trace(with_labels, batch).loss, trace(without, batch).loss)
    assert not torch.equal(trace(method(), (x, y)).loss, trace(method(), batch).loss)
    assert (RST.needs_teacher({}), RST.needs_teacher({"pseudo_labels": False})) == (True, False)


def test_the_attack_leaves_running_statistics_alone_and_a_step_updates_them_twice_attacked_images_first():
    (x, y), ours = images(), method()
    before, modes = statistics(ours.network), []
    ours.perturb((batch := _batch(x, y)), lambda logits: torch.nn.functional.cross_entropy(logits, batch.y))
    assert all(torch.equal(before[key], value) for key, value in statistics(ours.network).items())
    ours.network.register_forward_pre_hook(lambda body, inputs: modes.append((body.training, inputs[0].detach())))
    step = trace(ours, (x, y))
    first, second = (seen for training, seen in modes if training)
    assert torch.equal(first, step.adversarial)
    assert torch.equal(second, x)
    assert batches_seen(ours.network) == [2, 2]


def _batch(x, y):
    from methods.base import Batch

    return Batch.of((x, y))


def test_stability_training_adds_noise_that_no_weight_decides_and_never_attacks():
    (x, y), modes = (torch.full((24, 1, 8, 8), 0.5), images()[1]), []
    one, other = method(sigma=0.01), method(body=network(seed=9), sigma=0.01)
    one.network.register_forward_hook(lambda body, *_: modes.append(body.training))
    step = trace(one, (x, y))
    assert torch.equal(step.adversarial, trace(other, (x, y)).adversarial)
    noise = step.adversarial - x
    assert (noise.mean().abs().item(), noise.std().item()) == pytest.approx((0, 0.01), abs=1e-3)
    assert (noise.abs() > 0.02).float().mean().item() == pytest.approx(0.0455, abs=0.02)  # two sigma of a Gaussian
    assert modes == [True, True]
    loud = trace(method(sigma="10 epsilon"), (images()[0], y)).adversarial
    assert (loud.min().item(), loud.max().item()) == (0, 1)


def test_the_start_and_the_step_are_the_authors_fractions_of_epsilon():
    inner = RST(network(), THREAT).inner
    x = torch.full((24, 1, 8, 8), 0.5)
    for epsilon, sigma in ((0.031, 0.001), (0.15, 0.15 / 31)):
        draws = RST(network(), THREAT).draws
        assert (inner.begin(x, THREAT.at(epsilon), draws) - x).std().item() == pytest.approx(sigma, rel=0.05)
    step = trace(method(threat=THREAT.at(0.15), steps=1), (x, images()[1])).adversarial - x
    assert step.abs().median().item() == pytest.approx(0.15 * 7 / 31, rel=0.1)


def test_half_of_a_batch_is_unlabelled_and_the_unlabelled_part_is_rounded_down():
    assert [method().labelled_rows(size, 200, 1197) for size in (256, 64, 63)] == [128, 32, 32]
    assert method(unsup_fraction=1.0).labelled_rows(64, 200, 1197) == 0
    with pytest.raises(BadInput, match="unsup_fraction lies between 0 and 1"):
        method(unsup_fraction=1.5)
    with pytest.raises(BadInput, match="sigma"):
        method(sigma="8//255")


def test_a_teacher_labels_in_eval_mode_and_is_left_as_it_was():
    model, x, _, _ = toy()
    before = statistics(model.train())
    with counting(model) as passes:
        labels = predicted_labels(model, x, batch_size=3)
    assert (passes.forward, passes.backward, model.training) == (len(x), 0, True)
    assert all(torch.equal(before[key], value) for key, value in statistics(model).items())
    assert torch.equal(labels, model.eval()(x).argmax(1))


@pytest.mark.filterwarnings("ignore")
def test_as_a_library_it_takes_any_loader_that_says_minus_one_and_keeps_its_pseudo_labels(tmp_path):
    x, y = images(24)
    index = torch.arange(24) + 1000
    hidden = hiding(y, *range(12, 24))
    ours = RST(network(), THREAT, recipe=Recipe(epochs=2))
    ours.learn_from(index[12:], predicted_labels(network(seed=3), x[12:]))
    before = {name: value.clone() for name, value in ours.network.state_dict().items()}
    runner = trainer(2)
    runner.fit(ours, DataLoader(TensorDataset(x, hidden, index), batch_size=8))
    assert any(not torch.equal(before[name], value) for name, value in ours.network.state_dict().items())
    assert [line["without_target"] for line in ours.history] == [0, 0]
    runner.save_checkpoint(tmp_path / "x.ckpt")
    again = RST(network(), THREAT)
    again.on_load_checkpoint(torch.load(tmp_path / "x.ckpt", weights_only=True))
    assert torch.equal(again.pseudo_labels.of(index), ours.pseudo_labels.of(index))
