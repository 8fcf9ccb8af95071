"""AVG and MAX: train on attacks in several norms at once, all of them or each image's worst."""

from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.moves import Move, above_percentile, steepest, without_blocked
from attacks.objectives import Objective, margin_with
from attacks.spatial import turned_and_shifted
from attacks.threat import Norm, ThreatModel, per_image
from attacks.union import PerNorm
from methods.base import Batch, Card
from methods.generalization.union import UnionTraining, inner_without_pace
from methods.inner import Inner

Strategy = Literal["max", "avg", "alternate"]


class AvgMax(UnionTraining):
    r"""Attack every batch in each of several norms, and train on each image's worst (MAX) or on all of them (AVG).

    .. math:: \text{MAX: } \tfrac{1}{B} \sum_b \max_i CE(f(x_{i,b}), y_b), \quad
        \text{AVG: } \tfrac{1}{n B} \sum_i \sum_b CE(f(x_{i,b}), y_b), \quad x_i = A_i(f, x, y)

    Source: Tramèr and Boneh, NeurIPS 2019, arXiv:1904.13000, sections 2 and 3. Reading: all attacks see the same
    weights, in eval mode, climb the margin and give their last iterate, as in the authors' code; the PyTorch baselines
    of ``msd``, three optimizer steps in a row on attacks in train mode, are another method. The mean over the batch,
    where the authors' MNIST code sums. The L1 projection is exact and images are clipped to their range from the first
    gradient on, where theirs leaves the ball or is a slip.

    Steps: 1. In eval mode attack the same images in each norm, from a random start of the whole radius. 2. MAX: forward
    the n results in eval mode and keep each image's with the highest cross-entropy, the first on ties. AVG: put all of
    them into one batch, in the order Linf, L2, L1. 3. In train mode forward that batch; cross-entropy, backward, one
    optimizer step.

    Warning: sparse L1 ascent is the least reliable of the three attacks: a high L1 figure under it beside a low one
    under L1-APGD is masking. Warning: AVG makes batches n times as large; BatchNorm sees all types together, and the
    learning rate is not tuned to it.

    Args:
        strategy: ``max``, ``avg``, or ``alternate``, one type a batch in turn, which its authors found to work badly.
        radii: of the balls, the Linf one relative to the threat; None leaves a norm out.
        step_sizes: None in a norm is 2.5 radius / steps. In L1 a step's L1 length.
        percentile: of the L1 step, which the entries from it on share; None for about ten entries per unit of length:
            100 (1 - 10 length / inputs).
        percentile_min: draw the percentile anew for each attack from [this, ``percentile``]; None does not.
        restarts: of each attack; an image keeps one that is misclassified, or else that of the largest cross-entropy.
        spatial: one type more, behind the norms: the worst of ``tries`` turns by up to ``max_angle`` degrees with
            shifts by up to ``max_shift`` pixels each way.
        tries, max_angle, max_shift: of ``spatial``.
        first_epoch_divisor: of all radii in the first epoch; 3 in the authors' MNIST code.
        inner: its steps and mode; start ``none`` leaves the random starts out, any other is the norm's own.
            ``step_size`` and ``keep`` are not looked at.

    History: of MAX ``share_linf``, ``share_l2``, ``share_l1`` and ``share_spatial``, of the images that each type won.
    """

    card = Card(key="avg_max", category="generalization", citation="tramer2019adversarial", comparison="E")
    kinds: ClassVar[tuple[str, ...]] = (*UnionTraining.kinds, "spatial")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        strategy: Strategy = "max",
        radii: PerNorm = PerNorm("epsilon", 0.5, 12.0),
        step_sizes: PerNorm = PerNorm(),
        percentile: float | None = None,
        percentile_min: float | None = None,
        restarts: int = 1,
        spatial: bool = False,
        tries: int = 10,
        max_angle: float = 30.0,
        max_shift: float = 3.0,
        first_epoch_divisor: float = 1.0,
        inner: Inner = Inner(steps=10, start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        if strategy not in get_args(Strategy):
            raise BadInput(f"strategy is one of {', '.join(get_args(Strategy))}, but found {strategy!r}")
        for name, value in (("percentile", percentile), ("percentile_min", percentile_min)):
            if value is not None and not 0 <= value < 100:
                raise BadInput(f"{name} lies between 0 and 100, or is null, but found {value}")
        if percentile_min is not None and percentile_min > (-1 if percentile is None else percentile):
            raise BadInput(f"percentile_min lies below percentile, but found {percentile_min} and {percentile}")
        for name, count in (("restarts", restarts), ("tries", tries)):
            if count < 1:
                raise BadInput(f"{name} is 1 or more, but found {count}")
        if not first_epoch_divisor >= 1:
            raise BadInput(f"first_epoch_divisor is 1 or more, but found {first_epoch_divisor}")
        inner_without_pace("avg_max", inner)
        super().__init__(network, threat, radii=radii, step_sizes=step_sizes, inner=inner, **common)
        self.strategy: Strategy = strategy
        self.percentile, self.percentile_min, self.restarts = percentile, percentile_min, restarts
        self.spatial, self.tries, self.max_angle, self.max_shift = spatial, tries, max_angle, max_shift
        self.first_epoch_divisor = first_epoch_divisor

    def training_loss(self, batch: Batch) -> Tensor:
        """Give the mean over the images that the strategy makes of the batch: as many, or n times as many."""
        attacked = self.perturb(batch, margin_with(batch.y))
        return self.classification_loss(self(attacked), batch.y.repeat(len(attacked) // len(batch.y)))

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Run the attacks, and put their images together as the strategy says; AVG gives n times as many."""
        types = self.types()
        if self.strategy == "alternate":
            return self._attacked(types[self._position() % len(types)], batch, objective)
        attacked = torch.stack([self._attacked(kind, batch, objective) for kind in types])
        if self.strategy == "avg":
            return attacked.flatten(0, 1)
        losses, _ = self._judged(attacked, batch.y)
        choice = losses.argmax(0)
        self.note_shares(choice, types)
        return _chosen(attacked, choice)

    def types(self) -> tuple[str, ...]:
        """Name the types of attack in their order."""
        return (*self.radii.balls(self.threat), *(["spatial"] if self.spatial else []))

    def present_balls(self) -> dict[Norm, ThreatModel]:
        """Give the balls in force, smaller ones in the first epoch where its divisor says so."""
        balls = super().present_balls()
        return {norm: ball.at(ball.epsilon / self._divisor()) for norm, ball in balls.items()}

    def usual_step(self, norm: Norm) -> float:
        """Give what walks two and a half radii."""
        return 2.5 / max(1, self.inner.steps)

    def _attacked(self, kind: str, batch: Batch, objective: Objective) -> Tensor:
        if kind == "spatial":
            return self._worst_of(torch.stack([self._moved(batch.x) for _ in range(self.tries)]), batch.y)
        ball = self.present_balls()[kind]  # type: ignore[index] # all other kinds are norms
        repeats = [self._climbed(ball, batch, objective) for _ in range(self.restarts)]
        return repeats[0] if len(repeats) == 1 else self._worst_of(torch.stack(repeats), batch.y)

    def _climbed(self, ball: ThreatModel, batch: Batch, objective: Objective) -> Tensor:
        start, move = self._start(batch.x, ball), self._move(batch.x, ball)
        inner = replace(self.inner, keep="last", step_size=self.step_size(ball))
        return inner.climb(self.network, batch.x, batch.y, objective, ball, start=start, move=move)

    def _start(self, x: Tensor, ball: ThreatModel) -> Tensor:
        """Draw a start of the whole radius: uniform in Linf, on the sphere in L2 and L1."""
        if self.inner.start == "none":
            return x
        if ball.norm == "l1":
            noise = self.draws.laplace(x)
            length = noise.abs().flatten(1).sum(1).clamp(min=torch.finfo(x.dtype).tiny)
            return clip(x + noise * per_image(ball.epsilon / length, x), ball.low, ball.high)
        start: Literal["uniform", "sphere"] = "uniform" if ball.norm == "linf" else "sphere"
        return replace(self.inner, start=start, scale="epsilon", boxed=True).begin(x, ball, self.draws)

    def _move(self, x: Tensor, ball: ThreatModel) -> Move:
        """Give the step of a norm; but for Linf, it wastes nothing on pixels at a bound."""
        length = self.step_size(ball)
        if ball.norm == "linf":
            return steepest(x, ball, length)
        if ball.norm == "l2":
            return without_blocked(steepest(x, ball, length), ball)
        return without_blocked(above_percentile(x, ball, length, self._present_percentile(x, length)), ball)

    def _present_percentile(self, x: Tensor, length: float) -> float:
        if self.percentile is None:
            return max(0.0, 100 * (1 - 10 * length / x[0].numel()))
        if self.percentile_min is None:
            return self.percentile
        share = (float(self.draws.uniform(torch.empty(0), (1,))) + 1) / 2
        return self.percentile_min + share * (self.percentile - self.percentile_min)

    def _moved(self, x: Tensor) -> Tensor:
        """Turn and shift each image at random, by as much of the largest as a ramp allows."""
        draws = self.draws.uniform(x, (len(x), 3))
        full = self.threat.epsilon
        factor = (self.present_threat().epsilon / full if full > 0 else 1.0) / self._divisor()
        return turned_and_shifted(x, factor * self.max_angle * draws[:, 0], factor * self.max_shift * draws[:, 1:])

    def _worst_of(self, attempts: Tensor, y: Tensor) -> Tensor:
        """Keep of ``attempts`` ``(m, n, c, h, w)`` each image's misclassified one, or that of the largest loss."""
        losses, wrong = self._judged(attempts, y)
        return _chosen(attempts, torch.where(wrong, losses + losses.max() + 1, losses).argmax(0))

    def _judged(self, attempts: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Give cross-entropy, and whether it is misclassified, of each attempt, ``(m, n)``, in the attack's mode."""
        every = [self.frozen_logits(attempt) for attempt in attempts]
        losses = [F.cross_entropy(logits, y, reduction="none") for logits in every]
        return torch.stack(losses), torch.stack([logits.argmax(1) != y for logits in every])

    def _divisor(self) -> float:
        return self.first_epoch_divisor if self._trainer is not None and self.current_epoch == 0 else 1.0

    def _position(self) -> int:
        return 0 if self._trainer is None else int(self.trainer.global_step)


def _chosen(attempts: Tensor, choice: Tensor) -> Tensor:
    """Take of ``attempts`` ``(m, n, c, h, w)`` each image's ``choice`` ``(n,)``."""
    return attempts[choice, torch.arange(len(choice), device=choice.device)]
