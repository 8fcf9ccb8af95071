"""Ask a network, count what was asked, and confirm in full precision on the network as it was given."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.modes import products
from attacks.passes import networks_in
from attacks.slope import slope

Precision = Literal["fp32", "tf32", "bf16"]


class Oracle:
    """A network that an attack asks: logits, or logits with the gradient of an objective.

    Args:
        plain: the network as it was given, in eval mode; it has the last word on every success.
        searched: what the search asks in its place, made faster by :mod:`attacks.prepared`; default: ``plain``.
        precision: of the search: ``fp32``; ``tf32``, NVIDIA's short products; ``bf16``, in which points and objective
            stay in full precision and the network does not.
        repeats: forward passes whose gradients are averaged, for networks that answer at random (EOT).

    Attributes:
        cost: passes of one question: one for each network of an ensemble.
        forward: passes per slot so far; ``backward`` likewise.
    """

    def __init__(
        self,
        plain: nn.Module,
        searched: nn.Module | None = None,
        *,
        precision: Precision = "fp32",
        repeats: int = 1,
    ) -> None:
        self.plain = plain
        self.searched = plain if searched is None else searched
        self.precision, self.repeats = precision, repeats
        self.forward: float = 0
        self.backward: float = 0
        self.cost = len(networks_in(plain))

    def logits(self, points: Tensor) -> Tensor:
        """Give logits ``(b, k)`` for ``points``, without a graph."""
        self.forward += self.cost
        with torch.inference_mode():
            answer = self._ask(points, self.precision)
        return answer.clone()  # of inference tensors autograd would keep none

    def exact_logits(self, points: Tensor, *, of: int) -> Tensor:
        """Give the plain network's logits ``(m, k)``, in full precision, for some ``points`` of the ``of`` slots."""
        self.forward += self.cost * len(points) / of
        with torch.no_grad(), products("ieee"):
            return torch.as_tensor(self.plain(points.contiguous()))

    def climb(self, points: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Give logits ``(b, k)``, the objective's values ``(b,)`` and its gradient, like ``points``."""
        total: Tensor | None = None
        for _ in range(self.repeats):
            self.forward += self.cost
            self.backward += self.cost
            asked = points.detach().requires_grad_()
            with torch.enable_grad(), products("tf32" if self.precision == "tf32" else "ieee"):
                logits = self._ask(asked, self.precision)
                values = objective(logits)
                gradient = slope(values.sum(), asked)
            total = gradient if total is None else total + gradient
        assert total is not None
        return logits.detach(), values.detach(), total if self.repeats == 1 else total / self.repeats

    def slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits ``(b, k)`` and the gradient of each ``(b, k, ...)``, for as many backward passes as classes."""
        total: Tensor | None = None
        for _ in range(self.repeats):
            asked = points.detach().requires_grad_()
            with torch.enable_grad(), products("tf32" if self.precision == "tf32" else "ieee"):
                logits = self._ask(asked, self.precision)
                sums = logits.sum(0).unbind()  # images do not mix: one sum serves the whole batch
                found = [slope(each, asked, retain_graph=each is not sums[-1]) for each in sums]
            self.forward += self.cost
            self.backward += self.cost * len(sums)
            gradients = torch.stack(found, 1)
            total = gradients if total is None else total + gradients
        assert total is not None
        return logits.detach(), total if self.repeats == 1 else total / self.repeats

    def confirms(self, points: Tensor, y: Tensor) -> Tensor:
        """Tell which ``points`` the plain network misclassifies ``(b,)``, in full precision."""
        with torch.no_grad(), products("ieee"):
            return torch.as_tensor(self.plain(points.contiguous()).argmax(1) != y)

    def _ask(self, points: Tensor, precision: Precision) -> Tensor:
        with (
            products("tf32" if precision == "tf32" else "ieee"),
            torch.autocast(points.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
        ):
            logits: Tensor = self.searched(points)
        return logits.to(points.dtype)
