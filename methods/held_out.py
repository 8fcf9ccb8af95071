"""What every method does on held-out training images: the score by which the best epoch is chosen, and the alarm."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attacks.modes import in_mode
from attacks.threat import ThreatModel
from methods.alarm import FGSM, PGD10, right_under_fgsm
from methods.records import Batch
from methods.selection import Right, Score, held_out_verdicts


class HeldOut(pl.LightningModule):
    """Attack held-out images after each epoch, on every device its share of them.

    Attributes:
        held_out_score: of the epoch, None where there was no validation. held_out_alarm: accuracies that the alarm for
            catastrophic overfitting watches, of single-step methods. held_out_means: of the method's own
            :attr:`held_out_measures`.
    """

    faces_adversary: ClassVar[bool] = True  # natural training does not: neither in its loss nor in its selection
    single_step: bool = False  # trains on one-step attacks: watch it for catastrophic overfitting
    held_out_measures: ClassVar[tuple[str, ...]] = ()  # what :meth:`measure_held_out` gives, by its names in history
    threat: ThreatModel
    seed: int

    def __init__(self) -> None:
        super().__init__()
        self.held_out_score: Score | None = None
        self.held_out_alarm: dict[str, float] = {}
        self.held_out_means: dict[str, float] = {}
        self._held_out: list[Tensor] = []
        self._measured: list[Tensor] = []

    @property
    def settled(self) -> bool:
        """Whether the present weights may be kept as the best; not so while what is trained is another network."""
        return True

    def classifier(self) -> nn.Module:
        """Give the network that is scored."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Attack held-out training images at the full radius of the threat."""
        with torch.inference_mode(False):
            x, y, index = (item.clone() for item in Batch.of(batch))
            self._held_out.append(self.held_out_counts(Batch(x, y, index)))
            if self.held_out_measures:
                self._measured.append(self.measure_held_out(Batch(x, y, index)).double().sum(0))

    def measure_held_out(self, batch: Batch) -> Tensor:
        """Measure held-out images in the method's own way, ``(n, measures)``; their means go into the history."""
        raise NotImplementedError

    def held_out_counts(self, batch: Batch) -> Tensor:
        """Count, as int64, the images that are right under attack, right when clean, and all of them.

        For a single-step method two counts more: right under FGSM, and under PGD-10 on the cross-entropy.
        """
        network, alarm = self.classifier(), []
        with in_mode(network, "eval"):
            if self.faces_adversary:
                clean, pgd10, robust = self.held_out_right(network, batch)
                if self.single_step:
                    alarm = [right_under_fgsm(network, batch.x, batch.y, self.threat).sum(), pgd10.sum()]
            else:
                with torch.no_grad():
                    clean = robust = network(batch.x).argmax(1) == batch.y
        return torch.stack([robust.sum(), clean.sum(), torch.tensor(len(batch.y), device=clean.device), *alarm])

    def held_out_right(self, network: nn.Module, batch: Batch) -> Right:
        """Attack held-out images with the protocol's two attacks, ``network`` being in eval mode."""
        return held_out_verdicts(network, *batch, self.threat, seed=self.seed)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's counts, and score the statistics of BatchNorm that will be saved."""
        self._held_out.clear()
        self._measured.clear()
        self._share_buffers()

    def on_validation_epoch_end(self) -> None:
        """Turn counts, summed over devices, into this epoch's score."""
        names = (FGSM, PGD10) if self.single_step else ()
        mine = torch.stack(self._held_out).sum(0) if self._held_out else torch.zeros(3 + len(names), dtype=torch.int64)
        counts = self.trainer.strategy.reduce(mine.to(self.device), reduce_op="sum")
        robust, clean, images, *alarm = (int(count) for count in counts)
        score, more = self.score_held_out(Score(robust=robust / images, clean=clean / images))
        self.held_out_score = score
        self.held_out_alarm = {name: count / images for name, count in zip(names, alarm, strict=True)}
        self.held_out_means = self._means(images) | more
        beside = {**self.held_out_alarm, **self.held_out_means}
        self.log_dict({"held_out_robust": score.robust, "held_out_clean": score.clean, **beside})

    def score_held_out(self, score: Score) -> tuple[Score, dict[str, float]]:
        """Turn accuracies over all held-out images into what the epoch is chosen by, and more numbers for history."""
        return score, {}

    def of_all_held_out(self, rows: list[Tensor]) -> Tensor:
        """Put together what each device kept of its held-out images, ``(n, ...)``; all of them must come here."""
        mine = torch.cat(rows).cpu() if rows else None
        if self._ranks() == 1:
            return torch.cat(rows)
        every: list[Tensor | None] = [None] * self._ranks()
        torch.distributed.all_gather_object(every, mine)
        return torch.cat([part for part in every if part is not None])

    def _means(self, images: int) -> dict[str, float]:
        if not self.held_out_measures:
            return {}
        nothing = torch.zeros(len(self.held_out_measures), dtype=torch.float64)
        mine = torch.stack(self._measured).sum(0) if self._measured else nothing
        sums = self.trainer.strategy.reduce(mine.to(self.device), reduce_op="sum")
        return {name: float(total) / images for name, total in zip(self.held_out_measures, sums, strict=True)}

    # Several devices

    def on_train_end(self) -> None:
        """Leave every device with the same network."""
        self._share_buffers()

    def _share_buffers(self) -> None:
        """Take the first device's buffers: each device's BatchNorm has seen its own part of the batches."""
        if self._ranks() > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _ranks(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size
