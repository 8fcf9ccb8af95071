"""Methods that move the weights several times within one batch: they hold the optimizer themselves."""

from typing import Any

import torch
from torch import Tensor

from methods.base import AdversarialTraining


class Interleaved(AdversarialTraining):
    """A base for methods whose attack and optimizer take turns, with Lightning's manual optimization.

    Such a method overrides :meth:`trace_step`, which calls :meth:`update` between its turns, and leaves the last turn
    to the caller: its loss comes back with the graph, and ``update(trace.loss)`` ends the step.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.automatic_optimization = False
        self._own_optimizer: torch.optim.Optimizer | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Run the trace and the update that it leaves open."""
        loss = super().training_step(batch, batch_idx)
        self.update(loss)
        return loss.detach()

    def update(self, loss: Tensor) -> None:
        """Take one optimizer step down ``loss``; without a trainer, with the recipe's optimizer at its peak rate."""
        if self._trainer is None:
            self._own_optimizer = self._own_optimizer or self.optimizers_for(self.recipe)
            self._own_optimizer.zero_grad()
            loss.backward()
            self._own_optimizer.step()
            self._own_optimizer.zero_grad()
            return
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()  # type: ignore[union-attr] # there is one
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        self.average_weights()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradient as the recipe says; by now mixed precision has scaled it back."""
        self.configure_gradient_clipping(optimizer)
