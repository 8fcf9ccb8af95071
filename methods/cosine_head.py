"""A last layer that compares directions: cosines of features and class weights, times a fixed scale."""

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import full_precision

TINY = 1e-12  # a vector no longer than this has no direction


class CosineHead(nn.Linear):
    r"""Give :math:`s \cos(z, w_c)` for features ``(n, d)``, ``(n, k)``, whatever their lengths; it has no bias.

    In train mode the stored rows are first replaced by their unit vectors, outside the graph: the gradient of the
    weights is then the plain one, with its part along the row, and weight decay finds unit rows. In eval mode nothing
    is written; the logits are the same.

    Args:
        linear: whose weights it begins with.
        scale: s.
        in_graph: normalise the rows inside the graph, and leave the stored ones alone; the gradient is then tangent to
            the sphere.

    Source: Pang et al., NeurIPS 2020, arXiv:2002.08619.
    """

    def __init__(self, linear: nn.Linear, *, scale: float, in_graph: bool = False) -> None:
        nn.Module.__init__(self)  # Linear's own would draw weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.register_parameter("bias", None)
        self.scale, self.in_graph = scale, in_graph
        if not in_graph:
            self.normalise()

    def forward(self, features: Tensor) -> Tensor:
        """Logits in [-s, s], in the weights' precision; 0 for features that are all 0."""
        if self.training and not self.in_graph:
            self.normalise()
        weight = units(self.weight)
        if not self.in_graph:
            weight = self.weight + (weight - self.weight).detach()
        return self.scale * cosines(features, weight)

    def normalise(self) -> None:
        """Replace the stored rows by their unit vectors."""
        with torch.no_grad():
            self.weight.copy_(units(self.weight))


@torch.fx.wrap  # tracers take it whole: they cannot follow the precision
def cosines(features: Tensor, rows: Tensor) -> Tensor:
    """Give the cosine of each of the ``features`` ``(n, d)`` with each of the unit ``rows`` ``(k, d)``, ``(n, k)``."""
    with full_precision(features):  # times a scale, three digits of bfloat16 would be too few
        return units(features.to(rows.dtype)) @ rows.T


def units(vectors: Tensor) -> Tensor:
    """Give each of ``vectors`` ``(n, d)`` length one; one of no length stays 0, with a finite gradient."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(length > TINY, length, 1.0)


def head_of(network: nn.Module) -> CosineHead | None:
    """Find the cosine head of ``network``, if it has one."""
    return next((part for part in network.modules() if isinstance(part, CosineHead)), None)


def with_cosine_head(network: nn.Module, *, scale: float, in_graph: bool = False) -> nn.Module:
    """Put a cosine head in the place of the last linear layer of ``network``, with its weights, and give it back.

    A head that is there already is set to ``scale`` and ``in_graph``.

    Raises:
        BadInput: for a network that has no ``nn.Linear``.
    """
    head = head_of(network)
    if head is not None:
        head.scale, head.in_graph = scale, in_graph
        return network
    linear = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear or not linear[-1][0]:
        raise BadInput(
            "a cosine head takes the place of the one nn.Linear that makes the logits of features, but found none in "
            f"{type(network).__name__}: end the network with an nn.Linear"
        )
    name, last = linear[-1]
    network.set_submodule(name, CosineHead(last, scale=scale, in_graph=in_graph).train(last.training))
    return network
