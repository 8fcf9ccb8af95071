"""Ask a network, count what was asked, and confirm in full precision on the network as it was given."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.passes import networks_in


class Oracle:
    """A network that an attack asks: logits, or logits with the gradient of an objective.

    Args:
        plain: the network as it was given, in eval mode; it has the last word on every success.
        searched: what the search asks in its place, made faster by :mod:`attacks.prepared`; default: ``plain``.
        precision: of the search. In bfloat16 points and objective stay in full precision; the network does not.
        repeats: forward passes whose gradients are averaged, for networks that answer at random (EOT).

    Attributes:
        forward: passes per slot so far, one for each network of an ensemble; ``backward`` likewise.
    """

    def __init__(
        self,
        plain: nn.Module,
        searched: nn.Module | None = None,
        *,
        precision: torch.dtype = torch.float32,
        repeats: int = 1,
    ) -> None:
        self.plain = plain
        self.searched = plain if searched is None else searched
        self.precision, self.repeats = precision, repeats
        self.forward = self.backward = 0
        self._networks = len(networks_in(plain))

    def logits(self, points: Tensor, *, exact: bool = False) -> Tensor:
        """Give logits ``(b, k)`` for ``points``, without a graph; ``exact`` ones are not searched in bfloat16."""
        self.forward += self._networks
        with torch.inference_mode():
            answer = self._ask(points) if not exact else self.searched(points)
        return answer.clone()  # of inference tensors autograd would keep none

    def climb(self, points: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Give logits ``(b, k)``, the objective's values ``(b,)`` and its gradient, like ``points``."""
        gradient = torch.zeros_like(points)
        for _ in range(self.repeats):
            self.forward += self._networks
            self.backward += self._networks
            asked = points.detach().requires_grad_()
            with torch.enable_grad():
                logits = self._ask(asked)
                values = objective(logits)
            (slope,) = torch.autograd.grad(values.sum(), asked)
            gradient = slope if self.repeats == 1 else gradient + slope
        return logits.detach(), values.detach(), gradient if self.repeats == 1 else gradient / self.repeats

    def confirms(self, points: Tensor, y: Tensor) -> Tensor:
        """Tell which ``points`` the plain network misclassifies ``(b,)``, in full precision; not counted as a pass."""
        with torch.no_grad():
            return torch.as_tensor(self.plain(points.contiguous()).argmax(1) != y)

    def _ask(self, points: Tensor) -> Tensor:
        if self.precision == torch.float32:
            logits: Tensor = self.searched(points)
            return logits
        with torch.autocast(points.device.type, dtype=self.precision):
            return self.searched(points).to(points.dtype)
