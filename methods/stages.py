"""Training in two stages that share the recipe's epochs: ordinary networks first, then the method."""

import math

from methods.base import AdversarialTraining


class TwoStages(AdversarialTraining):
    """Go through the recipe's schedule once in each stage, with a new optimizer at the switch.

    The weights of the first stage are not settled: the best checkpoint is one of the second. Without a trainer it is
    always the second stage.
    """

    first_share: float  # of the epochs, that the first stage has

    @property
    def settled(self) -> bool:
        """Whether it is the second stage."""
        return self._trainer is None or self.current_epoch >= self.switch_epoch()

    def switch_epoch(self) -> int:
        """Give the first epoch of the second stage, counted from 0."""
        return math.floor(self._epochs() * self.first_share + 1e-9)

    def progress_after(self, step: int) -> float:
        """Give the fraction of its stage that is done once ``step`` is."""
        first = self.switch_epoch() / self._epochs() * self.total_updates()
        begun, ended = (0.0, first) if step < round(first) else (first, self.total_updates())
        return min(1.0, (step + 1 - begun) / (ended - begun))

    def on_epoch(self, epoch: int) -> None:
        """Forget the optimizer's memory, such as momentum, at the switch."""
        super().on_epoch(epoch)
        if epoch == self.switch_epoch():
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def average_weights(self) -> None:
        """Average the weights of the second stage alone."""
        if self.settled:
            super().average_weights()

    def _epochs(self) -> float:
        """Count the epochs of the whole training, which a trainer's number of steps may cut short."""
        if self.trainer.max_epochs is not None and self.trainer.max_epochs > 0:
            return self.trainer.max_epochs
        return self.total_updates() / self.trainer.num_training_batches
