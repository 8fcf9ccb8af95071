"""Several optimizers that step as one, for methods that train another network beside the classifier."""

from collections.abc import Callable
from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Let the classifier's optimizer and others take every step together.

    One to the trainer, the mixed-precision scaler and the checkpoint, where several would need manual optimization.
    The recipe's schedule and limit of the gradient are the first one's alone: the groups of the others say
    ``scheduled: False``.
    """

    def __init__(self, first: torch.optim.Optimizer, *others: torch.optim.Optimizer) -> None:
        self.parts = [first, *others]
        for group in (group for other in others for group in other.param_groups):
            group["scheduled"] = False
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @property
    def first(self) -> torch.optim.Optimizer:
        """The classifier's."""
        return self.parts[0]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` once, then step all parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Give the states of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # loading makes new ones
