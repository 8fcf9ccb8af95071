"""How a network is trained apart from its method: optimizer, learning rate over time, averaging, smoothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput

OptimizerName = Literal["sgd", "adam"]
Schedule = Literal["constant", "piecewise", "cyclic", "cosine"]
Average = Literal["none", "ema", "swa"]


@dataclass(frozen=True)
class Recipe:
    """Everything that the common track holds equal between methods. Fractions are fractions of the whole training.

    Args:
        optimizer: ``sgd`` or ``adam``; weight decay is theirs (coupled L2) and applies to ALL parameters.
        learning_rate: the peak. momentum, nesterov: of SGD.
        schedule: ``constant``; ``piecewise``, times ``decay`` at each of ``milestones``; ``cyclic``, linear from 0 to
            the peak at ``peak_at`` and back to 0 (one cycle); ``cosine``, half a wave down to 0.
        warmup: fraction over which the learning rate rises linearly to the schedule's.
        epsilon_ramp: fraction over which the training epsilon rises linearly from 0.
        head_start: epochs added to the clock of both ramps. 1 with ``overshoot`` repeats the authors' formula of
            ``bag_of_tricks``, (t + 1) / 15, which exceeds 1 in the last epoch of the ramp; by default it stops at 1.
        label_smoothing: the wrong classes share this much, so that the true one keeps 1 minus it (Pang et al., ICLR
            2021, whose convention differs from PyTorch's). Attacks always see hard labels.
        gradient_clip: largest L2 norm of the gradient; None for no limit.
        average: of the weights: ``ema`` with ``average_decay`` per step, ``swa`` the plain mean of every step, both
            from the fraction ``average_from`` on and also of BatchNorm's statistics. The averaged network is the
            one that is selected, saved and evaluated.

    Sources: Rice et al., ICML 2020, arXiv:2002.11569; Pang et al., ICLR 2021, arXiv:2010.00467; Wong et al., ICLR 2020,
    arXiv:2001.03994 (cyclic).
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Schedule = "piecewise"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    peak_at: float = 0.5
    warmup: float = 0.0
    epsilon_ramp: float = 0.0
    head_start: float = 0.0
    overshoot: bool = False
    label_smoothing: float = 0.0
    gradient_clip: float | None = None
    average: Average = "none"
    average_decay: float = 0.999
    average_from: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, choices in (("optimizer", OptimizerName), ("schedule", Schedule), ("average", Average)):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise BadInput(f"recipe.{name} is one of {known}, but found {getattr(self, name)!r}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise BadInput(f"recipe.gradient_clip is above 0, or null for no limit, but found {self.gradient_clip}")
        for name, low, high in (
            ("epochs", 1, math.inf),
            ("batch_size", 1, math.inf),
            ("learning_rate", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("momentum", 0, 1),
            ("decay", 0, 1),
            ("head_start", 0, math.inf),
            ("peak_at", 0, 1),
            ("warmup", 0, 1),
            ("epsilon_ramp", 0, 1),
            ("label_smoothing", 0, 1),
            ("average_decay", 0, 1),
            ("average_from", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"recipe.{name} lies between {low} and {high}, but found {getattr(self, name)}")
        if not all(0 <= milestone <= 1 for milestone in self.milestones):
            raise BadInput(f"recipe.milestones are fractions of the training, but found {list(self.milestones)}")

    def learning_rate_at(self, progress: float) -> float:
        """Give the learning rate of the step that ENDS at ``progress``, the fraction of the training in (0, 1].

        Step i (from 0) of B a epoch ends at t = epoch + (i + 1) / B, so the last one of an epoch already has the next
        epoch's rate, as in the code of Rice et al.
        """
        if self.schedule == "piecewise":
            factor = self.decay ** sum(progress >= milestone for milestone in self.milestones)
        elif self.schedule == "cyclic":
            rising = progress / self.peak_at if self.peak_at else math.inf
            falling = (1 - progress) / (1 - self.peak_at) if self.peak_at < 1 else math.inf
            factor = max(0.0, min(rising, falling))
        elif self.schedule == "cosine":
            factor = (1 + math.cos(math.pi * progress)) / 2
        else:
            factor = 1.0
        return self.learning_rate * factor * self._ramp(progress, self.warmup)

    def epsilon_factor(self, progress: float) -> float:
        """Give the share of the training epsilon in force at ``progress``, the fraction of the training in (0, 1]."""
        return self._ramp(progress, self.epsilon_ramp)

    def _ramp(self, progress: float, until: float) -> float:
        if progress >= until:
            return 1.0
        factor = (progress * self.epochs + self.head_start) / (until * self.epochs)
        return factor if self.overshoot else min(1.0, factor)

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of all ``parameters``."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy per image ``(n,)`` of logits ``(n, k)`` and hard labels ``(n,)``, smoothed as settings say."""
        if self.label_smoothing == 0:
            return F.cross_entropy(logits, y, reduction="none")
        classes = logits.shape[1]  # PyTorch spreads s over all classes: the same target with s k / (k - 1)
        spread = self.label_smoothing * classes / (classes - 1)
        target = F.one_hot(y, classes).to(logits) * (1 - spread) + spread / classes
        return -(target * logits.log_softmax(1)).sum(1)
