"""Smooth stand-ins for ReLU, and a ReLU that is smooth to its gradients alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput

Smooth = Literal["silu", "gelu", "elu", "softplus", "smooth_relu", "mish"]
USUAL_SLOPES = {"softplus": 10.0, "smooth_relu": 400.0}  # of those that have one


def smooth_activation(name: str, slope: float | None = None) -> Callable[[], nn.Module]:
    """Give what makes a module of this kind; ``slope`` is a, of :data:`USUAL_SLOPES` unless it is given.

    Raises:
        BadInput: for an unknown name, a slope of a kind that has none, or one that is not above 0.
    """
    if name not in get_args(Smooth):
        raise BadInput(f"activation is one of {', '.join(get_args(Smooth))}, but found {name!r}")
    if slope is not None and name not in USUAL_SLOPES:
        raise BadInput(f"slope is of {' and '.join(USUAL_SLOPES)}, and {name} has none, but found {slope}")
    a = check_slope(USUAL_SLOPES.get(name, 1.0) if slope is None else slope)
    made: dict[str, Callable[[], nn.Module]] = {
        "silu": nn.SiLU,
        "gelu": lambda: nn.GELU(approximate="tanh"),
        "elu": nn.ELU,
        "softplus": lambda: nn.Softplus(beta=a),
        "smooth_relu": lambda: SmoothReLU(a),
        "mish": nn.Mish,
    }
    return made[name]


def check_slope(slope: float) -> float:
    """Give ``slope`` back; raises :class:`BadInput` unless it is above 0."""
    if not slope > 0:
        raise BadInput(f"slope is above 0, but found {slope}")
    return slope


class SmoothReLU(nn.Module):
    r"""Compute :math:`t - \log(1 + a t) / a` where t is above 0, and 0 elsewhere, with an a that is learnt.

    Its derivative, :math:`a t / (1 + a t)`, starts at 0, and the larger a is, the nearer is all of it to ReLU. One
    :math:`b` is learnt, with :math:`a = b^2`, so that a stays above 0. It is a parameter without dimensions, which no
    weight decay reaches (:class:`methods.recipe.Recipe`).

    Source: Xie et al., 2020, arXiv:2006.14536; authors' code.
    """

    def __init__(self, slope: float = USUAL_SLOPES["smooth_relu"]) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(check_slope(slope)).sqrt())

    @property
    def slope(self) -> Tensor:
        """The present a, a number."""
        return self.b.square()

    def forward(self, t: Tensor) -> Tensor:
        """Apply it to each entry."""
        positive, a = t.clamp(min=0), self.slope  # at and below 0 the logarithm is that of 1, and has no gradient
        return positive - torch.log1p(a * positive) / a


class SmoothGradientReLU(nn.ReLU):
    r"""Be ReLU, but inside :func:`smooth_gradients` send back the gradient :math:`\sigma(a t)` of softplus instead."""

    def __init__(self, slope: float = USUAL_SLOPES["softplus"]) -> None:
        super().__init__()
        self.slope, self.smooth = check_slope(slope), False

    def forward(self, t: Tensor) -> Tensor:
        """Apply it to each entry."""
        if not self.smooth:
            return F.relu(t)
        found: Tensor = _ValuesOfReLU.apply(t, self.slope)
        return found


@contextmanager
def smooth_gradients(network: nn.Module, *, on: bool = True) -> Iterator[None]:
    """Let each :class:`SmoothGradientReLU` of ``network`` send back softplus's gradient, of forwards inside the block.

    Blocks may stand in one another; the innermost counts, also where it switches this off (``on`` False).
    """
    parts = [part for part in network.modules() if isinstance(part, SmoothGradientReLU)]
    before = [part.smooth for part in parts]
    try:
        for part in parts:
            part.smooth = on
        yield
    finally:
        for part, smooth in zip(parts, before, strict=True):
            part.smooth = smooth


class _ValuesOfReLU(torch.autograd.Function):
    """The values of ReLU with the derivative of softplus, which may itself be differentiated."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(t)
        ctx.slope = slope
        return t.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors
        return gradient * torch.special.expit(ctx.slope * t), None
