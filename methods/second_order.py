"""Methods whose loss holds an input gradient, so that training differentiates the network twice."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective
from methods.base import AdversarialTraining
from methods.input_gradient import InputGradient, input_gradient
from methods.records import StepTrace

# How PyTorch words it: once_differentiable, compiled graphs, fused kernels.
_ONCE_ONLY = re.compile(r"differentiate twice|double.?backward|derivative for .* (is )?not implemented", re.IGNORECASE)


class SecondOrder(AdversarialTraining):
    """Keep input gradients in float32 and out of compiled graphs, and say so where a layer has no second derivative.

    Raises:
        BadInput: in place of PyTorch's error, naming the method; the term is never left out in silence.
    """

    def input_gradient(
        self, x: Tensor, objective: Objective, *, create_graph: bool = True, network: nn.Module | None = None
    ) -> InputGradient:
        """Differentiate each image's own ``objective`` by the image, by default so that weights can follow."""
        with self._told():
            found = input_gradient(network or self.network, x, objective, create_graph=create_graph)
        if create_graph and not found.gradient.requires_grad:
            raise self._refusal("the input gradient does not depend on the weights")
        return found

    def trace_step(self, batch: Any) -> StepTrace:
        """Run the step, compiled parts of the network as plain PyTorch: their graphs have no second derivative."""
        if not _compiled(self.network):
            return super().trace_step(batch)
        key = self.card.key
        warnings.warn(f"{key} runs the compiled network eagerly, to differentiate it twice", stacklevel=2)
        with torch.compiler.set_stance("force_eager"):
            return super().trace_step(batch)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the second time."""
        with self._told():
            super().backward(loss, *args, **kwargs)

    def remarks(self) -> dict[str, float | str]:
        """Say where the input gradients are more precise than the run."""
        mixed = self._trainer is not None and "mixed" in str(self.trainer.precision)
        return {"precision": "input gradients in float32"} if mixed else {}

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # out of memory is one, too
            if _ONCE_ONLY.search(str(error)) is None:
                raise
            raise self._refusal(str(error).partition("\n")[0]) from error

    def _refusal(self, reason: str) -> BadInput:
        return BadInput(
            f"{self.card.key} differentiates the network twice, but one of its layers allows it once ({reason}): "
            "replace fused, compiled or checkpointed layers by plain ones"
        )


def _compiled(network: nn.Module) -> bool:
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in network.modules()
    )
