"""A network as one fixed function of each image: BatchNorm uses the statistics of one batch, whatever comes after."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attacks.errors import BadInput
from attacks.modes import full_precision, in_mode


class RecordedStatistics(nn.Module):
    """Wrap ``network``: the first batch is normalised by its own statistics, every later one by those of the first.

    All forwards are in eval mode otherwise, in full precision, and touch no running statistics. Gradients flow through
    the recorded statistics, so a later forward depends on the first batch and on the weights also by way of them; they
    can be differentiated twice. BatchNorm that is frozen (in eval mode, in a network in train mode) stays frozen.

    Nothing is changed in the network: calls of ``F.batch_norm`` are caught in this thread while a forward runs, which
    also serves layers derived from BatchNorm. On several devices each has the statistics of its own part.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.statistics: list[tuple[Tensor, Tensor]] = []  # mean and variance, in the order of the layers
        self.recorded = False

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)``."""
        norms = [part for part in self.network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        frozen = {id(norm.running_mean) for norm in norms if self.network.training and not norm.training}
        layers = _Layers(self.statistics, frozen, self.recorded)
        with full_precision(x), in_mode(self.network, "eval"), layers:
            logits: Tensor = self.network(x)
        self.recorded = True
        return logits


class _Layers(TorchFunctionMode):
    """Take the place of ``F.batch_norm`` during one forward."""

    def __init__(self, statistics: list[tuple[Tensor, Tensor]], frozen: set[int], recorded: bool) -> None:
        super().__init__()
        self.statistics, self.frozen, self.recorded, self.passed = statistics, frozen, recorded, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            return self.normalise(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def normalise(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Write the normalisation out: PyTorch's own does not differentiate through statistics that are given."""
        if running_mean is not None and id(running_mean) in self.frozen:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        channel = [-1] + [1] * (x.ndim - 2)
        mean, variance = (part.reshape(channel) for part in self._statistics_of(x))
        normal = (x - mean) * (variance + eps).rsqrt()
        if weight is not None:
            normal = normal * weight.reshape(channel)
        return normal if bias is None else normal + bias.reshape(channel)

    def _statistics_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.recorded:
            variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
            self.statistics.append((mean, variance))
        if self.passed == len(self.statistics) or len(self.statistics[self.passed][0]) != x.shape[1]:
            raise BadInput("recorded statistics need a network that runs through the same BatchNorm layers every time")
        self.passed += 1
        return self.statistics[self.passed - 1]
