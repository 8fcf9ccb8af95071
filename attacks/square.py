"""Square Attack: random search over square windows that asks a network for its logits only, never for a gradient.

Source: Andriushchenko et al., ECCV 2020, arXiv:1912.00049; L1: Croce and Hein, ICML 2021, arXiv:2103.01208. The
searches themselves are in :mod:`attacks.square_linf` and, for L2 and L1, in :mod:`attacks.square_mass`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attacks.engine import Attack, Found, Jobs
from attacks.oracle import Oracle
from attacks.square_linf import SquareLinf
from attacks.square_mass import SquareMass
from attacks.threat import ThreatModel


@dataclass(frozen=True)
class Square:
    """Square Attack within ``threat`` on the margin, as in the standard version of AutoAttack; a phase is a restart.

    Each image's draws depend on seed, sample index and restart alone, while the authors' code gives all images of a
    batch the same windows. It also stops an image whose margin is exactly 0, a tie; here that one is searched on.

    Args:
        threat: of any norm.
        seed: of the draws, with the sample index and the restart.
        queries: proposals for each image, after the start.
        skip_known: (Linf) pass over proposals that a deterministic network is known to refuse. They count as queries
            all the same, and verdict and picture are the same without.
    """

    threat: ThreatModel
    seed: int
    queries: int = 5000
    skip_known: bool = True

    def begin(self, jobs: Jobs) -> tuple[Tensor, ...]:
        """Draw the script of each job, and start."""
        return self._search.begin(jobs)

    def step(self, state: tuple[Tensor, ...], oracle: Oracle) -> tuple[tuple[Tensor, ...], Found]:
        """Evaluate a proposal in each slot, with one question to the network."""
        return self._search.step(state, oracle)

    @property
    def _search(self) -> Attack[Any]:
        if self.threat.norm != "linf":
            return SquareMass(self.threat, self.seed, self.queries)
        return SquareLinf(self.threat, self.seed, self.queries, self.skip_known)
