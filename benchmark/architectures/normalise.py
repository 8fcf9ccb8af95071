"""Normalisation as the network's first layer, so that attacks and budgets live in pixel units."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmark.errors import BadInput


class Normalise(nn.Module):
    """Subtract ``mean`` and divide by ``std``, per channel, images ``(n, c, h, w)`` in [0, 1].

    It does not clamp: a clamp would take the gradient from pixels that are exactly 0 or 1. Both constants are buffers,
    so that saved weights bring their own normalisation.

    Raises:
        BadInput: the two differ in length, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(deviation <= 0 for deviation in std):
            raise BadInput(
                f"normalisation needs one mean and one positive std per channel, got mean {tuple(mean)} and "
                f"std {tuple(std)}: give both in [0, 1] pixel units"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return images of mean 0 and standard deviation 1, of the same shape."""
        return (x - self.mean) / self.std


class StandardisePerImage(nn.Module):
    """Give every image ``(c, h, w)`` a mean of 0 and a deviation of 1 over all its pixels and channels.

    The deviation is at least 1 / sqrt(number of values), as in TensorFlow's per_image_standardization; gradients flow
    through mean and deviation.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same shape."""
        flat = x.flatten(1)
        mean = flat.mean(1, keepdim=True)
        centred = flat - mean
        variance = centred.pow(2).mean(1, keepdim=True)
        least = 1 / flat.shape[1]
        return (centred / variance.clamp(min=least).sqrt()).reshape(x.shape)  # a flat image has no gradient there
