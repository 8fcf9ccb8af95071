"""What a faithful implementation of semi-supervised distributionally robust learning must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.modes import in_mode
from benchmark import suite
from benchmark.experiment import plan
from benchmark.references import references
from methods import SSDRL
from methods.base import Batch
from methods.inner import Inner
from methods.semi_supervised.ssdrl import class_weights, transport_cost
from methods.unlabelled import HIDDEN
from tests.methods.tools import batches_seen, gradients, images, network, statistics, trace

THREAT = ThreatModel("linf", 0.1)


def method(body=None, steps=2, **own):
    inner = Inner(steps=steps, start="none", mode="batch")
    return SSDRL(network() if body is None else body, THREAT, inner=inner, **own).double().train()


def batch(hidden=12):
    x, y = images()
    return x.double(), y.index_fill(0, torch.arange(hidden), HIDDEN), torch.arange(24)


def test_without_alpha_it_trains_on_the_networks_own_labels():
    ours = method(alpha=0.0, steps=1)
    x, y, _ = whole = batch()
    loss = trace(ours, whole).loss
    with in_mode(ours.network, "batch"), torch.no_grad():
        own = ours.network(x[:12])
        expected = F.cross_entropy(own, own.argmax(1)) + F.cross_entropy(ours.network(x[12:]), y[12:])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_weights_are_uniform_without_lambda_and_go_to_the_least_or_the_greatest_with_much_of_it():
    values = torch.tensor([[0.3, 2.0], [1.0, 0.1], [4.0, 0.5]])
    torch.testing.assert_close(class_weights(values, 0.0), torch.full((3, 2), 1 / 3))
    assert class_weights(values, -1e4).argmax(0).tolist() == [0, 1]
    assert class_weights(values, 1e4).argmax(0).tolist() == [2, 0]
    assert class_weights(values, 1e4).amax(0).tolist() == [1, 1]


def test_without_unlabelled_images_it_is_the_labelled_term_and_takes_the_whole_batch():
    ours, (x, y, _) = method(unsup_fraction=0.0), batch(0)
    step = trace(ours, (x, y))
    with in_mode(ours.network, "batch"):
        expected = F.cross_entropy(ours.network(step.adversarial), y)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(ours, expected))
    assert [method(unsup_fraction=share).labelled_rows(160, 4000, 50_000) for share in (0, 0.5, 0.8)] == [160, 80, 32]


@pytest.mark.parametrize("lam", [-1.0, 2.0])
def test_the_gradient_is_that_of_the_soft_extremum_at_fixed_images(lam):
    ours, (x, y, index) = method(lam=lam, max_classes=None), batch(24)
    made, perturb = [], ours.perturb
    ours.perturb = lambda *given: made.append(perturb(*given)) or made[-1]
    loss = trace(ours, (x, y, index)).loss
    with in_mode(ours.network, "batch"):
        order = ours.classes_of(x)
        values = [
            F.cross_entropy(ours.network(moved), label, reduction="none")
            - ours.gamma * transport_cost(2 * moved - 1, 2 * x - 1)
            for moved, label in zip(made, order.unbind(1), strict=True)
        ]
    extremum = (torch.stack(values) * lam).logsumexp(0).mean() / lam
    torch.testing.assert_close(gradients(ours, loss), gradients(ours, extremum), rtol=1e-8, atol=1e-10)


def test_images_move_less_the_dearer_the_way_and_in_the_end_not_at_all():
    x, y, _ = batch(0)
    moved = [trace(method(gamma=gamma), (x, y)).adversarial - x for gamma in (0.5, 2.0, 10.0, 1e6)]
    lengths = [delta.norm().item() for delta in moved]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 1e-4


def test_one_step_goes_alpha_over_gamma_along_the_gradient_in_wide_pixels():
    (x, y, index), ours = batch(0), method(steps=1, gamma=2.0, alpha=0.5, clipped=False)
    wide = (2 * x - 1).requires_grad_()
    with in_mode(ours.network, "batch"):
        (slope,) = torch.autograd.grad(F.cross_entropy(ours.network((wide + 1) / 2), y, reduction="sum"), wide)
    attacked = ours.perturb(Batch(x, y, index), lambda logits: F.cross_entropy(logits, y, reduction="none"))
    torch.testing.assert_close(2 * attacked - 1, wide.detach() + 0.25 * slope)


def test_neither_weights_nor_images_carry_a_graph():
    values = torch.randn(3, 4, requires_grad=True)
    assert not class_weights(values, 1.0).requires_grad
    assert not trace(method(), batch()).adversarial.requires_grad


def test_running_statistics_move_once_and_know_nothing_of_unlabelled_images():
    one, other = method(max_classes=None), method(max_classes=None)
    x, y, index = batch()
    trace(one, (x, y, index))
    trace(other, (torch.cat([1 - x[:12], x[12:]]), y, index))
    assert set(batches_seen(one.network)) == {1}
    for name, value in statistics(one.network).items():
        assert torch.equal(value, statistics(other.network)[name])


@pytest.mark.parametrize(
    ("classes", "forward", "backward"),
    [(1, 24 * (2 + 2), 24 * 3), (None, 12 * 4 + 12 * (1 + 3 * 2 + 3), 3 * (12 + 12 * 3))],
)
def test_passes_are_those_of_the_specification(classes, forward, backward):
    ours = method(max_classes=classes)
    with counting(ours.network) as passes:
        trace(ours, batch()).loss.backward()
    assert (passes.forward, passes.backward) == (forward, backward)


def test_a_negative_lambda_considers_the_likeliest_class_and_a_positive_one_the_least_likely():
    x = batch()[0]
    for lam, choose in ((-1.0, torch.argmax), (1.0, torch.argmin)):
        ours = method(lam=lam).eval()
        assert torch.equal(ours.classes_of(x)[:, 0], choose(ours.network(x), 1))


def test_epsilon_does_not_enter():
    one, other = (SSDRL(network(), ThreatModel("linf", size)).train() for size in (0.01, 0.5))
    x, y = images()
    assert torch.equal(trace(one, (x, y)).adversarial, trace(other, (x, y)).adversarial)


def test_elu_stands_in_the_place_of_each_relu_where_it_is_asked_for():
    kinds = [type(layer) for layer in SSDRL.compose(lambda _: network(), activation="elu").modules()]
    assert nn.ReLU not in kinds
    assert kinds.count(nn.ELU) == 2
    assert method(body=SSDRL.compose(lambda _: network(), activation="elu")).remarks() == {}
    assert "smooth activation" in method().remarks()["activation"]


@pytest.mark.parametrize(("displacement", "marked"), [(0.2, True), (0.26, False), (0.9, False), (1.1, True)])
def test_a_gamma_that_does_not_fit_is_marked_and_not_retuned(displacement, marked):
    ours = method()
    ours.history = [{"displacement": displacement, "at_bounds": 0.1}]
    assert ("mark" in ours.remarks()) == marked
    ours.history = [{"displacement": displacement, "at_bounds": 0.21}]
    assert "gamma too small" in ours.remarks()["bounds"]


def test_on_digits_half_of_a_batch_is_labelled_and_two_lower_ends_stand_beside_it():
    whole = suite.load("digits-common")
    (of,) = plan(replace(whole, methods={"ssdrl": whole.methods["ssdrl"]}))
    assert (of.settings["gamma"], of.settings["inner"]["steps"], of.labels) == (0.3, 7, 200)
    assert of.build_method(of.build_network()).labelled_rows(64, 200, 1197) == 32
    assert sorted(one.row for one in references([of], whole)) == ["natural@200", "pgd_at@200", "ssdrl/drl@200"]
    listed = suite.load("digits-variants")
    own = {row: settings for row, settings in listed.methods.items() if row.startswith("ssdrl")}
    rows = plan(replace(listed, methods=own))
    assert "ssdrl/drl@200" not in [one.row for one in references(rows, listed)]  # it is the listed variant


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gamma": 0.0}, "gamma is above 0, but found 0.0"),
        ({"alpha": -1.0}, "alpha is 0 or more, but found -1.0"),
        ({"unsup_fraction": 2.0}, "unsup_fraction lies between 0 and 1, but found 2.0"),
        ({"max_classes": 0}, "max_classes is 1 or more, or null for all, but found 0"),
        ({"activation": "gelu"}, "activation is own or elu, but found 'gelu'"),
        ({"inner": Inner(steps=2)}, "of inner only steps can be chosen"),
    ],
)
def test_mistakes_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        SSDRL(network(), THREAT, **wrong)
