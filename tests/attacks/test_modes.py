import pytest
import torch
from torch import nn

from attacks.modes import in_mode, without_parameter_gradients
from tests.models import curved


class Stop(Exception):
    pass


def modes(network):
    return [module.training for module in network.modules()]


def partly_frozen():
    network = curved().train()
    network[1].eval()
    return network


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("network", [curved(), curved().train(), partly_frozen()], ids=["eval", "train", "partly"])
def test_each_part_is_in_its_own_mode_again_even_after_an_exception(network, mode):
    found = modes(network)
    with in_mode(network, mode):
        assert network.training == (mode == "train")
    assert modes(network) == found
    with pytest.raises(Stop), in_mode(network, mode):
        raise Stop
    assert modes(network) == found


def test_eval_mode_reaches_every_part():
    network = curved().train()
    with in_mode(network, "eval"):
        assert not any(modes(network))


def test_a_layer_frozen_in_eval_mode_stays_frozen_while_the_network_is_attacked_in_train_mode():
    network = partly_frozen()
    with in_mode(network, "train"):
        assert not network[1].training


def test_flags_and_gradients_are_as_before_even_after_an_exception():
    network = curved()
    network[0].weight.requires_grad_(False)
    network[5].weight.grad = torch.ones_like(network[5].weight)
    found = [parameter.requires_grad for parameter in network.parameters()]
    with without_parameter_gradients(network):
        assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(Stop), without_parameter_gradients(network):
        raise Stop
    assert [parameter.requires_grad for parameter in network.parameters()] == found
    assert torch.equal(network[5].weight.grad, torch.ones_like(network[5].weight))


def test_a_parameter_used_twice_gets_its_flag_back():
    layer = nn.Linear(2, 2)
    network = nn.Sequential(layer, layer)
    with without_parameter_gradients(network):
        assert not layer.weight.requires_grad
    assert layer.weight.requires_grad
