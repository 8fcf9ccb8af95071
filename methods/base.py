"""The contract: one training step, one classifier, one source of randomness, for every method alike."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import Objective
from attacks.randomness import key
from attacks.threat import ThreatModel
from methods.draws import Draws
from methods.inner import Inner
from methods.per_image import PerImage
from methods.recipe import Recipe
from methods.selection import Score, held_out_verdicts
from methods.unlabelled import References

Category = Literal[
    "origin",
    "regularization",
    "curriculum",
    "ensemble",
    "adaptive epsilon",
    "semi-supervised",
    "efficient",
    "variant",
    "generalization",
]


@dataclass(frozen=True)
class Card:
    """Who a method is: its key, its category in the survey, the key of its citation, the class it is ranked in.

    ``comparison`` is the letter of protocol.md: A one network, labelled data, fixed epsilon; B changed network; C
    ensembles; D other data; E unions of norms; F rejection.
    """

    key: str
    category: Category
    citation: str
    comparison: Literal["A", "B", "C", "D", "E", "F"] = "A"


class Batch(NamedTuple):
    """Images ``(n, c, h, w)`` in [0, 1], labels ``(n,)`` and the samples' numbers in their data set ``(n,)``, int64."""

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment] # the protocol's word, though tuples have a method of that name

    @classmethod
    def of(cls, items: Any) -> "Batch":
        """Take what a DataLoader yields: ``(x, y, index)``, or ``(x, y)`` where nothing is kept per sample."""
        if len(items) == 2:
            x, y = items
            return cls(x, y, torch.arange(len(y), device=y.device))
        return cls(*items)


class StepTrace(NamedTuple):
    """What one training step made, up to the optimizer: the images it trained on, and the loss with its graph."""

    adversarial: Tensor
    loss: Tensor


