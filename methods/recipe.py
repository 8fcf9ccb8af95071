"""How a network is trained apart from its method: optimizer, learning rate over time, averaging, smoothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput

OptimizerName = Literal["sgd", "adam", "rmsprop"]
Schedule = Literal["constant", "piecewise", "exponential", "cyclic", "cosine"]
Decayed = Literal["all", "weights"]
Average = Literal["none", "ema", "swa"]


@dataclass(frozen=True)
class Recipe:
    """Everything that the common track holds equal between methods. Fractions are fractions of the whole training.

    Args:
        optimizer: ``sgd``, ``adam`` or ``rmsprop``; weight decay is theirs (coupled L2).
        learning_rate: the peak. momentum: of SGD and RMSProp. nesterov: of SGD.
        rms_decay, rms_epsilon: of RMSProp; PyTorch adds the epsilon outside of the root, TensorFlow inside.
        decayed: what weight decay applies to: ``all`` parameters, or ``weights``, those of two dimensions or more, and
            neither biases nor BatchNorm. Never one without dimensions, such as the slope of an activation.
        schedule: ``constant``; ``piecewise``, times ``decay`` at each of ``milestones``, or at ``levels`` of the peak
            after them; ``exponential``, times ``decay`` after every ``decay_every`` epochs; ``cyclic``, linear from 0
            to the peak at ``peak_at`` and back to 0 (one cycle); ``cosine``, half a wave down to 0.
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
    rms_decay: float = 0.9
    rms_epsilon: float = 1e-8
    weight_decay: float = 5e-4
    decayed: Decayed = "all"
    schedule: Schedule = "piecewise"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    levels: tuple[float, ...] = ()
    decay_every: float = 1.0
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
        object.__setattr__(self, "levels", tuple(self.levels))
        choice_of = {"optimizer": OptimizerName, "schedule": Schedule, "decayed": Decayed, "average": Average}
        for name, choices in choice_of.items():
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
            ("rms_decay", 0, 1),
            ("rms_epsilon", 0, math.inf),
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
        if self.levels and len(self.levels) != len(self.milestones):
            raise BadInput(
                f"recipe.levels holds a factor for each of the {len(self.milestones)} milestones, or nothing, "
                f"but found {list(self.levels)}"
            )
        if not self.decay_every > 0:
            raise BadInput(f"recipe.decay_every is a number of epochs above 0, but found {self.decay_every}")

    def learning_rate_at(self, progress: float) -> float:
        """Give the learning rate of the step that ENDS at ``progress``, the fraction of the training in (0, 1].

        Step i (from 0) of B a epoch ends at t = epoch + (i + 1) / B, so the last one of an epoch already has the next
        epoch's rate, as in the code of Rice et al.
        """
        if self.schedule == "piecewise":
            passed = sum(progress >= milestone for milestone in self.milestones)
            factor = (1.0, *self.levels)[passed] if self.levels else self.decay**passed
        elif self.schedule == "exponential":
            factor = self.decay ** math.floor(progress * self.epochs / self.decay_every + 1e-9)  # 1/3 of 6 is 2
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
        every, least = list(parameters), 2 if self.decayed == "weights" else 1
        few = [parameter for parameter in every if parameter.ndim < least]
        groups: list[dict[str, Any]] = [{"params": [parameter for parameter in every if parameter.ndim >= least]}]
        groups += [{"params": few, "weight_decay": 0.0}] if few else []
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, lr=rate, weight_decay=decay)
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(
                groups, lr=rate, weight_decay=decay, alpha=self.rms_decay, eps=self.rms_epsilon, momentum=self.momentum
            )
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=self.momentum, nesterov=self.nesterov)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy per image ``(n,)`` of logits ``(n, k)`` and hard labels ``(n,)``, smoothed as settings say."""
        if self.label_smoothing == 0:
            return F.cross_entropy(logits, y, reduction="none")
        classes = logits.shape[1]  # PyTorch spreads s over all classes: the same target with s k / (k - 1)
        spread = self.label_smoothing * classes / (classes - 1)
        target = F.one_hot(y, classes).to(logits) * (1 - spread) + spread / classes
        return -(target * logits.log_softmax(1)).sum(1)
