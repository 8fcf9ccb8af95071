"""The contract: one training step, one classifier, one source of randomness, for every method alike."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from attacks.errors import BadInput
from attacks.objectives import Objective
from attacks.randomness import key
from attacks.threat import ThreatModel
from methods.draws import Draws
from methods.held_out import HeldOut
from methods.inner import Inner
from methods.per_image import PerImage
from methods.per_row import PerRow
from methods.recipe import Recipe
from methods.records import Batch, Card, StepTrace
from methods.unlabelled import References

_Memory = TypeVar("_Memory", PerImage, PerRow)


class AdversarialTraining(HeldOut):
    """Train a network against an adversary; a method overrides ``training_loss`` and little else.

    Places to override: :meth:`training_loss`, :meth:`perturb`, :meth:`optimizers_for`, :meth:`on_epoch`,
    :meth:`classifier`, :meth:`companions`, :meth:`compose`, and for a semi-supervised method :attr:`references` and
    :meth:`labelled_rows`.

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
    references: ClassVar[References | None] = None  # of a semi-supervised method: most labels are hidden from it
    redraws_unlabelled: ClassVar[bool] = False  # it draws its unlabelled images with replacement, not in passes
    pools_apart: ClassVar[bool] = False  # its unlabelled images must not hold the labelled ones

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
        self.history: list[dict[str, float]] = []
        self._notes: dict[str, list[Tensor]] = defaultdict(list)

    # What a method says of itself

    @classmethod
    def compose(cls, build: Callable[..., nn.Module], **settings: Any) -> nn.Module:
        """Make the network that the method, with these ``settings``, is put around; by default one, ``build(0)``.

        Args:
            build: gives the untrained network of a member, whose weights follow from (run seed, member). Told a second
                thing, it is another network: a number makes it as many times as wide (a small one where the suite's
                cannot be), a word is an architecture.
        """
        return build(0)

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

    @property
    def first_weights(self) -> str | None:
        """A file of weights to begin with, which whoever trains reads for :meth:`begin_from`; none by default."""
        return None

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take up the ``weights`` of a network that was trained before; its optimizer's memory stays behind."""
        self.network.load_state_dict(weights)

    def labelled_rows(self, batch_size: int, labels: int, images: int) -> int:
        """Say how many of a batch's images have a label, when ``labels`` of all ``images`` have one: all by default."""
        return batch_size

    @property
    def last_epoch(self) -> int:
        """The epoch, counted from 0, whose weights stand at the end."""
        return len(self.history) - 1

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0; nothing by default."""

    def companions(self) -> list[nn.Module]:
        """List networks that training needs and nobody evaluates, such as an attack's sources: their passes count."""
        return []

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
        return 1.0 if self._trainer is None else self.progress_after(self.trainer.global_step)

    def progress_after(self, step: int) -> float:
        """Give the fraction that is done once ``step``, counted from 0, is; learning rate, ramp and average follow it.

        A method of several stages counts it anew in each.
        """
        return min(1.0, (step + 1) / self.total_updates())

    def learning_rate_at(self, progress: float) -> float:
        """Give the learning rate of the step that ends at ``progress``, in (0, 1]: the recipe's, by default."""
        return self.recipe.learning_rate_at(progress)

    def data_passes(self) -> int:
        """Give how often a trainer should pass over the data: the recipe's epochs, unless a method counts otherwise."""
        return self.recipe.epochs

    def total_updates(self) -> float:
        """Count the optimizer steps of the whole training; infinite where the trainer has no end."""
        return self.trainer.estimated_stepping_batches

    def remarks(self) -> dict[str, float | str]:
        """Give what a reader should see beside this method's row: numbers by name, and marks as words; nothing else.

        Such as the radii it trained with, or ``{"mark": "curriculum not completed"}``.
        """
        return {}

    def noted(self, name: str) -> list[float]:
        """List what :meth:`note` remembered under ``name``, epoch by epoch."""
        return [line[name] for line in self.history if name in line]

    def note(self, name: str, value: Tensor) -> None:
        """Remember a number of this step; the mean over the epoch goes into :attr:`history`."""
        self._notes[name].append(value.detach().mean())

    def remember(self, memory: PerImage, index: Tensor, values: Tensor) -> None:
        """Write ``values`` ``(n,)`` of the images ``index`` ``(n,)`` into ``memory``, on every device those of all."""
        if self._ranks() > 1:
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
        if len(batch) == 2 and self._kept(PerImage):
            raise BadInput(
                f"{self.card.key} remembers something of every image: give the Trainer a loader of (x, y, index), with "
                "the image's number in its data set, but found (x, y)"
            )
        self.draws.begin(epoch=self.current_epoch, step=batch_idx, rank=self.global_rank)
        self._key_global_generator(step=batch_idx)  # for dropout: a resumed epoch's loader has drawn other numbers
        loss = self.trace_step(batch).loss
        self._check_loss(loss)
        self.note("loss", loss)
        return loss

    def _check_loss(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.grad_fn is None:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            graph = " without a graph" if isinstance(loss, Tensor) and loss.grad_fn is None else ""
            code = type(self).training_loss.__code__  # the error's own traceback does not lead there
            where = f"{code.co_filename.rpartition('/')[2]}, line {code.co_firstlineno}"
            raise TypeError(f"training_loss ({where}) returns one number with its graph, but found {found}{graph}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average the weights after the optimizer moved them."""
        if self.automatic_optimization:
            self.average_weights()

    def average_weights(self) -> None:
        """Let the present weights enter the average, where the recipe averages and has begun to."""
        if self.averaged is None:
            return
        done = self.progress_after(self.trainer.global_step - 1)  # the optimizer has counted this step
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
        self.history = self.history_so_far()
        self.log_dict({name: self.history[-1][name] for name in self._notes})
        self._notes.clear()

    def history_so_far(self) -> list[dict[str, float]]:
        """Give :attr:`history` with a line for the present epoch, whose end some callbacks see before the module."""
        if not self._notes:
            return self.history
        means = {name: self._over_ranks(torch.stack(values).mean()).item() for name, values in self._notes.items()}
        if not math.isfinite(means.get("loss", 0.0)):
            raise FloatingPointError(
                f"the training loss became {means['loss']} in epoch {self.current_epoch} (from 0): lower "
                f"recipe.learning_rate ({self.recipe.learning_rate:g}) or set recipe.gradient_clip"
            )
        held_out: dict[str, float] = {}
        if (score := self.held_out_score) is not None:
            held_out = {"held_out_robust": score.robust, "held_out_clean": score.clean}
            held_out |= self.held_out_alarm | self.held_out_means
        return [*self.history[: self.current_epoch], {"epoch": self.current_epoch, **means, **held_out}]

    def _over_ranks(self, mine: Tensor) -> Tensor:
        """Average a number over all devices; all of them must come here."""
        if self._ranks() == 1:
            return mine
        mean: Tensor = self.trainer.strategy.reduce(mine.to(self.device), reduce_op="mean")
        return mean

    # Lightning

    def configure_optimizers(self) -> Any:
        """Pair the optimizer with the recipe's schedule, stepped once per optimizer step."""
        optimizer = self.optimizers_for(self.recipe)
        total = self.total_updates()
        if not 0 < total < math.inf:  # -1 where a loader does not know its length
            raise BadInput(
                "the recipe's schedule needs an end: give the Trainer max_steps, or max_epochs and data of known length"
            )
        peak = self.recipe.learning_rate or 1.0

        def scheduled(step: int) -> float:
            return self.learning_rate_at(self.progress_after(step)) / peak

        def constant(step: int) -> float:
            return 1.0

        factors: list[Callable[[int], float]] = [
            scheduled if group.get("scheduled", True) else constant for group in optimizer.param_groups
        ]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Limit the gradient as the recipe says, or, where it says nothing, as the Trainer was told."""
        if self.recipe.gradient_clip is not None:
            gradient_clip_val, gradient_clip_algorithm = self.recipe.gradient_clip, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep history and memories with the weights; weights whose loss is no number replace no checkpoint."""
        checkpoint["history"] = self.history_so_far()
        checkpoint["per_image"] = {name: memory.state_dict() for name, memory in self._kept(PerImage).items()}
        checkpoint["per_row"] = {name: self._of_all_ranks(rows.table) for name, rows in self._kept(PerRow).items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        self.history = checkpoint.get("history", [])
        for name, memory in self._kept(PerImage).items():
            memory.load_state_dict(checkpoint["per_image"][name])
        for name, rows in self._kept(PerRow).items():
            rows.resume(checkpoint["per_row"][name], self.global_rank, self._ranks())

    def _kept(self, kind: type[_Memory]) -> dict[str, _Memory]:
        return {name: value for name, value in vars(self).items() if isinstance(value, kind)}

    def _of_all_ranks(self, tensor: Tensor | None) -> Tensor | None:
        """Stack what the ranks have, ``(ranks, ...)``; all of them must come here, as they do to save a checkpoint."""
        if tensor is None or self._ranks() == 1:
            return None if tensor is None else tensor[None]
        gathered: Tensor = self.all_gather(tensor)  # type: ignore[assignment]
        return gathered


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
