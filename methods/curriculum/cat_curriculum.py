"""Curriculum adversarial training: lessons of stronger and stronger attacks, with the weaker ones kept in practice."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.pixels import Pixels
from attacks.randomness import uniform
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.curriculum.quantised import Quantised
from methods.inner import Inner
from methods.snapshot import Snapshot


@dataclass(frozen=True)
class Best:
    """The best of the present lesson so far: epoch, lesson accuracy (None: not measured yet) and what to go back to."""

    epoch: int
    accuracy: float | None
    snapshot: Snapshot


class CATCurriculum(AdversarialTraining):
    r"""Begin without an attack and add steps to it lesson by lesson, each once the one before is learned.

    .. math:: \frac{1}{B} \sum_i CE(f(x'_i), y_i), \quad x'_i = A_{g(i)}(x_i), \quad g(i) \in \{0, ..., l\}

    in lesson l = 0, ..., K. :math:`A_k` is PGD of k steps of :math:`2\epsilon r / k` with one random
    :math:`r \sim U(1, 10/k)` for the whole group, and :math:`A_0` leaves the image alone.

    Source: Cai et al., IJCAI 2018, arXiv:1805.04807. Reading: no quantisation, which hides gradients; the lesson
    accuracy is that of the network itself. Reading: a lesson also ends when it has lasted its longest, because the
    authors' 300 epochs of a constant learning rate are a schedule here; ``min_train_accuracy`` is the paper's, 0, not
    the code's. Lesson K goes on to the end of the training. Reading: the optimizer in use is restored, where the code
    always makes an Adam.

    Steps: 1. In lesson l part the batch into groups 0 to l of equal size, the last of which takes the rest; a batch too
    small for a row in each is skipped. 2. Leave group 0 clean and attack every other group g alone by A_g, in train
    mode, so that BatchNorm's statistics move: from a uniform point of the ball, not clipped to the pixel range; after
    each step back into the ball, then into the range. 3. Forward the whole batch once in train mode; cross-entropy,
    backward, optimizer step. 4. After each epoch measure the held-out accuracy under A_l, without a random factor and
    in eval mode, and keep weights and momentum of the lesson's best. 5. When a lesson ends go back to its best, and
    begin the next; the learning rate follows the epoch.

    Warning: the survey's 69.27 is of quantised images under attacks that did not know of it, and the worst case over a
    family of them; without quantisation 46.06 is left under PGD-20 (WRN-32-10, Wang et al. 2019). Warning: small groups
    make BatchNorm's statistics noisy in train mode; a small network may never reach a ``min_train_accuracy``.

    Args:
        inner: ``steps`` is K, the last lesson; ``step_size`` the travel that the steps of each attack share.
        batch_mixing: false attacks the whole batch by A_l, as the authors' simpler variants do, in ``inner.mode`` eval.
        policy: what ends a lesson: ``validation``; or ``train_accuracy``, that of an epoch above 0.95, which goes on
            with the present weights.
        patience: epochs without a better lesson accuracy that end a lesson; None is a fifteenth of the recipe's, 10 in
            the paper.
        longest: epochs that a lesson lasts at most; None lets all lessons before K take 80 % of the recipe's epochs,
            rising by more than one where these are fewer than lessons.
        min_train_accuracy: of the epoch, on the mixed batches, above which alone patience counts; the code has 0.9.
        worst_case: judge a lesson by all attacks A_0 to A_l (to A_10 and A_20 above) together, not by A_l alone.
        levels: quantise what is evaluated, and what the lessons are judged by, to so many grey levels (16 in the
            paper); attacks on the classifier pass straight through, those of the lessons know nothing of it.
        first_lesson: where to begin; K for no curriculum.

    History: ``lesson``; ``train_accuracy`` on the mixed batches; ``lesson_accuracy`` on held-out images, by which the
    lesson is judged, and ``lesson_accuracy_unquantised`` where there are ``levels``.
    """

    card = Card(key="cat_curriculum", category="curriculum", citation="cai2018curriculum")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        batch_mixing: bool = True,
        policy: Literal["validation", "train_accuracy"] = "validation",
        patience: int | None = None,
        longest: int | None = None,
        min_train_accuracy: float = 0.0,
        worst_case: bool = False,
        levels: int | None = None,
        first_lesson: int = 0,
        inner: Inner = Inner(steps=7, step_size="2 epsilon", start="uniform", boxed=False, mode="train"),
        **common: Any,
    ) -> None:
        super().__init__(network, threat, inner=inner, **common)
        if policy not in ("validation", "train_accuracy"):
            raise BadInput(f"policy is validation or train_accuracy, but found {policy!r}")
        for name, epochs in (("patience", patience), ("longest", longest)):
            if epochs is not None and epochs < 1:
                raise BadInput(f"{name} is a number of epochs, 1 or more, or null for the rule, but found {epochs}")
        if not 0 <= min_train_accuracy <= 1:
            raise BadInput(f"min_train_accuracy lies between 0 and 1, but found {min_train_accuracy}")
        if not 0 <= first_lesson <= inner.steps:
            raise BadInput(f"first_lesson lies between 0 and inner.steps ({inner.steps}), but found {first_lesson}")
        if levels is not None:
            Quantised(network, levels)  # says what is wrong with it
        self.batch_mixing, self.policy, self.worst_case, self.levels = batch_mixing, policy, worst_case, levels
        self.patience = max(1, round(self.recipe.epochs / 15)) if patience is None else patience
        self.longest, self.min_train_accuracy = longest, min_train_accuracy
        self.lesson, self.began = first_lesson, 0  # and the epoch since when
        self.best: Best | None = None
        self._right: list[Tensor] = []

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        logits = self(attacked)
        self.note("lesson", logits.new_tensor(float(self.lesson)))
        self.note("train_accuracy", (logits.argmax(1) == batch.y).float())
        return self.classification_loss(logits, batch.y)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack each group of the batch with as many steps as its number says."""
        x, threat = batch.x, self.present_threat()
        start, attacked = self.inner.begin(x, threat, self.draws), []
        for steps, rows in self.groups(len(x)):
            part, climb = Batch(*(item[rows] for item in batch)), _on_rows(objective, rows, len(x))
            inner, factor = replace(self.inner, steps=steps), self._factor(x, steps)
            attacked.append(self.attack(part, climb, inner, threat, start[rows], factor))
        return torch.cat(attacked)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Skip a batch that has too few rows for all groups; on several devices momentum and decay still act."""
        flat = any(isinstance(part, nn.BatchNorm1d) for part in self.network.modules())  # wants two rows in a group
        if len(batch[0]) >= (self.lesson + 1) * (2 if flat and self.lesson else 1) or not self.batch_mixing:
            return super().training_step(batch, batch_idx)
        if self._ranks() == 1:
            return None
        return 0 * sum(parameter.sum() for parameter in self.network.parameters())  # DDP waits for every gradient

    def on_epoch(self, epoch: int) -> None:
        """Begin the next lesson where the present one has ended: the first process decides."""
        if epoch > self.began and self.trainer.strategy.broadcast(self.has_ended(epoch)):
            self._begin_next(epoch)

    def classifier(self) -> nn.Module:
        """Give the network, behind the quantisation where there is one."""
        network = super().classifier()
        return network if self.levels is None else Quantised(network, self.levels)

    # The lessons

    def groups(self, size: int) -> list[tuple[int, slice]]:
        """Part ``size`` rows into groups, each with the number of its steps."""
        share = size // (self.lesson + 1) if self.batch_mixing else 0
        full = [(group, slice(group * share, (group + 1) * share)) for group in range(self.lesson) if share]
        return [*full, (self.lesson, slice(self.lesson * share, size))]

    def attack(
        self,
        batch: Batch,
        objective: Objective,
        inner: Inner,
        threat: ThreatModel,
        start: Tensor,
        factor: float | Tensor = 1.0,
    ) -> Tensor:
        """Give A_k of a batch, k being ``inner.steps``, whose steps share the travel times ``factor``."""
        if inner.steps == 0:
            return batch.x
        length = Pixels.read(inner.step_size).at(threat.epsilon) / inner.steps
        step = length * factor * batch.x.new_ones(len(batch.x))
        return inner.climb(self.network, batch.x, batch.y, objective, threat, start=start, step_size=step)

    def has_ended(self, epoch: int) -> bool:
        """Tell whether the epochs before ``epoch`` have ended the present lesson."""
        if self.lesson == self.inner.steps:
            return False
        longest = longest_lesson(self.recipe.epochs, self.inner.steps) if self.longest is None else self.longest
        if epoch - self.began >= longest:
            return True
        last = self.history[-1] if self.history else {}
        learned = last.get("train_accuracy", 0.0)
        if self.policy == "train_accuracy":
            return learned > 0.95
        if self.best is None or "lesson_accuracy" not in last:  # nothing was measured in that epoch
            return False
        enough = self.min_train_accuracy == 0 or learned > self.min_train_accuracy
        return enough and epoch - 1 - self.best.epoch >= self.patience

    def _begin_next(self, epoch: int) -> None:
        self.lesson = min(self.inner.steps, self.lesson + lessons_at_once(self.recipe.epochs, self.inner.steps))
        self.began = epoch
        if self.best is None or self.best.accuracy is None:  # nothing was measured: go on with the present weights
            self.best = None
            return
        self.best.snapshot.restore(self)
        self.best = replace(self.best, epoch=epoch - 1, accuracy=None) if self.lesson < self.inner.steps else None

    def _factor(self, x: Tensor, steps: int) -> float | Tensor:
        """Draw r from U(1, 10/k); above 10 steps it lies below 1."""
        if steps == 0:
            return 1.0
        share = (self.draws.uniform(x, shape=(1, 1, 1, 1)).flatten() + 1) / 2
        return 1 + (10 / steps - 1) * share

    # The lesson accuracy

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's counts."""
        super().on_validation_epoch_start()
        self._right.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Also count images that are right in the lesson, now and, once, with the weights that it began with."""
        super().validation_step(batch, batch_idx)
        with torch.inference_mode(False):
            held_out = Batch(*(item.clone() for item in Batch.of(batch)))
            counts = self.right_in_lesson(held_out)
            began = torch.zeros_like(counts)
            if self.best is not None and self.best.accuracy is None:
                with self.best.snapshot.standing_in(self):
                    began = self.right_in_lesson(held_out)
            self._right.append(torch.cat([counts, began, counts.new_tensor([len(held_out.y)])]))

    def on_validation_epoch_end(self) -> None:
        """Keep weights and momentum that are better than the best of the lesson so far."""
        super().on_validation_epoch_end()
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        mine = torch.stack([torch.zeros(5, dtype=torch.int64, device=self.device), *self._right]).sum(0)
        judged, plain, began, _, images = self.trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        accuracy = judged / images
        self.note("lesson_accuracy", torch.tensor(accuracy, device=self.device))
        if self.levels is not None:
            self.note("lesson_accuracy_unquantised", torch.tensor(plain / images, device=self.device))
        if self.policy != "validation" or self.lesson == self.inner.steps:
            return
        if self.best is not None and self.best.accuracy is None:
            self.best = replace(self.best, accuracy=began / images)
        if self.best is None or self.best.accuracy is None or accuracy > self.best.accuracy:
            self.best = Best(self.current_epoch, accuracy, Snapshot.of(self))

    def right_in_lesson(self, batch: Batch) -> Tensor:
        """Count held-out images that are right under the lesson's attacks, as it is judged and without quantisation."""
        x, y, index = batch
        start = x + self.threat.epsilon * uniform(x, index.tolist(), self.seed, "lesson")
        judges = [self.network if self.levels is None else Quantised(self.network, self.levels), self.network]
        right = torch.ones(2, len(y), dtype=torch.bool, device=x.device)
        with in_mode(self.network, "eval"):
            for steps in self.judged_by():
                inner = replace(self.inner, steps=steps, mode="eval")
                attacked = self.attack(batch, cross_entropy_with(y), inner, self.threat, start)
                with torch.no_grad():
                    verdicts = [judge(attacked).argmax(1) == y for judge in dict.fromkeys(judges)]
                right &= torch.stack([verdicts[0], verdicts[-1]])
        return right.sum(1)

    def judged_by(self) -> list[int]:
        """List the attacks, by their steps, that the present lesson is judged by."""
        if not self.worst_case:
            return [self.lesson]
        return [*range(min(self.lesson, 10) + 1), *([20] if self.lesson >= 20 else [])]

    # What is told and kept

    def remarks(self) -> dict[str, float | str]:
        """Give the lesson reached, a mark where it is not the last, and with quantisation what does not adapt to it."""
        if not self.history:
            return {}
        found: dict[str, float | str] = {"last_lesson": float(self.lesson)}
        if self.levels is not None and self.noted("lesson_accuracy"):
            found["held_out_accuracy_with_attack_not_adapted"] = self.noted("lesson_accuracy")[-1]
            found["held_out_accuracy_without_quantisation"] = self.noted("lesson_accuracy_unquantised")[-1]
        if self.lesson < self.inner.steps:
            found["mark"] = "curriculum not completed"
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the lesson and its best with the weights."""
        super().on_save_checkpoint(checkpoint)
        best = None if self.best is None else [self.best.epoch, self.best.accuracy, *self.best.snapshot]
        checkpoint["cat_curriculum"] = {"lesson": self.lesson, "began": self.began, "best": best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["cat_curriculum"]
        self.lesson, self.began = kept["lesson"], kept["began"]
        if kept["best"] is not None:
            epoch, accuracy, *snapshot = kept["best"]
            self.best = Best(epoch, accuracy, Snapshot(*snapshot))


def longest_lesson(epochs: int, last: int) -> int:
    """Give the epochs of a lesson that leave the last one, K, at least 20 % of the training."""
    return max(1, 4 * epochs // (5 * max(1, last)))


def lessons_at_once(epochs: int, last: int) -> int:
    """Give how many lessons each change goes up, so that 80 % of the epochs reach the last one, K."""
    return max(1, -(-5 * last // (4 * epochs)))


def _on_rows(objective: Objective, rows: slice, size: int) -> Objective:
    """Let an objective of a whole batch of ``size`` see the logits of some ``rows``, and answer for them."""
    return lambda logits: objective(F.pad(logits, (0, 0, rows.start, size - rows.stop)))[rows]
