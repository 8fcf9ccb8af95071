"""Count what a method costs: images through the network, forward and backward, seen from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Passes:
    """Images that went through a network; a joint backward over two forwards counts both."""

    forward: int = 0
    backward: int = 0


def networks_in(network: nn.Module) -> list[nn.Module]:
    """List the networks that an image goes through: those in ``network.members`` of an ensemble, else the one."""
    members = getattr(network, "members", None)
    return list(members) if isinstance(members, nn.ModuleList) else [network]


@contextmanager
def counting(network: nn.Module, passes: Passes | None = None) -> Iterator[Passes]:
    """Count forward and backward passes through ``network`` inside the block, in images.

    A backward is counted whenever a gradient arrives at the logits of a forward: once per forward that it runs
    through, and in a double backward once for the inner gradient and once for the outer. In an ensemble every member
    counts (:func:`networks_in`), whether it is run by the ensemble or by itself.

    Example::

        with counting(network) as passes:
            F.cross_entropy(network(x), y).backward()
        assert (passes.forward, passes.backward) == (len(x), len(x))
    """
    total = Passes() if passes is None else passes

    def forward(_module: nn.Module, inputs: tuple[Tensor, ...], logits: object) -> None:
        images = len(inputs[0])
        total.forward += images
        if isinstance(logits, Tensor) and logits.requires_grad:
            logits.register_hook(lambda _gradient: backward(images))

    def backward(images: int) -> None:
        total.backward += images

    handles = [part.register_forward_hook(forward) for part in networks_in(network)]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()
