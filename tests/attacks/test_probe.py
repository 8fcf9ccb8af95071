"""How many images at once: chosen by a probe, within memory."""

import pytest
import torch
from torch import Tensor, nn

from attacks.oracle import Oracle
from attacks.probe import fastest_slots, seconds_of_a_step
from tests.models import curved, linear

IMAGES = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Greedy(nn.Module):
    """Runs out of memory above so many images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.inner = most, linear()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


def chosen(pace, images=IMAGES):
    asked = []

    def timed(size):
        asked.append(size)
        return size * pace[size]

    return fastest_slots(linear(), images, timed=timed), asked


def test_the_size_with_the_fastest_images_is_chosen():
    assert chosen({16: 5.0, 32: 4.0, 64: 2.0, 128: 3.0, 256: 3.0}) == (64, [16, 32, 64, 128, 256])


def test_of_sizes_as_fast_as_each_other_the_smallest_is_chosen():
    assert chosen(dict.fromkeys((16, 32, 64, 128, 256), 1.0))[0] == 16
    assert chosen({16: 2.0, 32: 1.01, 64: 1.0, 128: 1.0, 256: 1.0})[0] == 32


def test_the_probe_ends_where_two_sizes_in_a_row_are_no_faster():
    assert chosen({16: 2.0, 32: 1.0, 64: 1.1, 128: 1.2}) == (32, [16, 32, 64, 128])


def test_no_more_images_are_tried_than_there_are():
    assert chosen({16: 2.0, 32: 1.0}, IMAGES[:40]) == (32, [16, 32])
    assert chosen({5: 1.0}, IMAGES[:5]) == (5, [5])


@pytest.mark.parametrize(("most", "expected"), [(100, 64), (7, 4), (1, 1)])
def test_it_stays_within_memory(most, expected):
    network, sizes = Greedy(most), []

    def timed(size):
        network(IMAGES[:size])
        sizes.append(size)
        return size / len(sizes)  # the larger, the faster

    # Folding and layout are tried on 16 images; a network that has no room for them is searched as it is.
    assert fastest_slots(network, IMAGES, timed=timed) == expected


def test_a_network_without_room_for_one_image_is_no_choice():
    with pytest.raises(torch.OutOfMemoryError):
        fastest_slots(Greedy(0), IMAGES)


def test_the_least_of_three_times_counts_and_the_first_does_not():
    ticks = iter([0, 100, 100, 109, 109, 114, 114, 121])
    assert seconds_of_a_step(Oracle(linear()), IMAGES[:2], lambda: next(ticks)) == 5


def test_it_leaves_network_and_generator_as_they_were():
    network, state = curved(), torch.get_rng_state()
    flags = [parameter.requires_grad for parameter in network.parameters()]
    with torch.inference_mode():
        assert fastest_slots(network, IMAGES[:32]) in (16, 32)
    assert torch.equal(state, torch.get_rng_state())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
