"""The bounds of an attack that was written for normalised images with one number for all channels: zhai's code."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.inner import Inner
from methods.records import Batch


@dataclass(frozen=True)
class NormalisedBounds:
    r"""Ball and range in the space of :math:`(x - \mu_c) / \sigma_c`, each with one scalar for every channel c.

    .. math:: \epsilon / \max\sigma, \quad [(0 - \min\mu) / \max\sigma,\; (1 - \max\mu) / \max\sigma]

    So the radius is too small in pixels for channels of a smaller deviation, and the range leaves out true black and
    true white of most channels: very dark and very bright pixels are pulled inwards, even out of the ball. Nothing of
    this happens to images of one channel. Here for parity alone.

    Args:
        mean, std: of the network's input normalisation, a value a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: list[float] | None, std: list[float] | None) -> "NormalisedBounds | None":
        """Take both, or neither; raises :class:`BadInput` where they do not go together."""
        if mean is None and std is None:
            return None
        if mean is None or std is None or len(mean) != len(std) or not all(value > 0 for value in std):
            raise BadInput(f"mean and std are given together, a value a channel, std above 0; found {mean} and {std}")
        return cls(tuple(mean), tuple(std))

    def climb(
        self, inner: Inner, network: nn.Module, batch: Batch, objective: Objective, threat: ThreatModel, noise: Tensor
    ) -> Tensor:
        """Attack as ``inner`` says from ``noise``, which is in pixels, within these bounds; gives pixels again."""
        if threat.norm != "linf" or batch.x.shape[1] != len(self.mean):
            raise BadInput(
                f"the bounds of normalised space are those of linf and of images with {len(self.mean)} channels, but "
                f"found {threat.norm} and {batch.x.shape[1]}: leave out mean and std"
            )
        mean, std = (batch.x.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        widest = max(self.std)
        bounds = replace(
            threat.at(threat.epsilon / widest),
            low=(threat.low - min(self.mean)) / widest,
            high=(threat.high - max(self.mean)) / widest,
        )
        x = (batch.x - mean) / std
        found = inner.climb(
            _OfNormalised(network, mean, std),
            x,
            batch.y,
            objective,
            bounds,
            start=(x + noise / widest).clamp(bounds.low, bounds.high),
            step_size=x.new_full((len(x),), Pixels.read(inner.step_size).at(threat.epsilon) / widest),
        )
        return found * std + mean


class _OfNormalised(nn.Module):
    """Gives a network of pixels the pixels back."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x * self.std + self.mean)
        return logits
