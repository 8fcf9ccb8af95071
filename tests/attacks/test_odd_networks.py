"""Networks as people write them: without gradient, writing to their images, not to be copied; and batches of one."""

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel, cross_entropy_with
from attacks.autoattack import autoattack
from attacks.checks import check_classifier
from attacks.errors import BadInput
from attacks.official import autoattack as official
from attacks.pgd import pgd
from attacks.slope import slope
from tests.models import linear

THREAT = ThreatModel("linf", 0.1)
ATTACKS = ["apgd-ce", "apgd-t", "fab", "fab-t", "square"]


class Around(nn.Module):
    """Calls ``how(network, x)``."""

    def __init__(self, how) -> None:
        super().__init__()
        self.network, self.how = linear(classes=5, size=16), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.network, x)


def without_grad(network, x):
    with torch.no_grad():
        return network(x)


def in_inference_mode(network, x):
    with torch.inference_mode():
        return network(x)


HIDING = [without_grad, in_inference_mode, lambda network, x: network(x.detach())]


@pytest.fixture
def images():
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def attacked(network, x, attacks=("apgd-ce", "apgd-t"), y=None, **how):
    y = linear(classes=5, size=16)(x.float()).argmax(1) if y is None else y
    return autoattack(network.eval(), x, y, THREAT, seed=0, version="custom", attacks=list(attacks), **how)


@pytest.mark.parametrize("how", HIDING)
def test_a_network_that_hides_its_gradient_withstands_attacks_that_use_it_and_no_other(how, images):
    network, y = Around(how), linear(classes=5, size=16)(images).argmax(1)
    found = attacked(network, images, ATTACKS)
    assert set(found.by) <= {"square", ""}
    assert "square" in found.by
    assert any("gradients may mislead" in line for line in found.log)
    start = (images + 0.05).clamp(0, 1)
    kept = pgd(network.eval(), images, cross_entropy_with(y), THREAT, start=start, steps=3, step_size=0.02)
    torch.testing.assert_close(kept, start)


def test_a_slope_is_zero_without_a_path_and_the_gradient_with_one():
    point, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    assert slope((2 * point).sum(), point).tolist() == [2, 2, 2]
    assert slope(other.sum(), point).tolist() == [0, 0, 0]
    assert slope(other.sum().detach(), point).tolist() == [0, 0, 0]


@pytest.mark.parametrize("attack", [attacked, lambda network, x: check_classifier(network, x, torch.zeros(6).long())])
def test_a_network_that_writes_to_its_images_is_refused_and_told_how_to_be_mended(attack, images):
    before = images.clone()
    with pytest.raises(BadInput, match="found it changing them: write x = x - mean in place of x -= mean"):
        attack(Around(lambda network, x: network(x.sub_(0.5))).eval(), images)
    torch.testing.assert_close(images, before)


def test_a_network_that_cannot_be_copied_is_attacked_as_it_is(images):
    network = Around(lambda network, x: network(x))
    expected = attacked(network, images)
    network.stream = iter(number for number in range(3))
    assert attacked(network, images).by == expected.by


def test_networks_without_parameters_and_in_float64_are_attacked(images):
    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x.flatten(1)[:, :5]

    assert attacked(Pixels(), images, ATTACKS, y=Pixels()(images).argmax(1)).survivors["square"] < 6
    exact = attacked(Around(lambda network, x: network.double()(x)), images.double(), ATTACKS)
    assert exact.adversarial.dtype == torch.float64
    assert exact.survivors == attacked(Around(lambda network, x: network(x)), images, ATTACKS).survivors


def test_layout_and_size_of_a_batch_are_no_matter(images):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(), nn.Linear(512, 5)
    network, x = nn.Sequential(*parts).eval(), torch.rand(6, 3, 4, 4)
    y = network(x).argmax(1)
    usual = attacked(network, x, y=y)
    turned = attacked(network, x.to(memory_format=torch.channels_last), y=y)
    alone = [attacked(network, x[n : n + 1], y=y[n : n + 1], index=torch.tensor([n])).by[0] for n in range(6)]
    assert usual.by == turned.by == alone


def test_images_that_are_all_misread_and_a_radius_of_zero_leave_nothing_to_do(images):
    network = Around(lambda network, x: network(x))
    y = network(images).argmax(1)
    assert set(attacked(network, images, ATTACKS, y=(y + 1) % 5).by) == {"clean"}
    nowhere = autoattack(network.eval(), images, y, THREAT.at(0.0), seed=0, version="custom", attacks=ATTACKS)
    assert set(nowhere.by) == {""}
    torch.testing.assert_close(nowhere.adversarial, images, rtol=0, atol=0)


def test_the_images_are_read_in_whole_float32_before_they_are_attacked(images):
    seen = []
    convolutions = torch.backends.cudnn.conv
    attacked(Around(lambda network, x: seen.append(convolutions.fp32_precision) or network(x)), images)
    assert set(seen) == {"ieee"}


def test_the_official_engine_names_what_it_cannot_do(images):
    with pytest.raises(BadInput, match="found it changing them"):
        official(Around(lambda network, x: network(x.sub_(0.5))).eval(), images, torch.zeros(6).long(), THREAT, seed=0)
