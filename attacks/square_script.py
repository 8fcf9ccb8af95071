"""What Square Attack will try, drawn before it begins: how large the windows are, where they lie, and their signs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.engine import Jobs
from attacks.randomness import uniform

_FIRST_SHARE = 0.8  # p: of the image's area, in the first window
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def share(proposal: int) -> float:
    """Give p, the share of the area that the window of a proposal covers; proposals count from 0.

    Source: Andriushchenko et al., ECCV 2020, arXiv:1912.00049, section 3; not stretched to the number of queries, as in
    the standard version of AutoAttack.
    """
    return float(_FIRST_SHARE / 2 ** sum(proposal > after for after in _HALVED_AFTER))


def window_sizes(proposals: int, height: int, width: int, *, odd: bool = False) -> list[int]:
    """Give the side of the square window of each proposal; ``odd`` ones, at least 3, are those of L2 and L1."""
    sizes = []
    for proposal in range(proposals):
        size = max(round(math.sqrt(share(proposal) * height * width)), 3 if odd else 1)
        if odd:
            size += 1 - size % 2
        sizes.append(min(size, height, width))
    return sizes


def places(sizes: Tensor, length: int) -> Tensor:
    """Count the places of a window along a side of ``length`` pixels.

    One fewer than would fit: the authors draw the integer part of U[0, length - size), so that no window ever reaches
    the last row or column. That is the definition of the standard version, so we keep it.
    """
    return (length - sizes).clamp(min=1)


def draws(jobs: Jobs, shape: Sequence[int], seed: int, draw: str) -> Tensor:
    """Draw U[0, 1) of ``shape`` for each job, in float64, keyed by (seed, index, "square", restart, ``draw``)."""
    like = jobs.x.new_empty((1, *shape), dtype=torch.float64)
    rows = [
        uniform(like, [index], seed, "square", phase, draw)
        for index, phase in zip(jobs.indices, jobs.phase, strict=True)
    ]
    return (torch.cat(rows) + 1) / 2
