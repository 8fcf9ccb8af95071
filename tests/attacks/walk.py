"""Run an attack with one slot per image from given noise, and the official one from the same, to compare the two."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from attacks import ThreatModel, dlr_with, targeted_dlr_with
from attacks.engine import Jobs
from attacks.oracle import Oracle

LOSSES = {
    "ce": lambda logits, y, target: F.cross_entropy(logits, y, reduction="none"),
    "dlr": lambda logits, y, target: dlr_with(y)(logits),
    "targeted dlr": lambda logits, y, target: targeted_dlr_with(y, target)(logits),
}
OFFICIAL_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass
class Walk:
    """Where an attack came to: of every image, whether it held out, its last fooling point, and its best point."""

    robust: Tensor
    fooling: Tensor  # where ``robust``, the image's first point
    best: Tensor
    best_value: Tensor
    evaluations: int

    def assert_equals(self, other: "Walk") -> None:
        """Bit by bit, fooling points within the range: the official ones may leave it by a pixel's last bit."""
        assert torch.equal(self.robust, other.robust)
        assert torch.equal(self.fooling[~self.robust], other.fooling[~self.robust].clamp(0, 1))
        assert torch.equal(self.best, other.best)
        assert torch.equal(self.best_value, other.best_value)
        assert 0 < self.robust.sum() < len(self.robust)  # else the scene shows little


def rank(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x).argsort(1)


def given(noise: Tensor):
    """Start job ``i`` from ``noise[i]``."""
    return lambda jobs: noise[jobs.indices].to(jobs.x)


def walk(attack, network: nn.Module, x: Tensor, y: Tensor, phase: int = 0) -> Walk:
    """Run to the end; nothing drops out when it is fooled."""
    n, oracle = len(x), Oracle(network)
    state = attack.begin(Jobs(x, y, list(range(n)), [phase] * n, rank(network, x)))
    robust, fooling = torch.ones(n, dtype=torch.bool), state.point
    evaluations = 0
    while True:
        state, found = attack.step(state, oracle)
        evaluations += 1
        robust &= ~found.fooled
        fooling = torch.where(found.fooled[:, None, None, None], found.points, fooling)
        if found.finished.all():
            return Walk(robust, fooling, state.best, state.best_value, evaluations)


def official(
    loss: str, threat: ThreatModel, network: nn.Module, x: Tensor, y: Tensor, seed: int, staged: bool = False
) -> Walk:
    """Run the package's Auto-PGD for one restart, or its first target class; its noise comes from ``seed``."""
    targeted = loss == "targeted dlr"
    kind = APGDAttack_targeted if targeted else APGDAttack
    attack = kind(network, n_iter=100, norm=OFFICIAL_NORMS[threat.norm], eps=threat.epsilon, device="cpu")
    attack.init_hyperparam(x)
    if targeted:
        attack.y_target = rank(network, x)[:, -2]
    else:
        attack.loss = loss
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyautoattack.autopgd_base.check_zero_gradients", lambda *_, **__: None)  # it only warns
        torch.manual_seed(seed)
        if staged:
            best, accurate, value, fooling = attack.decr_eps_pgd(
                x, y, [factor * threat.epsilon for factor in (3.0, 2.0, 1.0)], [30, 30, 40]
            )
        else:
            best, accurate, value, fooling = attack.attack_single_run(x, y)
    return Walk(accurate.bool(), fooling, best, value, 0)


def drawn(threat: ThreatModel, x: Tensor, seed: int) -> Tensor:
    """The noise that the package draws from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return 2 * torch.rand(x.shape) - 1 if threat.norm == "linf" else torch.randn(x.shape)
