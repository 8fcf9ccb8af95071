"""Adversarial pre-training on one task, then adversarial fine-tuning on the one that matters."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.threat import ThreatModel
from methods.anatomy import last_linear
from methods.base import AdversarialTraining, Batch, Card
from methods.draws import seeded
from methods.inner import Centre, Inner, check_centre
from methods.recipe import Recipe
from methods.turned import negative_transposed

LONG = 60  # epochs from which on the published proportion of the stages makes sense
PUBLISHED_RATE = 0.01  # of stage B over that of stage A
TRAVEL = 2.0  # peak rate times steps of stage B: 0.001 times 1,955 as published


class Moment(NamedTuple):
    """Where a training step stands: the recipe of its stage, and the fraction of the stage that is done."""

    recipe: Recipe
    progress: float


class Pretraining(AdversarialTraining):
    r"""Train adversarially on a source task from scratch, replace the last layer, and go on with the target task.

    .. math:: \text{A: } CE(z_s(x'_s), y_s), \quad \text{B: } CE(z_t(x'), y),
        \quad x' = \arg\max_{\|x' - x\| \le \epsilon} CE(z(x'), y)

    with z the logits, and nothing that ties stage B to stage A but the weights it begins with.

    Source: Hendrycks et al., ICML 2019, arXiv:1901.09960. Reading: the ball is around the image; the authors' attack
    adds its noise in place, so that theirs is around the noisy image and their images move by up to 2 epsilon
    (``centre: start``). Reading: their source, ImageNet at 32x32, is not at hand. The stand-in is made of the target's
    own training images, mirrored at the diagonal and inverted, x to 1 - x^T with the same label; it checks the two
    stages and is no evidence for or against pre-training.

    Steps: 1. In stage A put the source's image in the place of each. 2. In train mode, so that BatchNorm's statistics
    move, attack the batch from a uniform start outside the pixel range, K steps. 3. Forward what came out in train
    mode; cross-entropy, backward, optimizer step. 4. Before the first step of stage B the last linear layer begins
    anew, and so do the optimizer's memory, the weight average and, at a lower rate, the schedule; everything goes on
    being trained.

    Warning: with the stand-in source expect less than of `pgd_at` for as many epochs. Warning: the published PGD
    figures come from an attack that is centred on the noisy image; AutoAttack leaves 54.92 where the authors report
    57.4 (CIFAR-10, 8/255). Warning: the survey's row of that year is the paper on rotations, `ss_rotation`.

    Args:
        source: ``mirrored``, the stand-in; ``none``, only stage B, from scratch; or a file of weights,
            FILE.safetensors, of a network that was trained on another task, such as last.safetensors of ``pgd_at`` on
            CIFAR-100: only stage B, from these. Its last layer may have other classes.
        tuning_epochs: of stage B. None takes a 21st of the recipe's from 60 epochs on, which are the published 5 of
            105, and a third of fewer, one at least.
        tuning_rate: the learning rate of stage B over that of stage A. None takes 0.01, the published one, or more
            where stage B is shorter than the published 1,955 steps: the peak is 2 / steps then, and that of stage A at
            most. From scratch it is that of stage A.
        centre: of the ball, ``image`` or ``start``, which is the authors' slip and is never ranked.

    History: ``tuning``, 1 in stage B; what is held out are always images of the target task.
    """

    card = Card(key="pretraining", category="semi-supervised", citation="hendrycks2019using", comparison="D")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        source: str = "mirrored",
        tuning_epochs: int | None = None,
        tuning_rate: float | None = None,
        centre: Centre = "image",
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=False, mode="train"),
        **common: Any,
    ) -> None:
        super().__init__(network, threat, inner=inner, **common)
        check_centre(centre)
        if not (source in ("mirrored", "none") or source.endswith(".safetensors") or source.startswith("sha256:")):
            raise BadInput(f"source is mirrored, none or a FILE.safetensors, but found {source!r}")
        least, most = (0 if source == "mirrored" else 1), self.recipe.epochs
        if tuning_epochs is not None and not least <= tuning_epochs <= most:
            raise BadInput(
                f"tuning_epochs lies between {least} and recipe.epochs ({most}), or is null for the rule, but found "
                f"{tuning_epochs}"
            )
        if tuning_rate is not None and not tuning_rate >= 0:
            raise BadInput(f"tuning_rate is 0 or more, or null for the rule, but found {tuning_rate}")
        self.source, self.centre = source, centre
        self.tuning_epochs = usual_tuning(most) if tuning_epochs is None else tuning_epochs
        self.tuning_rate = tuning_rate
        self.begun_from = ""  # hash of the weights that stage B began with

    @property
    def first_weights(self) -> str | None:
        """The file of weights to begin with, where that is the source."""
        return self.source if self.source.endswith(".safetensors") else None

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take up the weights of a network that was trained on another task; its last layer may have other classes."""
        own = self.network.state_dict()
        fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        strange = sorted((own.keys() ^ weights.keys()) | (own.keys() - fitting.keys()))
        if own.keys() != weights.keys() or len({name.rpartition(".")[0] for name in strange}) > 1:
            raise BadInput(
                f"stage B begins with weights of this network in {self.source}, its last layer aside, but found other "
                f"{', '.join(strange[:4])}: train the source with the same network"
            )
        self.network.load_state_dict(fitting, strict=False)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        tuning = self._trainer is None or self.current_epoch >= self.source_epochs
        self.note("tuning", batch.x.new_tensor(float(tuning)))
        if not tuning:
            batch = batch._replace(x=negative_transposed(batch.x, self.threat.low, self.threat.high))
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        return self.classification_loss(self(attacked), batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack the images around themselves, or as the authors do around their noisy copies."""
        threat = self.present_threat()
        return self.inner.maximise(self.network, batch.x, batch.y, objective, threat, self.draws, centre=self.centre)

    # The two stages

    @property
    def source_epochs(self) -> int:
        """Epochs of stage A; a trainer that makes other epochs than the recipe's parts them in the same proportion."""
        if self.source != "mirrored":
            return 0
        tuning = self._passes() * self.tuning_epochs / self.recipe.epochs
        return self._passes() - (max(1, round(tuning)) if tuning else 0)

    def data_passes(self) -> int:
        """Give the recipe's epochs, which both stages share; where stage B is all there is, its own."""
        return self.recipe.epochs if self.source == "mirrored" else self.tuning_epochs

    def _passes(self) -> int:
        limit = None if self._trainer is None else self.trainer.max_epochs
        return limit if limit is not None and limit > 0 else self.data_passes()

    def at(self, progress: float) -> Moment:
        """Find the step that ends at ``progress`` of the whole training in its stage."""
        total, epochs = round(self.total_updates()), self._passes()
        first = total * self.source_epochs // epochs
        step = round(progress * total)
        if step <= first:
            return Moment(replace(self.recipe, epochs=self.source_epochs), step / first)
        steps = total - first
        tuning = replace(
            self.recipe,
            epochs=epochs - self.source_epochs,
            learning_rate=self.recipe.learning_rate * self.rate_factor(steps),
            epsilon_ramp=self.recipe.epsilon_ramp if self.source == "none" else 0.0,
        )
        return Moment(tuning, (step - first) / steps)

    def rate_factor(self, steps: int) -> float:
        """Give the learning rate of a stage B of so many steps over that of stage A."""
        if self.tuning_rate is not None:
            return self.tuning_rate
        if self.source == "none" or self.recipe.learning_rate == 0:
            return 1.0
        return max(PUBLISHED_RATE, min(1.0, TRAVEL / (steps * self.recipe.learning_rate)))

    def learning_rate_at(self, progress: float) -> float:
        """Run the recipe's schedule through each stage, compressed to its length."""
        moment = self.at(progress)
        return moment.recipe.learning_rate_at(moment.progress)

    def present_threat(self) -> ThreatModel:
        """Ramp the radius up in stage A alone, or in stage B where it begins from scratch."""
        if self._trainer is None or self.recipe.epsilon_ramp == 0:
            return self.threat
        moment = self.at(self.progress())
        return self.threat.at(self.threat.epsilon * moment.recipe.epsilon_factor(moment.progress))

    @property
    def settled(self) -> bool:
        """Whether the present weights may be kept as the best: in stage B, or where there is none."""
        return self.current_epoch >= self.source_epochs or self.tuning_epochs == 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin stage B, where this is its first step and something came before it."""
        something = self.source_epochs > 0 or self.first_weights is not None
        if batch_idx == 0 and self.current_epoch == self.source_epochs and something:
            self.begin_tuning(Batch.of(batch).x)

    def begin_tuning(self, x: Tensor) -> None:
        """Replace the last linear layer of a network of images like ``x``, and forget what led to the others."""
        self.begun_from = digest(self.network)
        with seeded(self.seed, "fresh last layer"), torch.no_grad():
            last: Any = self.network.get_submodule(last_linear(self.network, x))
            fresh = nn.Linear(last.in_features, last.out_features, bias=last.bias is not None).to(last.weight)
            for own, value in zip(last.parameters(), fresh.parameters(), strict=True):
                own.copy_(value)  # in place, so that the optimizer and other devices know it
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        if self.averaged is not None:
            self.averaged.n_averaged.zero_()  # the next step begins it anew

    # What is told and kept

    def remarks(self) -> dict[str, float | str]:
        """Give the length of the stages, and say where the weights of stage B came from."""
        told: dict[str, float | str] = {
            "source_epochs": float(self.source_epochs),
            "tuning_epochs": float(self._passes() - self.source_epochs),
        }
        if self.source == "mirrored":
            told["mark"] = "extra data: none, stand-in source (less than pgd_at is expected)"
        elif self.first_weights is not None:
            told["mark"] = "extra data: weights trained on another task"
        if self.centre == "start":
            told["centre"] = "trained with images up to 2 epsilon away: not to be ranked"
        return told

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stage, and what stage B began with, with the weights."""
        super().on_save_checkpoint(checkpoint)
        stage = "B" if self.current_epoch >= self.source_epochs else "A"
        checkpoint["pretraining"] = {"stage": stage, "begun_from": self.begun_from}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        super().on_load_checkpoint(checkpoint)
        self.begun_from = checkpoint["pretraining"]["begun_from"]


def usual_tuning(epochs: int) -> int:
    """Give the epochs of stage B among all ``epochs``: the published proportion, where it leaves more than a few."""
    return max(1, round(epochs / (21 if epochs >= LONG else 3)))


def digest(network: nn.Module) -> str:
    """Hash weights and statistics of a network."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().double().numpy().tobytes())
    return found.hexdigest()
