"""What a faithful implementation of hypersphere embedding must show, and its last layer for itself."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.pixels import Pixels
from attacks.prepared import prepared
from benchmark import suite
from benchmark.experiment import plan
from methods import ALP, PGDAT, TRADES, FreeAT, Hypersphere
from methods.cosine_head import CosineHead, units, with_cosine_head
from methods.inner import Inner
from methods.recipe import Recipe
from tests.methods.ranks import SaveFirst
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    gradients,
    images,
    loader,
    network,
    trace,
    trainer,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)
K = 3


def method(body=None, threat=THREAT, steps=K, **settings_):
    made = Hypersphere(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps) if settings_.get("framework") != "free_at" else made.inner
    return made


def doubles():
    x, y = images()
    return x.double(), y


def head(features=7, classes=4, **settings_):
    torch.manual_seed(3)
    return CosineHead(nn.Linear(features, classes).double(), **({"scale": 15.0} | settings_))


# The head


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.booleans(), st.booleans())
def test_logits_lie_within_the_scale_and_lengths_change_nothing(seed, of_features, of_row, in_graph, training):
    layer = head(in_graph=in_graph).train(training)
    z = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = layer(z).detach()
    assert logits.abs().max() <= 15 * (1 + 1e-9)
    with torch.no_grad():
        layer.weight[1] *= of_row
    torch.testing.assert_close(layer(of_features * z).detach(), logits, rtol=1e-9, atol=1e-9)


def test_the_head_has_no_bias_and_after_a_training_forward_rows_of_length_one():
    layer = head().train()
    assert layer.bias is None
    with torch.no_grad():
        layer.weight *= 7
    layer.eval()(torch.randn(2, 7).double())
    assert layer.weight.norm(dim=1).tolist() == pytest.approx([7] * 4)  # evaluation writes nothing
    layer.train()(torch.randn(2, 7).double())
    assert layer.weight.norm(dim=1).tolist() == pytest.approx([1] * 4, rel=1e-14)


def test_features_that_are_all_zero_have_cosines_of_zero_and_finite_gradients():
    layer, z = head(), torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    logits = layer(z)
    assert (logits == 0).all()
    logits.sum().backward()
    assert z.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()
    assert units(torch.full((1, 3), 1e-30)).abs().max() < 1e-12


@pytest.mark.parametrize("training", [True, False])
def test_outside_the_graph_the_gradient_of_a_row_keeps_its_part_along_the_row(training):
    z, y = torch.randn(6, 7, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4
    found = {}
    for in_graph in (False, True):
        layer = head(in_graph=in_graph).train(training)
        F.cross_entropy(layer(z), y).backward()
        found[in_graph] = layer.weight.grad, units(layer.weight.detach())
    outside, rows = found[False]
    inside, same_rows = found[True]
    torch.testing.assert_close(rows, same_rows)
    leaf = rows.clone().requires_grad_()
    F.cross_entropy(15 * units(z) @ leaf.T, y).backward()
    torch.testing.assert_close(outside, leaf.grad)
    assert (outside * rows).sum(1).abs().min() > 1e-4
    torch.testing.assert_close((inside * rows).sum(1), torch.zeros(4).double())


def test_the_gradient_of_the_features_is_tangent_to_the_sphere():
    for in_graph in (False, True):
        z = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
        F.cross_entropy(head(in_graph=in_graph)(z), torch.arange(6) % 4).backward()
        torch.testing.assert_close((z.grad * z).sum(1), torch.zeros(6).double())
        assert z.grad.norm() > 0


def test_a_second_forward_does_not_disturb_the_graph_of_the_first():
    layer = head()
    first = layer(torch.ones(1, 7).double())
    layer(torch.randn(1, 7).double())
    first.sum().backward()


def test_cosines_are_computed_in_full_precision_and_searching_attacks_can_fold_batch_norm():
    layer, z = head().float(), torch.randn(3, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(z), layer(z.float()))
        assert layer(z.bfloat16()).dtype == torch.float32
    body = with_cosine_head(network(), scale=15.0).eval()
    twin = prepared(body, images(2)[0])
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    torch.testing.assert_close(twin(images()[0]), body(images()[0]), rtol=1e-4, atol=1e-4)


def test_the_head_takes_the_place_and_the_weights_of_the_last_linear_layer():
    body = network()
    before = body[-1].weight.detach().clone()
    parameters = sum(value.numel() for value in body.parameters())
    ours = method(body)
    assert ours.network is body
    assert isinstance(body[-1], CosineHead)
    torch.testing.assert_close(body[-1].weight.detach(), F.normalize(before))
    assert sum(value.numel() for value in body.parameters()) == parameters - 3  # the biases
    assert with_cosine_head(body, scale=2.0) is body
    assert body[-1].scale == 2


def test_putting_the_head_on_draws_nothing():
    torch.manual_seed(5)
    body, before = network(), torch.get_rng_state()
    with_cosine_head(body, scale=1.0)
    assert torch.equal(torch.get_rng_state(), before)


class Softened(nn.Sequential):
    def forward(self, x):
        return super().forward(x).log_softmax(1)


def test_a_network_that_does_not_end_in_one_linear_layer_is_refused():
    with pytest.raises(BadInput, match=r"takes the place of the one nn.Linear .* found none in Sequential"):
        method(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()))
    with pytest.raises(BadInput, match="last one of Softened makes is not its logits: end the network with"):
        trace(method(Softened(*network())), images())


# The loss


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 30), st.floats(0.01, 1))
def test_a_margin_makes_the_loss_larger_and_without_one_it_is_the_ordinary_one(seed, s, m):
    cosines = 2 * torch.rand(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    y = torch.arange(8) % 3
    plain, with_margin = (method(s=s, m=margin).classification_loss(s * cosines, y) for margin in (0.0, m))
    torch.testing.assert_close(plain, F.cross_entropy(s * cosines, y))
    assert with_margin > plain
    p, q = (s * cosines)[torch.arange(8), y] - s * m, (s * cosines).exp().sum(1)
    by_hand = -(p - (q - (s * cosines)[torch.arange(8), y].exp() + p.exp()).log()).mean()
    torch.testing.assert_close(with_margin, by_hand)


def test_a_scale_of_next_to_nothing_leaves_the_logarithm_of_the_number_of_classes():
    cosines, y = 2 * torch.rand(8, 3).double() - 1, torch.arange(8) % 3
    assert method(s=1e-9).classification_loss(1e-9 * cosines, y).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("framework", ["pgd_at", "trades", "alp"])
def test_the_attack_does_not_know_the_margin(framework):
    x, y = images()
    first, second = (trace(method(framework=framework, m=m), (x, y)) for m in (0.0, 0.9))
    assert torch.equal(first.adversarial, second.adversarial)
    assert second.loss > first.loss


def test_pgd_at_without_a_margin_is_pgd_training_of_that_network():
    x, y = doubles()
    ours = method(network().double(), m=0.0)
    base = PGDAT(with_cosine_head(network().double(), scale=15.0), THREAT, inner=ours.inner).train()
    step, expected = trace(ours, (x, y)), trace(base, (x, y))
    assert torch.equal(step.adversarial, expected.adversarial)
    torch.testing.assert_close(step.loss, expected.loss)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(base, expected.loss))


def test_trades_without_a_margin_is_trades_of_that_network_with_its_own_attack():
    x, y = doubles()
    ours = method(network().double(), framework="trades", m=0.0)
    base = TRADES(with_cosine_head(network().double(), scale=15.0), THREAT).train()
    assert ours.inner == replace(base.inner, steps=K)
    base.inner = ours.inner
    step, expected = trace(ours, (x, y)), trace(base, (x, y))
    assert torch.equal(step.adversarial, expected.adversarial)
    torch.testing.assert_close(step.loss, expected.loss)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(base, expected.loss))


def test_trades_without_its_second_term_learns_from_clean_images_alone():
    x, y = doubles()
    ours, by_hand = method(network().double(), framework="trades", beta=0.0), method(network().double())
    step = trace(ours, (x, y))
    expected = by_hand.classification_loss(by_hand(x), y)
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(by_hand, expected))


def test_alp_pairs_cosines_without_their_scale_in_two_forwards():
    x, y = doubles()
    ours, by_hand = (method(network().double(), framework="alp") for _ in range(2))
    assert (ours.s, ours.m, ours.beta) == (20, 0.3, 0.5)
    step = trace(ours, (x, y))
    clean, adversarial = by_hand(x), by_hand(step.adversarial)
    halves = (by_hand.classification_loss(logits, y) / 2 for logits in (clean, adversarial))
    pairing = 0.5 * ((clean - adversarial) / 20).square().mean()
    torch.testing.assert_close(step.loss, sum(halves) + pairing)
    assert set(batches_seen(ours.network)) == {2}
    own = inspect.signature(ALP).parameters["inner"].default
    assert replace(Hypersphere(network(), THREAT, framework="alp").inner, steps=own.steps) == own


@pytest.mark.parametrize(
    ("framework", "forward", "backward", "training"),
    [("pgd_at", K + 1, K + 1, 1), ("trades", 1 + K + 2, K + 2, 2), ("alp", K + 2, K + 2, 2), ("free_at", 4, 4, 4)],
)
def test_passes_of_each_framework(framework, forward, backward, training):
    x, y = images()
    ours = method(framework=framework)
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (forward * len(x), backward * len(x))
    assert set(batches_seen(ours.network)) == {training}


def test_in_free_at_the_loss_that_moves_the_noise_has_the_margin():
    x, y = doubles()
    ours = method(network().double(), framework="free_at", m=0.4, recipe=Recipe(epochs=4))
    assert isinstance(ours, Hypersphere)
    assert isinstance(ours, FreeAT)
    assert (ours.s, ours.m, ours.replays, ours.single_step) == (10, 0.4, 4, True)
    assert ours.data_passes() == 1
    assert not Hypersphere(network(), THREAT).single_step

    class ByHand(FreeAT):
        def classification_loss(self, logits, y):
            return F.cross_entropy(logits - 10 * 0.4 * F.one_hot(y, 3), y)

    base = ByHand(with_cosine_head(network().double(), scale=10.0), THREAT).train()
    step, expected = trace(ours, (x, y)), trace(base, (x, y))
    torch.testing.assert_close(step.adversarial, expected.adversarial)
    torch.testing.assert_close(step.loss, expected.loss)


def test_free_at_on_the_head_trains_and_resumes_like_free_at(tmp_path):
    def fit(resume=None):
        ours = method(framework="free_at", recipe=Recipe(learning_rate=0.05, schedule="constant"))
        trainer(8, SaveFirst(tmp_path / "first.ckpt")).fit(ours, loader(), ckpt_path=resume, weights_only=True)
        return ours

    whole = fit()
    resumed = fit(tmp_path / "first.ckpt")
    assert_same(weights(whole.network), weights(resumed.network))
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]


# Training


def test_the_rows_are_of_length_one_when_weight_decay_meets_them():
    seen = []

    class Watched(Hypersphere):
        def on_before_optimizer_step(self, optimizer):
            seen.append(self.head.weight.norm(dim=1).tolist())

    ours = Watched(network(), THREAT, inner=Inner(steps=1), recipe=Recipe(learning_rate=1.0, weight_decay=0.1))
    trainer(2).fit(ours, loader())
    assert len(seen) == 6
    assert all(row == pytest.approx([1] * 3, rel=1e-5) for row in seen)


def test_an_average_of_the_weights_ends_with_rows_of_length_one_and_the_function_it_had(monkeypatch):
    def fit():
        recipe = Recipe(average="swa", learning_rate=0.5, schedule="constant")
        ours = Hypersphere(network(), THREAT, inner=Inner(steps=1), recipe=recipe)
        trainer(2).fit(ours, loader())
        assert ours.network[-1].weight.norm(dim=1).tolist() == pytest.approx([1] * 3)
        return ours.classifier().eval()

    after = fit()
    assert after[-1].weight.norm(dim=1).tolist() == pytest.approx([1] * 3)
    monkeypatch.setattr(Hypersphere, "total_updates", lambda self: 1000)  # never the last one
    before = fit()
    assert before[-1].weight.norm(dim=1).max() < 0.999
    x, _ = images()
    torch.testing.assert_close(after(x), before(x))


def test_the_true_classes_cosine_stands_in_the_history():
    ours = method(steps=1)
    trainer(1).fit(ours, loader())
    assert -1 <= ours.noted("true_cosine")[0] <= 1


def test_on_digits_the_suite_builds_the_head_with_the_printed_settings():
    (experiment,) = plan(suite.load("digits-common", {"methods": {"hypersphere": None}}))
    body = experiment.build_network()
    layer = next(part for part in body.modules() if isinstance(part, CosineHead))
    assert layer.scale == 15
    ours = experiment.build_method(body)
    assert (ours.s, ours.m) == (15, 0.2)
    inner = ours.inner
    assert (inner.steps, inner.step_size, inner.start, inner.mode) == (7, "epsilon/4", "uniform", "eval")
    assert Pixels.read(inner.step_size).at(ours.threat.epsilon) == pytest.approx(0.0375)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"framework": "mart"}, "framework is one of pgd_at, trades, alp, free_at, but found 'mart'"),
        ({"s": 0}, "s is above 0, but found 0"),
        ({"m": -0.1}, "m is 0 or more, but found -0.1"),
        ({"beta": -1}, "beta is 0 or more, but found -1"),
    ],
)
def test_mistakes_in_settings_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        method(**wrong)
