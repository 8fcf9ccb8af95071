"""Fast adversarial training: one gradient step from a random start, in train mode."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.pgd import pgd
from attacks.randomness import uniform
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step
from methods.per_row import PerRow


class FastAT(AdversarialTraining):
    r"""Train on one FGSM step from a uniform random point of the ball.

    .. math:: CE(f(x + \delta), y), \quad \delta = \Pi(\delta_0 + \alpha\,\mathrm{sign}\,\nabla CE(f(x + \delta_0), y)),
        \quad \delta_0 \sim U[-\epsilon, \epsilon]

    Source: Wong et al., ICLR 2020, arXiv:2001.03994, algorithm 3. Reading: train mode in both forwards, so that
    BatchNorm's statistics move twice a step; the start is brought into the pixel range before the gradient.

    Steps: 1. Draw a start uniformly from the whole ball and bring it into the pixel range. 2. Forward it in train mode;
    gradient of the cross-entropy by the images. 3. One step along its sign, back into the ball, then into the range.
    4. Forward the result in train mode; cross-entropy, backward, optimizer step.

    Warning: long trainings, epsilons above 8/255 and steps of 2 epsilon overfit catastrophically in spite of the random
    start: within an epoch accuracy under PGD falls to nothing while that under FGSM rises; the alarm on held-out images
    tells. Warning: the survey's PGD-40 is not the paper's attack, which has 50 steps and 10 restarts.

    Args:
        step_size: 1.25 epsilon; 2 epsilon overfits catastrophically.
        start: ``uniform``; ``zero``; ``previous``, the last perturbation of the same row of the batch.
        form: which of the authors' scripts decides where the range is enforced: ``cifar`` boxes the start; ``mnist``
            takes the gradient at the unboxed start; ``imagenet`` clips inside the differentiated path.
        early_stop: end training when PGD-5 accuracy on the held-out images falls by more than 0.2 in an epoch, and
            return to the weights of the epoch before. The authors look at one training batch in train mode.
    """

    card = Card(key="fast_at", category="efficient", citation="wong2020fast")
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        step_size: str | float = "1.25 epsilon",
        start: Literal["uniform", "zero", "previous"] = "uniform",
        form: Literal["cifar", "mnist", "imagenet"] = "cifar",
        early_stop: bool = False,
        **common: Any,
    ) -> None:
        if start not in ("uniform", "zero", "previous"):
            raise BadInput(f"start is uniform, zero or previous, but found {start!r}")
        if form not in ("cifar", "mnist", "imagenet"):
            raise BadInput(f"form is cifar, mnist or imagenet, but found {form!r}")
        inner = one_step(
            "train", step_size=step_size, start="uniform" if start == "uniform" else "none", boxed=form == "cifar"
        )
        super().__init__(network, threat, inner=inner, **common)
        self.start, self.form, self.early_stop = start, form, early_stop
        self.previous = PerRow()  # perturbations, where start is "previous"
        self.sound: dict[str, Any] | None = None  # accuracy and weights of the last epoch that did not collapse
        self.collapsed = False
        self._pgd5: list[Tensor] = []

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        return self.classification_loss(self(attacked), batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Take the one step; :attr:`previous` remembers it where the next one starts from there."""
        x, threat = batch.x, self.present_threat()
        start = self.inner.begin(x, threat, self.draws)
        if self.start == "previous":
            start = x + self.previous.of(x)
        network = _Clipped(self.network) if self.form == "imagenet" else self.network
        attacked = self.inner.climb(network, x, batch.y, objective, threat, start=start)
        if self.start == "previous":
            self.previous.store(attacked - x)
        return attacked

    # The early stop

    @property
    def last_epoch(self) -> int:
        """The epoch whose weights stand at the end: after a collapse the one before it."""
        return super().last_epoch - self.collapsed

    def on_train_start(self) -> None:
        """Do not go on where a resumed run had already ended."""
        self.trainer.should_stop = self.trainer.should_stop or self.collapsed

    def on_validation_epoch_start(self) -> None:
        """Forget what the sanity check counted."""
        super().on_validation_epoch_start()
        self._pgd5.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Also count the images that hold under PGD-5, where the early stop is on."""
        super().validation_step(batch, batch_idx)
        if self.early_stop:
            with torch.inference_mode(False):
                x, y, index = (item.clone() for item in Batch.of(batch))
                self._pgd5.append(self._holds_under_pgd5(x, y, index))

    def on_validation_end(self) -> None:
        """End the training, on the weights of the epoch before, if robustness collapsed; others have looked by now."""
        super().on_validation_end()
        if not self.early_stop or self.trainer.sanity_checking:
            return
        holds = torch.cat([*self._pgd5, torch.empty(0, dtype=torch.int64, device=self.device)])
        counts = self.trainer.strategy.reduce(holds.new_tensor([holds.sum(), len(holds)]), reduce_op="sum")
        accuracy = float(counts[0] / counts[1])
        if self.sound is not None and self.sound["accuracy"] - accuracy > 0.2:
            self.load_state_dict(self.sound["weights"])  # the averaged ones too
            self.collapsed = self.trainer.should_stop = True
        else:
            weights = {name: value.detach().clone() for name, value in self.state_dict().items()}
            self.sound = {"accuracy": accuracy, "weights": weights}

    def _holds_under_pgd5(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        start = self.threat.project(x + self.threat.epsilon * uniform(x, index.tolist(), self.seed, "early stop"), x)
        with in_mode(self.network, "eval"):
            attacked = pgd(
                self.network,
                x,
                cross_entropy_with(y),
                self.threat,
                start=start,
                steps=5,
                step_size=self.threat.epsilon / 4,
                until=lambda logits: logits.argmax(1) != y,
            )
            with torch.no_grad():
                return (self.network(attacked).argmax(1) == y).long()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the last sound epoch with the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["fast_at"] = {"sound": self.sound, "collapsed": self.collapsed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        super().on_load_checkpoint(checkpoint)
        self.sound, self.collapsed = checkpoint["fast_at"]["sound"], checkpoint["fast_at"]["collapsed"]


class _Clipped(nn.Module):
    """The network behind a clip of its input, as in the authors' ImageNet script."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(clip(x))
        return logits
