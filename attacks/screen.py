"""Judge proposals of a search that accepts only what is better: in short precision first, then in full."""

from typing import NamedTuple

import torch
from torch import Tensor

from attacks.objectives import margin
from attacks.oracle import Oracle


class Judged(NamedTuple):
    """What a network makes of points, ``(b,)`` each.

    Attributes:
        value: margins, higher being worse for the network; -inf where a point was refused in short precision.
        wrong: the point is misclassified.
        rough: margins in the precision of the search.
    """

    value: Tensor
    wrong: Tensor
    rough: Tensor


def judged(oracle: Oracle, points: Tensor, y: Tensor, bar: Tensor) -> Judged:
    """Give margins in full precision: of all points, or in a short search of those that it finds better than ``bar``.

    With short values alone a search accepts false points and cannot leave them. So each point that seems better, one in
    forty on a network that holds, is judged by the plain network; a better one that does not seem so is lost.

    Args:
        bar: ``rough`` of what a point has to beat ``(b,)``, -inf at the start.
    """
    logits = oracle.logits(points)
    rough, wrong = margin(logits, y), logits.argmax(1) != y
    if oracle.precision == "fp32":
        return Judged(rough, wrong, rough)
    rows = (rough > bar).nonzero().flatten()
    value, wrong = torch.full_like(rough, -torch.inf), torch.zeros_like(wrong)
    if len(rows):
        exact = oracle.exact_logits(points[rows], of=len(points))
        value[rows], wrong[rows] = margin(exact, y[rows]), exact.argmax(1) != y[rows]
    return Judged(value, wrong, rough)
