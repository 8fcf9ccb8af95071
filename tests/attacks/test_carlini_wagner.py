import pytest
import torch

from attacks import BadInput, ThreatModel, carlini_wagner_l2, margin, margin_with
from attacks.carlini_wagner import l2_distance
from attacks.pgd import pgd
from tests.models import Constant, curved, images, linear

FAST = {"searches": 7, "iterations": 150, "first_constant": 0.1}


def middling(n=12):
    """Images around grey, so that the way to the boundary ends inside the pixel range."""
    network = linear()
    x = 0.4 + 0.2 * images(n)
    return network, x, network(x).argmax(1)


def test_on_a_linear_network_the_distance_is_the_analytic_one_and_never_less():
    network, x, y = middling()
    found = carlini_wagner_l2(network, x, y, **FAST)
    distance, least = l2_distance(found, x), network.l2_radius(x, y)
    assert (margin(network(found), y) > 0).all()
    assert (distance >= least - 1e-6).all()
    assert (distance <= 1.03 * least + 1e-3).all()


def test_the_network_errs_by_more_than_the_confidence_and_more_of_it_takes_a_longer_way():
    network, x, y = middling(6)
    plain, sure = (carlini_wagner_l2(network, x, y, confidence=kappa, **FAST) for kappa in (0.0, 0.5))
    assert (margin(network(sure), y) > 0.5).all()
    assert (l2_distance(sure, x) > l2_distance(plain, x)).all()


def test_misclassified_images_come_back_unmoved():
    network, x, y = middling(6)
    y = torch.where(torch.arange(6) % 2 == 0, y, (y + 1) % 10)
    found = carlini_wagner_l2(network, x, y, searches=3, iterations=60, first_constant=1.0)
    moved = l2_distance(found, x) > 0
    assert moved.tolist() == [True, False] * 3
    assert torch.equal(found[1::2], x[1::2])


def test_where_nothing_is_found_the_image_itself_comes_back():
    x, y = images(3), torch.zeros(3, dtype=torch.long)
    network = Constant([1.0, 0.0, 0.0]).eval()
    assert torch.equal(carlini_wagner_l2(network, x, y, searches=2, iterations=5), x)


def test_black_and_white_images_can_be_moved_and_stay_in_the_range():
    network, x = linear(), images(6).round()
    y = network(x).argmax(1)
    found = carlini_wagner_l2(network, x, y, searches=6, iterations=400, first_constant=0.1)
    assert (margin(network(found), y) > 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_it_finds_no_longer_ways_than_pgd_in_balls_of_its_size():
    network, x = curved(), images(8)
    y = network(x).argmax(1)
    distance = l2_distance(carlini_wagner_l2(network, x, y, **FAST), x)
    shorter = pgd(
        network, x, margin_with(y), ThreatModel("l2"), start=x, steps=50, step_size=0.02, radius=0.9 * distance
    )
    with torch.no_grad():
        assert (margin(network(shorter), y) <= 0).all()


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_it_leaves_no_trace_and_does_not_mind_where_gradients_are_off(context):
    network = curved()
    network[0].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with context():
        x = images(4) * 1
        y = network(x).argmax(1)
        found = carlini_wagner_l2(network, x, y, searches=2, iterations=30, first_constant=10.0)
    assert not found.requires_grad
    assert not torch.equal(found, x)
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_flags_come_back_after_an_exception():
    network, x = curved(), images(2)

    def refuse(module, inputs):
        if inputs[0].requires_grad:
            raise BadInput("enough")

    network.register_forward_pre_hook(refuse)
    with pytest.raises(BadInput):
        carlini_wagner_l2(network, x, torch.zeros(2, dtype=torch.long), searches=1, iterations=1)
    assert all(parameter.requires_grad for parameter in network.parameters())
