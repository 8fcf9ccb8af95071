"""Single-step training with dropout that is strong at first and fades out."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel
from methods.activations import ActivationCall, after_activations, every_activation
from methods.alarm import PGD10, catastrophic_overfitting
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step

_NARROW = 64  # channels; half of 16 at seven places would be another network


class SADS(AdversarialTraining):
    r"""Train on FGSM images behind dropout after every non-linearity, whose rate falls to zero on the way.

    .. math:: E_{mask}\, CE(f_\theta(x';\, p_t), y), \quad x' = \mathrm{clip}(x + \epsilon\,
        \mathrm{sign}\,\nabla CE(f(x), y)), \quad p_t = P_d \max(0, 1 - \tfrac{t}{r_d T})

    Source: Vivek and Babu, CVPR 2020, arXiv:2004.08628. Reading: no code is public and the formulas are from memory of
    the paper; placement and decay agree with its abstract and a public summary. The attack in eval mode is that of the
    same authors' SAT-Rx. In train mode it leaves the schedule's dropout out all the same.

    Steps: 1. In eval mode, without dropout, one step of epsilon from the clean image along the sign of the
    cross-entropy's gradient. 2. Take the rate of iteration t: linear from P_d down to 0 after the share r_d of all T.
    3. In train mode forward the result, with a fresh mask after every call of a non-linearity: whole channels behind
    convolutions, single entries behind linear layers. 4. Cross-entropy, backward, optimizer step.

    Warning: without a random start catastrophic overfitting is put off for larger epsilons rather than excluded; always
    evaluate with PGD and AutoAttack. Warning: where training at P_d = 0 does not collapse, as on digits, no benefit can
    show. Warning: the survey's row of 8/255 on MNIST looks inconsistent; its 88.51 fits LeNet+ at 0.3.

    Args:
        initial_rate: P_d, from 0 to below 1. None takes 0.2 on grey images and 0.5 on colour, the uncertain published
            values, but 0.2 wherever a scheduled layer behind the first one has fewer than 64 channels.
        until: r_d, the share of the training after which the rate is 0. None takes 0.75 on grey images, 0.5 on colour.
        attack_mode: of the network during the attack.

    History: ``dropout_rate``, p_t.
    """

    card = Card(key="sads", category="efficient", citation="vivek2020single", reconstruction=True)
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        initial_rate: float | None = None,
        until: float | None = None,
        attack_mode: Mode = "eval",
        **common: Any,
    ) -> None:
        if initial_rate is not None and not 0 <= initial_rate < 1:
            raise BadInput(f"initial_rate lies between 0 and below 1, but found {initial_rate}")
        if until is not None and not 0 < until <= 1:
            raise BadInput(f"until is a share of the training above 0 and up to 1, but found {until}")
        super().__init__(network, threat, inner=one_step(attack_mode), **common)
        self.initial_rate, self.until = initial_rate, until
        self.places: list[ActivationCall] | None = None  # where dropout stands; known once a forward was watched
        self.iterations: float | None = None  # T

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        rate = self.present_rate()
        self.note("dropout_rate", attacked.new_tensor(rate))
        with self._scheduled_dropout(rate):
            return self.classification_loss(self(attacked), batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Take the one step; the first one's forward also shows where dropout belongs."""
        if self.places is not None:
            return super().perturb(batch, objective)
        with every_activation(self.network) as places:
            attacked = super().perturb(batch, objective)
        self.places = places
        usual, until = usual_schedule(batch.x.shape[1], places)
        self.initial_rate = usual if self.initial_rate is None else self.initial_rate
        self.until = until if self.until is None else self.until
        return attacked

    def present_rate(self) -> float:
        """Give p_t of this step; without a trainer the last of the schedule."""
        if self.initial_rate is None or self.until is None or self._trainer is None:
            return 0.0
        return scheduled_rate(self.initial_rate, self.until, self.trainer.global_step / self._all_iterations())

    def _all_iterations(self) -> float:
        if self.iterations is None:
            self.iterations = self.total_updates()
        return self.iterations

    def _scheduled_dropout(self, rate: float) -> AbstractContextManager[None]:
        return after_activations(self.network, self._dropout(rate)) if rate > 0 else nullcontext()

    def _dropout(self, rate: float) -> Callable[[Tensor], Tensor]:
        def drop(active: Tensor) -> Tensor:
            channels = active.shape[:2] + (1,) * (active.ndim - 2)
            shape = channels if active.ndim >= 4 else active.shape
            return active * self.draws.bernoulli(1 - rate, active, shape) / (1 - rate)

        return drop

    @property
    def settled(self) -> bool:
        """Whether the dropout is over: before, BatchNorm's running statistics belong to a network with dropout."""
        if self.iterations is None or self.until is None or self.initial_rate == 0:
            return True
        done = self.trainer.global_step / self.iterations
        return done > self.until or done >= 1

    def remarks(self) -> dict[str, float | str]:
        """Give the schedule that was used; without dropout, whether it was missed."""
        if self.initial_rate is None or self.until is None or self.places is None:
            return {}
        told: dict[str, float | str] = {
            "initial_rate": self.initial_rate,
            "until": self.until,
            "scheduled_layers": len(self.places),
        }
        if self.initial_rate == 0 and self.noted(PGD10) and catastrophic_overfitting(self.history) is None:
            told["mark"] = "no collapse without dropout, so no benefit can show"
        return told

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the schedule, which is fixed when the training begins; Lightning keeps t."""
        super().on_save_checkpoint(checkpoint)
        places = None if self.places is None else [[name, list(shape)] for name, shape in self.places]
        checkpoint["sads"] = {
            "schedule": [self.initial_rate, self.until],
            "iterations": self.iterations,
            "places": places,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["sads"]
        self.initial_rate, self.until = kept["schedule"]
        self.iterations = kept["iterations"]
        places = kept["places"]
        self.places = None if places is None else [ActivationCall(name, tuple(shape)) for name, shape in places]


def scheduled_rate(initial_rate: float, until: float, done: float) -> float:
    r"""Give :math:`P_d \max(0, 1 - done / r_d)` where the share ``done`` of all iterations lies behind."""
    return initial_rate * max(0.0, 1 - done / until)


def usual_schedule(channels: int, places: list[ActivationCall]) -> tuple[float, float]:
    """Give P_d and r_d for images of ``channels`` and dropout at ``places``, the stem's first."""
    if channels == 1:
        return 0.2, 0.75
    narrowest = min((shape[0] for _, shape in places[1:] or places), default=_NARROW)
    return 0.2 if narrowest < _NARROW else 0.5, 0.5
