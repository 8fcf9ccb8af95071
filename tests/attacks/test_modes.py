import pytest
import torch
from torch import nn

from attacks.modes import in_mode, without_parameter_gradients
from tests.models import curved, images


class Stop(Exception):
    pass


def modes(network):
    return [module.training for module in network.modules()]


def partly_frozen():
    network = curved().train()
    network[1].eval()
    return network


@pytest.mark.parametrize("mode", ["eval", "train", "batch"])
@pytest.mark.parametrize("network", [curved(), curved().train(), partly_frozen()], ids=["eval", "train", "partly"])
def test_each_part_is_in_its_own_mode_again_even_after_an_exception(network, mode):
    found = modes(network)
    with in_mode(network, mode):
        assert network.training == (mode != "eval")
    assert modes(network) == found
    with pytest.raises(Stop), in_mode(network, mode):
        raise Stop
    assert modes(network) == found


def test_eval_mode_reaches_every_part():
    network = curved().train()
    with in_mode(network, "eval"):
        assert not any(modes(network))


@pytest.mark.parametrize("mode", ["train", "batch"])
def test_a_layer_frozen_in_eval_mode_stays_frozen_while_the_network_is_attacked_in_train_mode(mode):
    network = partly_frozen()
    with in_mode(network, mode):
        assert not network[1].training


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_mode_predicts_as_train_mode_does_and_leaves_running_statistics_untouched(momentum):
    network, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=momentum)).eval(), images()
    buffers = list(network.buffers())
    before = [buffer.clone() for buffer in buffers]
    with in_mode(network, "batch"):
        predicted = [network(x) for _ in range(3)]
    assert all(torch.equal(found, kept) for found, kept in zip(network.buffers(), before, strict=True))
    assert all(found is own for found, own in zip(network.buffers(), buffers, strict=True))
    assert all(torch.equal(logits, network.train()(x)) for logits in predicted)


def test_batch_mode_between_a_forward_and_its_backward_disturbs_no_graph():
    network, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train(), images()
    loss = network(x).square().sum()
    with in_mode(network, "batch"):
        network(x)
    loss.backward()
    assert network[1].num_batches_tracked == 1


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
