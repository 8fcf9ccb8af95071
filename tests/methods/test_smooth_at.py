"""What a faithful implementation of smooth adversarial training must show, and that any network can be smoothed."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel
from benchmark import architectures, suite
from benchmark.experiment import plan
from methods import PGDAT, TRADES, FastAT, SmoothAT, catalogue
from methods.activations import activation_modules
from methods.recipe import Recipe
from methods.smooth_activations import SmoothGradientReLU, SmoothReLU, smooth_activation, smooth_gradients
from methods.variants.smooth_at import smoothed
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    build,
    gradients,
    images,
    loader,
    network,
    statistics,
    trace,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)
SMOOTH = ("silu", "gelu", "elu", "softplus", "smooth_relu", "mish")
COMMON = {"classes": 10, "size": 28}
every_smooth = pytest.mark.parametrize("name", SMOOTH)


def method(body=None, steps=3, **settings_):
    made = SmoothAT(network() if body is None else body, THREAT, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def slope_at(name, t, slope=None):
    point = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    value = smooth_activation(name, slope)().double()(point)
    return torch.autograd.grad(value, point)[0].item()


def same_step(ours, theirs, batch):
    step, expected = trace(ours, batch), trace(theirs, batch)
    assert torch.equal(step.adversarial, expected.adversarial)
    assert torch.equal(step.loss, expected.loss)
    assert torch.equal(gradients(ours, step.loss), gradients(theirs, expected.loss))
    assert_same(statistics(ours.network), statistics(theirs.network))


# With ReLU it is its base method


def test_with_relu_it_is_pgd_training_bit_for_bit():
    ours = method(activation="relu")
    same_step(ours, PGDAT(network(), THREAT, inner=ours.inner).train(), images())


@pytest.mark.parametrize(("row", "base"), [("smooth_at/trades", TRADES), ("smooth_at/fast_at", FastAT)])
def test_the_variants_on_trades_and_fast_at_are_those_methods_with_another_activation(row, base):
    variants = suite.load("digits-variants")
    (of,) = plan(replace(variants, methods={row: variants.methods[row]}))
    ours = of.build_method(smoothed(network())).train()
    ours.threat = THREAT
    theirs = build(base.card.key, smoothed(network()), steps=7).train()
    same_step(ours, theirs, images())


def test_any_method_may_be_put_around_a_smoothed_network():
    for key in ("trades", "fast_at", "llr"):
        ours = build(key, smoothed(network()), steps=2).train()
        loss = trace(ours, images()).loss
        assert loss.isfinite()
        assert not any(isinstance(part, nn.ReLU) for part in ours.network.modules())


# No ReLU is left


@every_smooth
@pytest.mark.parametrize(
    ("architecture", "places"), [("digits_cnn", 3), ("mnist_small", 3), ("resnet8", 7), ("torchvision/resnet18", 9)]
)
def test_no_relu_is_left_in_the_networks_of_the_common_track(name, architecture, places):
    body = architectures.build(architecture, **COMMON, channels=3 if "/" in architecture else 1)
    before = sum(parameter.numel() for parameter in body.parameters())
    smoothed(body, name)
    assert not any(isinstance(part, nn.ReLU) for part in body.modules())
    assert len(activation_modules(body)) == places
    added = sum(parameter.numel() for parameter in body.parameters()) - before
    assert added == (places if name == "smooth_relu" else 0)
    assert SmoothAT(body, THREAT, activation=name).remarks()["activations"] == places


def test_a_networks_slope_has_no_jump_along_a_line():
    x, other = (images(2, seed)[0].double() for seed in (1, 2))
    jumps = []
    for activation in ("relu", "silu"):
        body = smoothed(network().double(), activation).eval()
        t = torch.linspace(0, 1, 4001, dtype=torch.float64, requires_grad=True)
        line = x[:1] + t[:, None, None, None] * (other[:1] - x[:1])
        (slopes,) = torch.autograd.grad(body(line)[:, 0].sum(), t)
        jumps.append((slopes.diff().abs().max() / (slopes.max() - slopes.min())).item())
    assert jumps[1] < 0.02 < 0.05 < jumps[0]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(F.relu(self.first(x.flatten(1))))


def test_a_relu_that_is_called_as_a_function_is_refused_before_anything_is_trained():
    ours = method(Functional())
    with pytest.raises(BadInput, match=r"^Functional calls relu as a function"):
        trainer(1).fit(ours, loader())
    trace(method(Functional(), activation="relu"), images())  # that replaces nothing


def test_a_network_with_nothing_to_replace_is_marked():
    ours = method(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    assert ours.remarks() == {"activations": 0, "mark": "the network has no activation to replace"}


def test_first_weights_are_those_of_the_network_with_relus():
    built = SmoothAT.compose(lambda member: network())
    assert_same(dict(built.state_dict()), dict(network().state_dict()))


# The activations


def test_derivatives_are_those_of_the_specification():
    assert slope_at("smooth_relu", 0.0) == 0
    assert slope_at("smooth_relu", 0.0025) == pytest.approx(0.5, rel=1e-6)
    assert slope_at("smooth_relu", -0.1) == 0
    assert slope_at("silu", 0.0) == slope_at("gelu", 0.0) == 0.5
    assert slope_at("elu", -1e-12) == pytest.approx(1)
    assert slope_at("elu", 0.0) == slope_at("elu", 1e-12) == 1
    for a in (1.0, 10.0, 300.0):
        assert slope_at("softplus", 0.0, a) == 0.5


def test_smooth_relu_starts_at_400_near_relu():
    phi = SmoothReLU().double()
    assert (phi.b.item(), phi.slope.item()) == (20, 400)
    assert phi.b.ndim == 0
    t = torch.tensor([-3.0, -0.0025, 0.0, 0.01], dtype=torch.float64)
    assert phi(t).tolist() == pytest.approx([0, 0, 0, 0.01 - math.log(5) / 400])
    assert phi(t)[-1].item() == pytest.approx(0.005976, abs=5e-7)


@settings(max_examples=25, deadline=None)
@given(st.floats(-10, 10), st.floats(0.5, 1e4))
def test_smooth_relu_has_the_published_values_and_finite_gradients_everywhere(t, a):
    phi = SmoothReLU(a).double()
    a = phi.slope.item()
    point = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    value = phi(point)
    by_point, by_b = torch.autograd.grad(value, [point, phi.b])
    assert value.item() == pytest.approx(t - math.log1p(a * t) / a if t >= 0 else 0, abs=1e-9)
    assert by_point.item() == pytest.approx(a * t / (1 + a * t) if t >= 0 else 0, abs=1e-9)
    assert math.isfinite(by_b.item())


@pytest.mark.parametrize("a", [10.0, 1e3, 1e5])
def test_smooth_relu_and_softplus_tend_to_relu(a):
    t = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    for name, distance in (("smooth_relu", math.log1p(2 * a) / a), ("softplus", math.log(2) / a)):
        found = smooth_activation(name, a)().double()(t)
        assert (found - t.relu()).abs().max().item() == pytest.approx(distance, rel=1e-6)


def test_gelu_is_the_tanh_form_and_mish_and_silu_are_their_formulas():
    t = torch.linspace(-3, 3, 101, dtype=torch.float64)
    expected = {
        "gelu": 0.5 * t * (1 + torch.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))),
        "silu": t * torch.sigmoid(t),
        "mish": t * torch.tanh(torch.log1p(t.exp())),
        "softplus": torch.log1p((10 * t).exp()) / 10,
    }
    for name, values in expected.items():
        torch.testing.assert_close(smooth_activation(name)()(t), values, rtol=1e-7, atol=1e-8)


# The derivative alone


@given(st.integers(0, 1000), st.sampled_from([1.0, 10.0, 100.0]))
@settings(max_examples=10, deadline=None)
def test_backward_only_has_relus_values_and_the_derivative_of_softplus(seed, a):
    t = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    upstream, phi = t.flip(0), SmoothGradientReLU(a)
    for smooth in (True, False):
        point = t.clone().requires_grad_()
        with smooth_gradients(phi, on=smooth):
            value = phi(point)
        (gradient,) = torch.autograd.grad(value, point, upstream)
        assert torch.equal(value, t.relu())
        torch.testing.assert_close(gradient, upstream * (torch.sigmoid(a * t) if smooth else (t > 0).to(t)))


def test_the_derivative_may_itself_be_differentiated():
    phi = SmoothGradientReLU()
    with smooth_gradients(phi):
        assert torch.autograd.gradgradcheck(phi, torch.randn(5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("phases", ["attack", "update", "both"])
def test_each_phase_has_the_derivative_it_is_to_have(phases):
    batch = images()
    plain, smooth, ours = (
        method(activation="relu"),
        method(activation="relu", backward_only="both"),
        method(activation="relu", backward_only=phases),
    )
    steps = [trace(one, batch) for one in (plain, smooth, ours)]
    attacked = [torch.equal(steps[2].adversarial, other.adversarial) for other in steps[:2]]
    assert attacked == [phases == "update", phases != "update"]
    updated = gradients(ours, steps[2].loss)
    by_hand = smoothed(network().train(), "relu", backward_only=True)
    with smooth_gradients(by_hand, on=phases != "attack"):
        loss = F.cross_entropy(by_hand(steps[2].adversarial), batch[1])
    expected = torch.autograd.grad(loss, list(by_hand.parameters()))
    assert torch.equal(steps[2].loss, loss)
    assert torch.equal(updated, torch.cat([part.flatten() for part in expected]))


def test_who_evaluates_sees_a_plain_relu_network():
    ours = method(activation="relu", backward_only="both")
    trainer(1).fit(ours, loader(), loader(seed=2))
    x = images()[0].requires_grad_()
    plain = network()
    plain.load_state_dict(ours.classifier().state_dict())
    found, expected = (torch.autograd.grad(body.eval()(x).sum(), x)[0] for body in (ours.classifier(), plain))
    assert torch.equal(found, expected)


# Training


def test_gradients_reach_every_slope_and_no_weight_decay_does():
    ours = method(activation="smooth_relu", recipe=Recipe(learning_rate=0.1, weight_decay=0.5, schedule="constant"))
    trace(ours, images()).loss.backward()
    slopes = [part.b for part in ours.network.modules() if isinstance(part, SmoothReLU)]
    assert len(slopes) == 2
    assert all(b.grad is not None and b.grad != 0 for b in slopes)
    for decayed in ("all", "weights"):
        optimizer = replace(ours.recipe, decayed=decayed).build_optimizer(ours.network.parameters())
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert [decay[id(b)] for b in slopes] == [0, 0]
        assert decay[id(ours.network[0].weight)] == 0.5
        assert len(decay) == len(list(ours.network.parameters()))


def test_smooth_relu_that_stays_near_relu_is_said_to_answer_little():
    ours = method(activation="smooth_relu")
    trainer(2).fit(ours, loader())
    assert ours.history[-1]["slope"] == pytest.approx(400, rel=0.05)
    assert ours.remarks()["slope"] != 400
    assert ours.remarks()["mark"] == "SmoothReLU stayed near ReLU: the row answers little"
    assert "mark" not in method(activation="smooth_relu", slope=1.0).remarks()


def test_the_attack_in_eval_mode_leaves_statistics_alone_and_one_forward_in_train_mode_moves_them():
    batch = images()
    ours, by_hand = method(), smoothed(network()).train()
    modes = []
    ours.network.register_forward_hook(lambda module, *_: modes.append(module.training))
    step = trace(ours, batch)
    by_hand(step.adversarial)
    assert modes == [False] * 3 + [True]
    assert batches_seen(ours.network) == [1, 1]
    assert_same(statistics(ours.network), statistics(by_hand))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_of_the_batches_starts_from_the_images_themselves(share):
    x, y = images(6)
    ours = method(steps=0, clean_start=share)
    clean = [torch.equal(trace(ours, (x, y), step=step).adversarial, x) for step in range(100)]
    assert sum(clean) == pytest.approx(100 * share, abs=12 if 0 < share < 1 else 0)


def test_smoothed_labels_are_the_recipes_and_the_attack_sees_hard_ones():
    plain, soft = (trace(method(recipe=Recipe(label_smoothing=s)), images()) for s in (0.0, 0.1))
    assert torch.equal(plain.adversarial, soft.adversarial)
    assert plain.loss != soft.loss


def test_a_saved_smooth_relu_is_taken_up_again_with_its_slopes():
    ours = method(activation="smooth_relu")
    trainer(1).fit(ours, loader())
    again = SmoothAT.compose(lambda member: network(), activation="smooth_relu")
    again.load_state_dict(ours.classifier().state_dict())
    x = images()[0]
    assert torch.equal(again.eval()(x), ours.classifier().eval()(x))


# In the common track


def test_it_differs_from_pgd_at_in_the_activation_alone():
    ours, theirs = (plan(suite.load("digits-common", {"methods": {key: None}}))[0] for key in ("smooth_at", "pgd_at"))
    assert ours.settings["inner"] == theirs.settings["inner"]
    assert (ours.settings["inner"]["steps"], ours.settings["inner"]["mode"]) == (7, "eval")
    assert (ours.settings["loss"], ours.settings["clean_start"], ours.recipe) == ("ce", 0.0, theirs.recipe)
    assert 0.25 * ours.threat.epsilon == pytest.approx(0.0375)
    assert catalogue.get("smooth_at").card.comparison == "B"
    assert_same(dict(ours.build_network().state_dict()), dict(theirs.build_network().state_dict()))


def test_a_whole_suite_may_have_another_activation():
    (of,) = plan(suite.load("digits-common", {"methods": {"trades": None}, "network.settings.activation": "gelu"}))
    kinds = [part.approximate for part in of.build_network().modules() if isinstance(part, nn.GELU)]
    assert kinds == ["tanh"] * 3


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"activation": "swish"}, "activation is one of silu, gelu, .*, but found 'swish'"),
        ({"slope": 5.0}, "slope is of softplus and smooth_relu, and silu has none, but found 5.0"),
        ({"activation": "relu", "slope": 5.0}, "and relu has none, but found 5.0"),
        ({"activation": "softplus", "slope": 0.0}, "slope is above 0, but found 0.0"),
        ({"backward_only": "both"}, "keeps the values of ReLU: set activation to relu, but found 'silu'"),
        ({"activation": "relu", "backward_only": "never"}, "backward_only is one of none, attack, update, both"),
        ({"loss": "mart"}, "loss is one of ce, trades, but found 'mart'"),
        ({"clean_start": 2.0}, "clean_start is a probability, between 0 and 1, but found 2.0"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**changed)