class AdversarialTraining(pl.LightningModule):
    """Train a network against an adversary; a method overrides ``training_loss`` and little else.

    Places to override: :meth:`training_loss`, :meth:`perturb`, :meth:`optimizers_for`, :meth:`on_epoch`,
    :meth:`classifier`, and for a semi-supervised method :attr:`references` and :meth:`labelled_rows`.

    Args:
        network: images ``(n, c, h, w)`` in [0, 1] to logits ``(n, k)``; normalisation is its first layer.
        threat: what the adversary may do, at full size; a recipe may ramp the radius up.
        inner: the inner maximisation, for methods that have one.
        recipe: optimizer, schedule, averaging, smoothing.
        seed: of every random draw; the same seed and data give the same weights on one device type.

    Example::

        trainer = pl.Trainer(max_epochs=30)
        trainer.fit(TRADES(network, ThreatModel("linf", 8 / 255)), datamodule)
    """

    card: ClassVar[Card]
    faces_adversary: ClassVar[bool] = True  # natural training does not: neither in its loss nor in its selection
    references: ClassVar[References | None] = None  # of a semi-supervised method: most labels are hidden from it

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        inner: Inner = Inner(),
        recipe: Recipe = Recipe(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.threat = threat
        self.inner = inner
        self.recipe = recipe
        self.seed = seed
        self.draws: Any = Draws(seed)
        self.averaged = _averaged(network, recipe)
        self.held_out_score: Score | None = None
        self.history: list[dict[str, float]] = []
        self._notes: dict[str, list[Tensor]] = defaultdict(list)
        self._held_out: list[Tensor] = []

    # What a method says of itself

    def training_loss(self, batch: Batch) -> Tensor:
        """Give the loss of one batch, a number with a graph; the step's attack is :meth:`perturb`."""
        raise NotImplementedError

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack the batch's images as ``inner`` says, within the threat in force; ``(n, c, h, w)`` without a graph."""
        return self.inner.maximise(self.network, batch.x, batch.y, objective, self.present_threat(), self.draws)

    def optimizers_for(self, recipe: Recipe) -> torch.optim.Optimizer:
        """Make the optimizer; by default the recipe's, of all parameters of the network."""
        return recipe.build_optimizer(self.network.parameters())

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """Tell whether these settings of a semi-supervised method ask for a teacher's labels of unlabelled images."""
        return False

    def labelled_rows(self, batch_size: int, labels: int, images: int) -> int:
        """Say how many of a batch's images have a label, when ``labels`` of all ``images`` have one: all by default."""
        return batch_size

    @property
    def last_epoch(self) -> int:
        """The epoch, counted from 0, whose weights stand at the end."""
        return len(self.history) - 1

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0; nothing by default."""

    def classifier(self) -> nn.Module:
        """Give the plain network that is selected, saved and attacked: the averaged one where the recipe averages."""
        if self.averaged is not None and self.averaged.n_averaged > 0:
            averaged: nn.Module = self.averaged.module
            return averaged
        return self.network

    # What every method uses

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` of images ``(n, c, h, w)``, in float32 at least, so that losses do not lose digits."""
        logits: Tensor = self.network(x)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def frozen_logits(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` in the mode of the attack, without a graph."""
        with torch.no_grad(), self.inner.conditions(self.network, x):
            return self(x)

    def classification_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy, with the recipe's label smoothing."""
        if self.recipe.label_smoothing == 0:
            return F.cross_entropy(logits, y)  # its own mean differs from ours in the last bit
        return self.recipe.cross_entropy(logits, y).mean()

    def present_threat(self) -> ThreatModel:
        """Give the threat in force at this step: the recipe may still be ramping its radius up."""
        if self.recipe.epsilon_ramp == 0 or self._trainer is None:
            return self.threat
        return self.threat.at(self.threat.epsilon * self.recipe.epsilon_factor(self.progress()))

    def progress(self) -> float:
        """Give the fraction of the training that is done once the present step is, in (0, 1]; 1 without a trainer."""
        if self._trainer is None:
            return 1.0
        return min(1.0, (self.trainer.global_step + 1) / self.trainer.estimated_stepping_batches)

    def note(self, name: str, value: Tensor) -> None:
        """Remember a number of this step; the mean over the epoch goes into :attr:`history`."""
        self._notes[name].append(value.detach().mean())

    def remember(self, memory: PerImage, index: Tensor, values: Tensor) -> None:
        """Write ``values`` ``(n,)`` of the images ``index`` ``(n,)`` into ``memory``, on every device those of all."""
        if self._trainer is not None and self.trainer.world_size > 1:
            index, values = (self.all_gather(part).flatten() for part in (index, values.detach()))  # type: ignore[union-attr]
        memory.store(index, values)

    # The training step and its trace

    def trace_step(self, batch: Any) -> StepTrace:
        """Run exactly what one training step runs up to the optimizer, in the module's present mode and dtype.

        Args:
            batch: ``(x, y, index)`` or ``(x, y)``.

        Returns:
            the images that :meth:`perturb` made (the clean ones for a method without an attack), and the loss.
        """
        batch = Batch.of(batch)
        made: list[Tensor] = []
        perturb, patched = self.perturb, self.__dict__.get("perturb")

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            made.append(perturb(*args, **kwargs))
            return made[-1]

        self.__dict__["perturb"] = watched  # stands before the class's own for this one step
        try:
            loss = self.training_loss(batch)
        finally:
            del self.__dict__["perturb"]
            if patched is not None:
                self.__dict__["perturb"] = patched
        return StepTrace(made[-1] if made else batch.x, loss)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Lightning's step: the trace's loss."""
        self.draws.begin(epoch=self.current_epoch, step=batch_idx, rank=self.global_rank)
        self._key_global_generator(step=batch_idx)  # for dropout: a resumed epoch's loader has drawn other numbers
        loss = self.trace_step(batch).loss
        self.note("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average the weights after the optimizer moved them."""
        if self.averaged is None:
            return
        done = self.trainer.global_step / self.trainer.estimated_stepping_batches  # the optimizer has counted this step
        if done >= self.recipe.average_from:
            self.averaged.update_parameters(self.network)

    def on_train_epoch_start(self) -> None:
        """Key the global generator to the epoch, so that validation does not change how an ordinary loader shuffles."""
        self._key_global_generator(step=-1)
        self.held_out_score = None  # an epoch without validation has none
        self.on_epoch(self.current_epoch)

    def _key_global_generator(self, step: int) -> None:
        torch.manual_seed(key(self.seed, "global", self.current_epoch, step, self.global_rank) >> 1)

    def on_train_epoch_end(self) -> None:
        """Write one line of history; stop a run whose loss is no longer a number."""
        self.history = self._history_so_far()
        self.log_dict({name: self.history[-1][name] for name in self._notes})
        self._notes.clear()

    def _history_so_far(self) -> list[dict[str, float]]:
        """Give :attr:`history` with a line for the present epoch, whose end some callbacks see before the module."""
        if not self._notes:
            return self.history
        means = {name: torch.stack(values).mean().item() for name, values in self._notes.items()}
        if not math.isfinite(means.get("loss", 0.0)):
            raise FloatingPointError(
                f"the training loss became {means['loss']} in epoch {self.current_epoch} (from 0): lower "
                f"recipe.learning_rate ({self.recipe.learning_rate:g}) or set recipe.gradient_clip"
            )
        score = self.held_out_score
        held_out = {} if score is None else {"held_out_robust": score.robust, "held_out_clean": score.clean}
        return [*self.history[: self.current_epoch], {"epoch": self.current_epoch, **means, **held_out}]

    # The held-out images, on which the best epoch is chosen

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Attack held-out training images at the full radius of the threat."""
        with torch.inference_mode(False):
            x, y, index = (item.clone() for item in Batch.of(batch))
            self._held_out.append(self.held_out_counts(Batch(x, y, index)))

    def held_out_counts(self, batch: Batch) -> Tensor:
        """Count, as int64 ``(3,)``, the images that are right under attack, right when clean, and all of them."""
        network = self.classifier()
        with in_mode(network, "eval"):
            if self.faces_adversary:
                clean, robust = held_out_verdicts(network, *batch, self.threat, seed=self.seed)
            else:
                with torch.no_grad():
                    clean = robust = network(batch.x).argmax(1) == batch.y
        return torch.stack([robust.sum(), clean.sum(), torch.tensor(len(batch.y), device=clean.device)])

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's counts."""
        self._held_out.clear()

    def on_validation_epoch_end(self) -> None:
        """Turn counts, summed over devices, into this epoch's score."""
        counts = self.trainer.strategy.reduce(torch.stack(self._held_out).sum(0), reduce_op="sum")
        robust, clean, images = (int(count) for count in counts)
        self.held_out_score = Score(robust=robust / images, clean=clean / images)
        self.log_dict({"held_out_robust": robust / images, "held_out_clean": clean / images})

    # Lightning

    def configure_optimizers(self) -> Any:
        """Pair the optimizer with the recipe's schedule, stepped once per optimizer step."""
        optimizer = self.optimizers_for(self.recipe)
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise BadInput("the recipe's schedule needs an end: give the Trainer max_epochs or max_steps")
        peak = self.recipe.learning_rate or 1.0
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.recipe.learning_rate_at(min(1.0, (step + 1) / total)) / peak
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Limit the gradient as the recipe says, or, where it says nothing, as the Trainer was told."""
        if self.recipe.gradient_clip is not None:
            gradient_clip_val, gradient_clip_algorithm = self.recipe.gradient_clip, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep history and per-image values with the weights; weights whose loss is no number replace no checkpoint."""
        checkpoint["history"] = self._history_so_far()
        checkpoint["per_image"] = {name: memory.table for name, memory in self._memories().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        self.history = checkpoint.get("history", [])
        for name, memory in self._memories().items():
            memory.table = checkpoint["per_image"][name]

    def _memories(self) -> dict[str, PerImage]:
        return {name: value for name, value in vars(self).items() if isinstance(value, PerImage)}


def _averaged(network: nn.Module, recipe: Recipe) -> AveragedModel | None:
    if recipe.average == "none":
        return None
    # Of SWA the rule for one tensor: torch's rule for many fails on BatchNorm's whole-numbered counters.
    ema = recipe.average == "ema"
    averaged = AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay) if ema else None,
        avg_fn=None if ema else get_swa_avg_fn(),
        use_buffers=True,
    )
    return averaged.requires_grad_(False)
