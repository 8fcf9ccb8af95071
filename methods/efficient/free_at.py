"""Free adversarial training: the backward pass that trains the weights also moves the noise."""

import math
from typing import Any, Literal

from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.base import Batch, Card, StepTrace
from methods.inner import Inner
from methods.interleaved import Interleaved
from methods.per_row import PerRow


class FreeAT(Interleaved):
    r"""Use every minibatch several times; one backward pass moves the weights down and the noise up.

    .. math:: \min_\theta \max_{\|\delta\|_\infty \le \epsilon} CE(f_\theta(\mathrm{clip}(x + \delta)), y),
        \quad \delta \gets \Pi(\delta + \alpha\,\mathrm{sign}\,\nabla_\delta CE)

    Source: Shafahi et al., NeurIPS 2019, arXiv:1904.12843, algorithm 1. Reading: the noise belongs to the row of the
    batch, starts at zero once and is carried over between replays, batches and epochs; the clip is part of the graph,
    with gradient 1 on a bound; train mode throughout.

    Steps: 1. Forward image plus noise, clipped to the pixel range, in train mode. 2. One backward pass gives the
    gradients by the weights and by the noise, both at the same weights. 3. The noise moves along the sign of its
    gradient, back into the ball. 4. Optimizer step; the schedule advances. 5. All of this m times for the same
    minibatch.

    Warning: it sees the data m times less often than others; a short recipe leaves it under-trained, which is no
    finding against it: compare at equal passes. Warning: at larger radii it too can overfit catastrophically with m = 8
    (Andriushchenko and Flammarion, NeurIPS 2020), and AutoAttack lies some 5 points below the published PGD-100.

    Args:
        replays: m, how often a minibatch is used; None takes 8, the published best, in a recipe of 80 epochs or more,
            else 4.
        step_size: of the noise, in pixel units or relative.
        form: ``official`` keeps the noise in the ball only; ``boxed``, as in Wong et al., ICLR 2020, also keeps
            image plus noise in the pixel range after each step, and lets the network see the sum unclipped.
        full_passes: see the data as often as other methods do, at m times their cost. By default the recipe's epochs
            are divided by m, so that the number of updates is theirs.
    """

    card = Card(key="free_at", category="efficient", citation="shafahi2019adversarial")
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        replays: int | None = None,
        step_size: str | float = "epsilon",
        form: Literal["official", "boxed"] = "official",
        full_passes: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(network, threat, inner=Inner(steps=0, start="none"), **common)  # the training is the attack
        if threat.norm != "linf":
            raise BadInput(f"free_at moves its noise by signs, within linf: threat.norm is {threat.norm!r}")
        if replays is not None and replays < 1:
            raise BadInput(f"replays is 1 or more, but found {replays}")
        if form not in ("official", "boxed"):
            raise BadInput(f"form is official or boxed, but found {form!r}")
        self.replays = (8 if self.recipe.epochs >= 80 else 4) if replays is None else replays
        self.step_size = Pixels.read(step_size, "step_size")
        self.form, self.full_passes = form, full_passes
        self.noise = PerRow()

    def trace_step(self, batch: Any) -> StepTrace:
        """Replay the batch; the last replay's backward pass and update are left to the caller."""
        batch = Batch.of(batch)
        trace = self._replay(batch)
        for _ in range(self.replays - 1):
            self.update(trace.loss)
            trace = self._replay(batch)
        return trace

    def _replay(self, batch: Batch) -> StepTrace:
        """Run the next replay's forward pass; its backward pass will move the noise."""
        x, radius = batch.x, self.present_threat().epsilon
        delta = self.noise.of(x).clamp(-radius, radius).requires_grad_()  # a ramp's radius may have been smaller

        def ascend(gradient: Tensor) -> None:
            moved = (delta.detach() + self.step_size.at(radius) * gradient.sign()).clamp(-radius, radius)
            self.noise.store(moved.clamp(self.threat.low - x, self.threat.high - x) if self.form == "boxed" else moved)

        delta.register_hook(ascend)  # at the weights before the update, as the weights' own gradient
        seen = x + delta
        if self.form == "official":
            seen = clip(seen, self.threat.low, self.threat.high)
        return StepTrace(seen.detach(), self.classification_loss(self(seen), batch.y))

    def remarks(self) -> dict[str, float | str]:
        """Give how many ends of a data pass the best checkpoint was chosen from, fewer than other methods have."""
        return {"candidates_for_best": len(self.history)}

    # The length of the training: as many updates as any other method's

    def data_passes(self) -> int:
        """Give how often the data are passed over: the recipe's epochs, divided by the replays."""
        return self.recipe.epochs if self.full_passes else math.ceil(self.recipe.epochs / self.replays)

    def total_updates(self) -> int:
        """Count the updates of the whole training: the recipe's, rounded up to whole minibatches."""
        batches = self.trainer.estimated_stepping_batches  # of all the data passes that the trainer makes
        if not self.full_passes:
            wanted = self.recipe.epochs * self.trainer.num_training_batches
            batches = min(batches, math.ceil(wanted / self.replays))
        return int(self.replays * batches)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Cut the last pass where the count of updates is reached."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.global_step >= self.total_updates():
            self.trainer.should_stop = True
