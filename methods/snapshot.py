"""What a training was at some epoch, kept aside to go back to: weights, averages and the optimizer's memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor


class Snapshot(NamedTuple):
    """Copies of a module's state and of its optimizer's, such as momentum; learning rates are not among them."""

    weights: dict[str, Any]
    optimizer: dict[int, Any]

    @classmethod
    def of(cls, module: pl.LightningModule) -> "Snapshot":
        """Copy the present state of a ``module`` in training."""
        return cls(_copied(module.state_dict()), _copied(module.trainer.optimizers[0].state_dict()["state"]))

    def restore(self, module: pl.LightningModule) -> None:
        """Bring ``module`` back; the learning rate stays where the schedule has it."""
        module.load_state_dict(self.weights)
        optimizer = module.trainer.optimizers[0]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _copied(self.optimizer)})

    @contextmanager
    def standing_in(self, module: pl.LightningModule) -> Iterator[None]:
        """Let ``module`` have the weights of then inside the block, and bit for bit its own afterwards."""
        present = _copied(module.state_dict())
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(present)


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return state.detach().clone() if isinstance(state, Tensor) else state
