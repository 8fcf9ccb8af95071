import pytest
import torch
import torch.nn.functional as F

from attacks import Passes, ThreatModel, counting, cross_entropy_with
from attacks.passes import networks_in
from attacks.pgd import pgd
from tests.models import Averaged, curved, images

X, Y = images(6), torch.tensor([0, 1, 2, 3, 4, 5])


@pytest.fixture
def network():
    return curved()


def counted(passes):
    return passes.forward, passes.backward


def test_one_training_step_is_one_forward_and_one_backward_per_image(network):
    with counting(network) as passes:
        F.cross_entropy(network(X), Y).backward()
    assert counted(passes) == (6, 6)


def test_a_joint_backward_over_two_forwards_counts_both(network):
    with counting(network) as passes:
        (network(X).sum() + network(X[:4]).square().sum()).backward()
    assert counted(passes) == (10, 10)


def test_a_forward_that_the_loss_does_not_use_has_no_backward(network):
    with counting(network) as passes:
        network(X)
        network(X[:2]).sum().backward()
    assert counted(passes) == (8, 2)


def test_a_double_backward_counts_the_inner_gradient_once_and_the_outer_once(network):
    x = X.clone().requires_grad_()
    with counting(network) as passes:
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), Y), x, create_graph=True)
        assert counted(passes) == (6, 6)
        gradient.square().sum().backward()
    assert counted(passes) == (6, 12)


def test_a_backward_for_the_images_alone_counts_like_any_other(network):
    x = X.clone().requires_grad_()
    with counting(network) as passes:
        torch.autograd.grad(network(x).sum(), x)
    assert counted(passes) == (6, 6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_forwards_count(network, context):
    with counting(network) as passes, context():
        network(X)
    assert counted(passes) == (6, 0)


@pytest.mark.parametrize(("keep", "expected"), [("last", (24, 24)), ("best", (30, 24))])
def test_pgd_costs_a_forward_and_a_backward_a_step_and_the_best_iterate_one_forward_more(network, keep, expected):
    with counting(network) as passes:
        pgd(network, X, cross_entropy_with(Y), ThreatModel(), start=X, steps=4, step_size=0.01, keep=keep)
    assert counted(passes) == expected


def test_counts_add_up_over_blocks_that_share_them(network):
    total = Passes()
    for _ in range(3):
        with counting(network, total) as passes:
            network(X).sum().backward()
        assert passes is total
    assert counted(total) == (18, 18)


def test_of_an_ensemble_every_member_counts_whether_run_by_it_or_by_itself():
    ensemble = Averaged(curved(seed=seed) for seed in range(3))
    with counting(ensemble) as passes:
        F.cross_entropy(ensemble(X), Y).backward()
    assert counted(passes) == (18, 18)
    with counting(ensemble) as passes:
        ensemble.members[0](X)
        ensemble.members[2](X).sum().backward()
    assert counted(passes) == (12, 6)
    assert networks_in(ensemble) == list(ensemble.members)
    assert not any(module._forward_hooks for module in ensemble.modules())


def test_a_network_is_one_even_where_something_else_is_called_members(network):
    network.members = 3
    assert networks_in(network) == [network]


def test_nothing_is_counted_after_the_block_and_no_hook_stays(network):
    with counting(network) as passes:
        network(X)
    network(X)
    assert counted(passes) == (6, 0)
    assert not network._forward_hooks
    with pytest.raises(ZeroDivisionError), counting(network):
        1 / 0  # noqa: B018
    assert not network._forward_hooks
