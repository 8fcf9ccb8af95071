"""What a faithful implementation of dropout scheduling must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.modes import in_mode
from attacks.pgd import fgsm
from benchmark import architectures, suite
from benchmark.experiment import plan
from methods import SADS
from methods.activations import every_activation
from methods.base import Batch
from methods.efficient.sads import scheduled_rate, usual_schedule
from methods.recipe import Recipe
from methods.selection import KeepBest, Score
from tests.methods.tools import EPSILON, batches_seen, gradients, images, loader, network, statistics, trace, trainer

THREAT = ThreatModel("linf", EPSILON)


def method(rate=None, body=None, **settings):
    """With the present rate fixed, where one is given: without a trainer there is no schedule."""
    ours = SADS(network() if body is None else body, THREAT, **settings).train()
    if rate is not None:
        ours.present_rate = lambda: rate
    return ours


class Watch:
    """Takes what every activation module of the scheduled forward gave on, with the dropout behind it."""

    def __init__(self, body):
        self.outputs = []
        following = [m for m in body.modules() if isinstance(m, nn.Conv2d | nn.Flatten | nn.Linear)][1:]
        for module in following:
            module.register_forward_pre_hook(lambda m, inputs: self.outputs.append((m.training, inputs[0].detach())))


@pytest.mark.parametrize("rate", [0.0, None])
def test_without_dropout_it_is_fgsm_training_with_an_attack_in_eval_mode(rate):
    x, y = images()
    ours, body = method(initial_rate=0.0) if rate is None else method(rate), network().train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    step = trace(ours, (x, y))
    assert torch.equal(torch.get_rng_state(), state)
    with in_mode(body, "eval"):
        attacked = fgsm(body, x, y, THREAT)
    loss = F.cross_entropy(body(attacked), y)
    assert torch.equal(step.adversarial, attacked)
    assert torch.equal(step.loss, loss)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(body.parameters()))])
    assert torch.equal(gradients(ours, step.loss), expected)
    for key, value in statistics(body).items():
        assert torch.equal(value, statistics(ours.network)[key])


@given(st.floats(0, 0.99), st.floats(0.01, 1), st.integers(1, 300))
def test_the_rate_falls_linearly_to_zero_and_stays_there(initial, until, iterations):
    rates = [scheduled_rate(initial, until, t / iterations) for t in range(iterations + 1)]
    assert rates[0] == initial
    assert scheduled_rate(initial, until, until / 2) == pytest.approx(initial / 2)
    assert rates == sorted(rates, reverse=True)
    for t, rate in enumerate(rates):
        expected = 0 if t / iterations >= until else initial * (1 - t / iterations / until)
        assert rate == pytest.approx(expected)
        assert t / iterations < until or rate == 0


@pytest.mark.filterwarnings("ignore")
def test_the_rate_is_that_of_the_iteration_and_not_of_the_epoch():
    ours, rates = method(initial_rate=0.4, until=0.5), []
    dropout = ours._dropout
    ours._dropout = lambda rate: rates.append(rate) or dropout(rate)
    trainer(4).fit(ours, loader())  # three iterations an epoch
    assert rates == pytest.approx([0.4 * (1 - t / 6) for t in range(6)])
    assert [line["dropout_rate"] for line in ours.history] == pytest.approx([0.4 * 5 / 6, 0.4 * 2 / 6, 0, 0])


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_schedule_goes_on_where_it_was(tmp_path):
    def fit(epochs, resume=None):
        ours, rates = method(initial_rate=0.4, until=1.0, recipe=Recipe(schedule="constant")), []
        dropout = ours._dropout
        ours._dropout = lambda rate: rates.append(rate) or dropout(rate)
        run = trainer(epochs)
        run.fit(ours, loader(), ckpt_path=resume, weights_only=True)
        return run, ours, rates

    _, _, whole = fit(4)
    run, _, first = fit(2)
    run.save_checkpoint(tmp_path / "half.ckpt")
    _, ours, second = fit(4, tmp_path / "half.ckpt")
    assert len(whole) == 12
    assert ours.iterations == 6  # T is fixed when the training begins, and that one was to end after two epochs
    assert first == pytest.approx([0.4 * (1 - t / 6) for t in range(6)])
    assert second == []


def test_masks_are_the_same_when_a_step_is_replayed_and_others_in_the_next():
    x, y = images()
    first, again, other = (trace(method(0.5), (x, y), step).loss for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_call_of_a_non_linearity_has_one_mask_of_the_same_rate():
    rates, ours = [], method(0.3)
    bernoulli = ours.draws.bernoulli
    ours.draws.bernoulli = lambda p, like, shape: rates.append((p, tuple(shape))) or bernoulli(p, like, shape)
    trace(ours, images(12))
    assert rates == [(0.7, (12, 4, 1, 1)), (0.7, (12, 6, 1, 1))]
    assert len(ours.places) == 2


def lenet_plus():
    """The network of the published MNIST rows."""
    return nn.Sequential(
        *[nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Flatten(), nn.Linear(64 * 4, 1024), nn.ReLU(), nn.Linear(1024, 3)],
    )


def test_lenet_has_two_places_for_channels_and_one_for_entries():
    ours, shapes = method(0.5, lenet_plus()), []
    bernoulli = ours.draws.bernoulli
    ours.draws.bernoulli = lambda p, like, shape: shapes.append(tuple(shape)) or bernoulli(p, like, shape)
    trace(ours, images(6))
    assert [len(shape) for _, shape in ours.places] == [3, 3, 1]
    assert shapes == [(6, 32, 1, 1), (6, 64, 1, 1), (6, 1024)]


@pytest.mark.parametrize(("name", "places"), [("digits_cnn", 3), ("resnet8", 7), ("torchvision/resnet18", 17)])
def test_the_common_networks_have_as_many_places_as_activations(name, places):
    channels = 1 if name == "digits_cnn" else 3
    body = architectures.build(name, classes=3, channels=channels, size=32 if channels == 3 else 8)
    x, y = torch.rand(4, channels, 32 if channels == 3 else 8, 32 if channels == 3 else 8), torch.arange(4) % 3
    ours, masks = method(0.2, body), []
    bernoulli = ours.draws.bernoulli
    ours.draws.bernoulli = lambda p, like, shape: masks.append(shape) or bernoulli(p, like, shape)
    trace(ours, (x, y)).loss.backward()
    assert len(ours.places) == len(masks) == places


def test_a_dropped_channel_is_zero_everywhere_and_the_others_are_scaled_by_what_is_kept():
    body = nn.Sequential(
        *[nn.Conv2d(1, 16, 3, padding=1), nn.Softplus(), nn.Identity(), nn.Flatten(), nn.Linear(16 * 64, 3)]
    )
    seen = {}
    body[1].register_forward_hook(lambda module, _, output: seen.update(before=output.detach()))
    body[2].register_forward_hook(lambda module, _, output: seen.update(after=output.detach()))
    trace(method(0.25, body), images(40))
    before, after = seen["before"], seen["after"]
    dropped = (after == 0).flatten(2)
    assert (dropped.all(2) == dropped.any(2)).all()  # Softplus itself is never 0
    share = dropped.all(2).double().mean().item()
    assert share == pytest.approx(0.25, abs=0.06)
    kept = ~dropped.all(2)
    torch.testing.assert_close(after[kept], before[kept] / 0.75)
    assert dropped.all(2).sum(1).unique().numel() > 1  # each image has a mask of its own


def test_in_eval_mode_the_network_does_not_know_of_the_rate():
    x, _ = images()
    ours = method(0.9)
    trace(ours, images())
    plain = ours.network.eval()(x)
    with ours._scheduled_dropout(0.9):
        assert torch.equal(ours.network(x), plain)
    assert ours.classifier() is ours.network
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in ours.modules()) == 0


def test_the_attack_depends_neither_on_the_rate_nor_on_random_states():
    x, y = images()
    first = trace(method(0.0), (x, y)).adversarial
    for rate, step, seed in ((0.5, 0, 0), (0.9, 7, 0), (0.5, 0, 3)):
        assert torch.equal(trace(method(rate, seed=seed), (x, y), step).adversarial, first)


def test_an_attack_in_train_mode_has_no_dropout_of_the_schedule_either():
    x, y = images()
    ours = method(0.5, attack_mode="train")
    with in_mode(ours.network, "batch"):
        expected = fgsm(ours.network, x, y, THREAT)
    assert torch.equal(trace(ours, (x, y)).adversarial, expected)
    assert batches_seen(ours.network) == [2, 2]


def test_the_networks_own_dropout_is_left_alone():
    ours = method(0.5, network(dropout=0.3))
    torch.manual_seed(0)
    trace(ours, images())
    assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [0.3]


def test_a_step_costs_two_passes_each_way_also_the_first_that_looks_for_its_places():
    x, y = images()
    ours = method(0.5)
    for step in range(2):
        with counting(ours.network) as passes:
            trace(ours, (x, y), step).loss.backward()
        assert (passes.forward, passes.backward) == (2 * len(x), 2 * len(x))


def test_a_functional_activation_is_refused_before_anything_is_trained():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.last = nn.Linear(64, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(F.relu(self.linear(x.flatten(1))))

    with pytest.raises(BadInput, match="Functional calls relu as a function"):
        trace(method(body=Functional()), images())


# The schedule by default


@pytest.mark.parametrize(
    ("name", "channels", "size", "expected"),
    [
        ("digits_cnn", 1, 8, (0.2, 0.75)),
        ("mnist_small", 1, 28, (0.2, 0.75)),
        ("resnet8", 3, 32, (0.2, 0.5)),
        ("preact_resnet18", 3, 32, (0.5, 0.5)),
        ("wrn-10-10", 3, 32, (0.5, 0.5)),  # the stem of 16 channels does not count
    ],
)
def test_rate_and_end_follow_from_the_images_and_the_narrowest_layer(name, channels, size, expected):
    body = architectures.build(name, classes=10, channels=channels, size=size).eval()
    with every_activation(body) as places, torch.no_grad():
        body(torch.rand(1, channels, size, size))
    assert usual_schedule(channels, places) == expected


def test_a_network_without_non_linearities_trains_too():
    assert usual_schedule(3, []) == (0.5, 0.5)
    trace(method(0.5, nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), images()).loss.backward()


def test_in_the_common_suite_the_rate_is_zero_after_22_and_a_half_of_30_epochs():
    (of,) = plan(suite.load("digits-common", {"methods": {"sads": None}}))
    ours = of.build_method(of.build_network()).train()
    x = torch.rand(4, 1, 8, 8)
    adversarial = trace(ours, (x, torch.arange(4))).adversarial
    assert (ours.initial_rate, ours.until) == (0.2, 0.75)
    assert scheduled_rate(0.2, 0.75, 22 / 30) > 0
    assert scheduled_rate(0.2, 0.75, 22.5 / 30) == 0
    assert (adversarial - x).abs().max().item() == pytest.approx(0.15, abs=1e-6)
    assert ours.remarks() == {"initial_rate": 0.2, "until": 0.75, "scheduled_layers": 3}


# The best epoch


class Falling(SADS):
    """Scores its first epoch highest."""

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.held_out_score = Score(1 / (1 + self.current_epoch), 1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("initial_rate", "until", "epoch"), [(0.4, 0.5, 2), (0.4, 0.45, 1), (0.4, 1.0, 3), (0.0, 0.5, 0), (None, None, 3)]
)
def test_the_best_epoch_is_one_after_the_end_of_the_dropout(initial_rate, until, epoch):
    best, ours = KeepBest(), Falling(network(), THREAT, initial_rate=initial_rate, until=until)
    trainer(4, best).fit(ours, loader(), loader())
    assert best.epoch == epoch


def test_without_a_training_every_weights_may_be_kept():
    assert method().settled


def test_the_reference_without_dropout_says_that_no_benefit_can_show_unless_it_collapsed():
    ours = method(initial_rate=0.0)
    assert ours.remarks() == {}
    trace(ours, images())
    assert "mark" not in ours.remarks()  # nobody has looked
    ours.history = [{"epoch": k, "held_out_fgsm": 0.9, "held_out_pgd10": 0.8} for k in range(3)]
    assert ours.remarks()["mark"] == "no collapse without dropout, so no benefit can show"
    ours.history = [{"epoch": k, "held_out_fgsm": 0.9, "held_out_pgd10": pgd} for k, pgd in enumerate((0.8, 0.8, 0.0))]
    assert "mark" not in ours.remarks()


def test_it_is_shown_as_a_reconstruction():
    assert SADS.card.reconstruction


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"initial_rate": 1.0}, "initial_rate lies between 0 and below 1, but found 1.0"),
        ({"initial_rate": -0.1}, "initial_rate"),
        ({"until": 0.0}, "until is a share of the training above 0 and up to 1, but found 0.0"),
        ({"until": 1.1}, "until"),
        ({"attack_mode": "test"}, "mode is one of eval, train, batch, but found 'test'"),
    ],
)
def test_a_silly_setting_is_refused_by_name(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**wrong)


def test_an_odd_batch_is_no_other_step():
    x, y = images(5)
    assert trace(method(0.5), Batch.of((x, y))).adversarial.shape == x.shape
