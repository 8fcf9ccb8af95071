"""An ensemble that is one network to everybody else: saved, attacked and counted like any classifier."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attacks.errors import BadInput


class Ensemble(nn.Module):
    r"""Predict with the mean of the members' probabilities; the logits are its logarithm.

    .. math:: f(x) = \log \bar p, \quad \bar p = \frac{1}{K} \sum_k \mathrm{softmax}(f_k(x))

    so that softmax gives back the mean, and the cross-entropy of :math:`f` is :math:`-\log \bar p_y`. It may prefer
    another class than the mean of the logits does.

    Reading: computed in log space, :math:`\log \sum_k p_k - \log K`. The code of DVERGE clamps :math:`\bar p` at 1e-40
    before the logarithm; here nothing becomes 0, and below 1e-40 (no normal float32) the clamp's gradient is 0, which
    would hide the class from gradient attacks. Above, both are the same.

    Args:
        members: images ``(n, c, h, w)`` to logits ``(n, k)`` each, networks of their own.

    Raises:
        BadInput: for no member, or for one that stands in the ensemble twice.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise BadInput("an ensemble has at least one member, but found none")
        if len(set(self.members)) < len(self.members):
            raise BadInput(
                f"the members of an ensemble are networks of their own, but of {len(self.members)} only "
                f"{len(set(self.members))} are different objects: build each of them anew"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(n, k)`` of images ``(n, c, h, w)``, in float32 at least."""
        return log_mean_probability(self.members_logits(x))

    def members_logits(self, x: Tensor) -> Tensor:
        """Logits of every member, ``(members, n, k)``, in float32 at least, so that losses do not lose digits."""
        return torch.stack([in_full(member(x)) for member in self.members])


def log_mean_probability(logits: Tensor) -> Tensor:
    """Logarithm ``(n, k)`` of the mean probability of ``logits`` ``(members, n, k)``."""
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def in_full(logits: Tensor) -> Tensor:
    """Give ``logits`` in float32 at least, so that losses do not lose digits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
