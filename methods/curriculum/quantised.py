"""Input quantisation: grey levels in front of a network, as a defence that hides gradients unless they pass through."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput


def quantise(x: Tensor, levels: int) -> Tensor:
    r"""Round pixels in [0, 1] to ``levels`` values, :math:`Q(x) = |\{i: x \ge i / L\}| / (L - 1)`, i = 1, ..., L - 1.

    The gradient is 0 almost everywhere. Source: Cai et al., IJCAI 2018, arXiv:1805.04807, with 16 levels.
    """
    bounds = torch.arange(1, levels, dtype=x.dtype, device=x.device) / levels
    return torch.bucketize(x.detach().contiguous(), bounds, right=True).to(x) / (levels - 1)


class Quantised(nn.Module):
    """A network that sees quantised images; gradients pass straight through, so that attacks can adapt to it.

    Args:
        network: images to logits; it stands in ``members``, where whoever counts passes finds it.
        levels: how many values a pixel keeps, 2 or more.
    """

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise BadInput(f"levels is 2 or more, or null for no quantisation, but found {levels}")
        self.members = nn.ModuleList([network])
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the quantised images."""
        logits: Tensor = self.members[0](_StraightThrough.apply(x, self.levels))
        return logits


class _StraightThrough(torch.autograd.Function):
    """Quantise with the gradient of the identity: adding and taking away ``x`` would miss the levels by a rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        return quantise(x, levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
