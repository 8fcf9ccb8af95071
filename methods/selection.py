"""Which epoch's weights are kept: robust accuracy on held-out training images, never on the test set."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attacks.objectives import cross_entropy_with, margin_with
from attacks.pgd import pgd
from attacks.randomness import uniform
from attacks.threat import ThreatModel

Ties = Literal["later", "first"]


@dataclass(frozen=True, order=True)
class Score:
    """Accuracies in [0, 1] on the held-out images, compared robust first and clean second."""

    robust: float
    clean: float


def beats(new: Score, best: Score | None, ties: Ties = "later") -> bool:
    """Whether ``new`` replaces ``best``. NaN never wins.

    ``later``: the protocol's rule; equal robust accuracy is decided by clean accuracy, then for the later epoch.
    ``first``: the rule of Rice et al., ICML 2020, arXiv:2002.11569; only a strictly higher robust accuracy replaces.
    """
    if math.isnan(new.robust) or math.isnan(new.clean):
        return False
    if best is None:
        return True
    return new >= best if ties == "later" else new.robust > best.robust


def select(curve: Iterable[Score], ties: Ties = "later") -> int | None:
    """Give the epoch (from 0) that the rule keeps of a whole ``curve``; None if every score is NaN."""
    chosen, best = None, None
    for epoch, score in enumerate(curve):
        if beats(score, best, ties):
            chosen, best = epoch, score
    return chosen


class Right(NamedTuple):
    """Which held-out images are right, masks ``(n,)``: clean, after PGD on the cross-entropy, and in every case."""

    clean: Tensor
    pgd: Tensor
    robust: Tensor


def held_out_verdicts(
    network: nn.Module, x: Tensor, y: Tensor, index: Tensor, threat: ThreatModel, *, seed: int, steps: int = 10
) -> Right:
    """Attack held-out images ``x`` ``(n, c, h, w)`` twice and tell which are right.

    PGD of ``steps`` steps of epsilon/4 on the cross-entropy and on the margin, one random start each that is keyed by
    (seed, sample index), so that epochs are comparable and training's random state is left alone.

    Args:
        network: in eval mode. Source: protocol.md, "Checkpoints"; Rice et al. attack the cross-entropy only.
    """
    with torch.no_grad():
        clean = network(x).argmax(1) == y
    right = {}
    for name, objective in (("ce", cross_entropy_with(y)), ("margin", margin_with(y))):
        noise = threat.epsilon * uniform(x, index.tolist(), seed, "selection", name)
        start = threat.project(x + noise, x)
        attacked = pgd(network, x, objective, threat, start=start, steps=steps, step_size=threat.epsilon / 4)
        with torch.no_grad():
            right[name] = network(attacked).argmax(1) == y
    return Right(clean, right["ce"], clean & right["ce"] & right["margin"])


class KeepBest(pl.Callback):
    """Keep the weights of the best epoch beside the last; training itself runs to the end of its schedule.

    Works with every method: it reads ``module.held_out_score`` after validation and copies
    ``module.classifier().state_dict()``, BatchNorm's buffers included. Its state goes with Lightning's checkpoints, so
    a resumed run remembers value, epoch and weights.

    Attributes:
        score: of the best epoch so far, or None. epoch: that epoch, counted from 0. weights: on the CPU.
    """

    def __init__(self, ties: Ties = "later") -> None:
        self.ties: Ties = ties
        self.score: Score | None = None
        self.epoch: int | None = None
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Compare this epoch with the best one; at the epoch's end the module has yet to make its score."""
        score = pl_module.held_out_score if pl_module.settled else None
        if trainer.sanity_checking or score is None or not beats(score, self.score, self.ties):
            return
        self.score, self.epoch = score, trainer.current_epoch
        self.weights = {
            name: value.detach().cpu().clone() for name, value in pl_module.classifier().state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs, as plain values and tensors."""
        score = None if self.score is None else [self.score.robust, self.score.clean]
        return {"score": score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.score = None if state_dict["score"] is None else Score(*state_dict["score"])
        self.epoch, self.weights = state_dict["epoch"], state_dict["weights"]
