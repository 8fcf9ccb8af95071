"""Small networks beside a suite's own, for methods that need others: the sources of an attack, say."""

import inspect

from benchmark.architectures.digits_cnn import digits_cnn
from benchmark.architectures.mnist_small import mnist_small
from benchmark.suite import NetworkChoice

_SMALL = {builder.__name__: builder for builder in (digits_cnn, mnist_small)}  # they have a width
_ELSE = NetworkChoice("digits_cnn", {"width": 32})  # beside a larger network: three convolutions, 32 channels first
_KEPT = ("normalise", "activation")  # settings that say how images enter, not how large the network is


def kin(choice: NetworkChoice, kind: float | str | None) -> NetworkChoice:
    """Choose a network of another ``kind``: of a width, as a multiple, or by its architecture's name; None for its own.

    A small convolutional network is widened itself; beside any other stands that of digits, at 16, 32 and 64 channels
    for half, once and twice the width.
    """
    if kind is None:
        return choice
    kept = {} if choice.code is not None else {key: choice.settings[key] for key in _KEPT if key in choice.settings}
    if isinstance(kind, str):
        return NetworkChoice(kind, kept)
    near = choice if choice.name in _SMALL and choice.code is None else _ELSE
    width = near.settings.get("width", inspect.signature(_SMALL[near.name]).parameters["width"].default)
    return NetworkChoice(near.name, {**near.settings, **kept, "width": max(1, round(kind * width))})
