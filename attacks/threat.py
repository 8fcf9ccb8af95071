"""What the adversary may do: a norm, a radius and the pixel range, as one frozen value."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attacks.errors import BadInput
from attacks.pixels import fraction

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True)
class ThreatModel:
    """Move an image by at most ``epsilon`` in ``norm`` and stay inside ``[low, high]``; all in pixel units.

    Raises:
        BadInput: for an unknown norm, a negative epsilon, or a range that is empty.
    """

    norm: Norm = "linf"
    epsilon: float = 8 / 255
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2", "l1"):
            raise BadInput(f"threat.norm is linf, l2 or l1, but found {self.norm!r}")
        object.__setattr__(self, "epsilon", fraction(self.epsilon, "threat.epsilon"))
        if not self.low < self.high:
            raise BadInput(f"threat.low lies below threat.high, but found [{self.low}, {self.high}]")

    def at(self, epsilon: float) -> "ThreatModel":
        """Give the same threat with another radius, in pixel units."""
        return replace(self, epsilon=epsilon)

    def project(self, moved: Tensor, origin: Tensor, radius: Tensor | None = None) -> Tensor:
        """Bring ``moved`` into the ball around ``origin``, then into the pixel range; both ``(n, c, h, w)``.

        ``radius`` ``(n,)`` gives each image its own ball. The range comes last and cannot leave the ball, because
        ``origin`` lies in the range. For use outside graphs: nothing here is meant to be differentiated.
        """
        return (origin + self.into_ball(moved - origin, radius)).clamp(self.low, self.high)

    def into_ball(self, delta: Tensor, radius: Tensor | None = None) -> Tensor:
        """Bring moves ``(n, c, h, w)`` into the ball alone; the rest as in :meth:`project`."""
        bound = delta.new_tensor(self.epsilon) if radius is None else per_image(radius, delta)
        if self.norm == "linf":
            return delta.clamp(-bound, bound)
        if self.norm == "l2":
            # torch.renorm's constant, which the authors' projections use: the result lies a hair inside the ball.
            length = l2_length(delta)
            return delta * torch.where(length > bound, bound / (length + 1e-7), torch.ones_like(length))
        return _onto_l1_ball(delta, bound)

    def direction(self, gradient: Tensor) -> Tensor:
        """Turn gradients ``(n, c, h, w)`` into steepest-ascent directions of length one in ``norm``.

        Linf: the sign. L2: the unit vector. L1: the signs of the largest 1 % of the entries (and of those that tie
        with them), sharing one unit (sparse ascent of Tramèr and Boneh, NeurIPS 2019, arXiv:1904.13000, section 3.3).
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / (l2_length(gradient) + 1e-10)  # the constant of MadryLab/robustness
        kept = max(1, gradient[0].numel() // 100)
        return shared_unit(signs_of_largest(gradient, kept))

    def distance(self, moved: Tensor, origin: Tensor) -> Tensor:
        """Measure how far each image was moved, ``(n,)``, in ``norm``."""
        delta = (moved - origin).flatten(1)
        if self.norm == "linf":
            return delta.abs().amax(1)  # on CPUs vector_norm takes eight times as long
        return torch.linalg.vector_norm(delta, {"l2": 2, "l1": 1}[self.norm], dim=1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(n,)`` so that it broadcasts over images ``like`` of shape ``(n, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def l2_length(images: Tensor) -> Tensor:
    """Euclidean length of each image of ``(n, c, h, w)``, as ``(n, 1, 1, 1)``."""
    return per_image(torch.linalg.vector_norm(images.flatten(1), dim=1), images)


def signs_of_largest(gradient: Tensor, kept: int) -> Tensor:
    """Give the signs of each image's ``kept`` largest entries, and of those that tie with the last; 0 elsewhere."""
    size = gradient.abs()
    floor = per_image(size.flatten(1).topk(kept, dim=1).values[:, -1], gradient)
    return torch.where(size >= floor, gradient.sign(), torch.zeros_like(gradient))


def shared_unit(signs: Tensor) -> Tensor:
    """Let each image's signs share one unit of L1 length."""
    return signs / per_image(signs.abs().flatten(1).sum(1).clamp(min=1), signs)


def _onto_l1_ball(delta: Tensor, bound: Tensor) -> Tensor:
    """Project onto the L1 ball by soft thresholding (Duchi et al., ICML 2008, figure 1)."""
    flat = delta.flatten(1)
    size = bound.reshape(-1, 1)
    descending = flat.abs().sort(dim=1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device)
    excess = (descending.cumsum(1) - size) / count
    last = (descending > excess).sum(1, keepdim=True).clamp(min=1) - 1
    threshold = excess.gather(1, last).clamp(min=0)
    return (flat.sign() * (flat.abs() - threshold).clamp(min=0)).reshape(delta.shape)
