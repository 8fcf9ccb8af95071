"""Where attacks begin: noise that depends on seed, sample index, attack and phase alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.engine import Jobs
from attacks.randomness import normal, uniform
from attacks.threat import ThreatModel


def keyed_start(threat: ThreatModel, seed: int, name: str) -> Callable[[Jobs], Tensor]:
    """Draw the noise of jobs, like their images: U[-1, 1) for Linf, N(0, 1) for L2 and L1."""
    draw = uniform if threat.norm == "linf" else normal

    def noise(jobs: Jobs) -> Tensor:
        each = zip(jobs.x.split(1), jobs.indices, jobs.phase, strict=True)
        return torch.cat([draw(image, [index], seed, name, phase, "start") for image, index, phase in each])

    return noise
