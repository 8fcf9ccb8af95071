"""Distributionally robust learning with unlabelled images: every class is tried on them, the cheapest is believed."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.slope import slope
from attacks.threat import ThreatModel
from methods.activations import swap_activations
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.unlabelled import HIDDEN, Reference, References

CORNERED = 0.2  # share of pixels on a bound from which on gamma is too small; the specification's
OFF_SCALE = 2.0  # factor by which the displacement may miss its yardstick; the specification's


class SSDRL(AdversarialTraining):
    r"""Pay for a perturbation instead of bounding it, and believe of an unlabelled image the class that costs least.

    .. math:: \frac{1}{n} \sum_i \phi(x_i, y_i) + \frac{1}{m} \sum_j \frac{1}{\lambda} \log \frac{1}{K} \sum_{k=1}^{K}
        e^{\lambda \phi(u_j, k)}, \quad \phi(x, y) = \max_{x'} CE(f(x'), y) - \tfrac{\gamma}{2} \|x' - x\|_2^2

    with pixels in [-1, 1]. What is computed has the same gradient: for each u the sum of :math:`w_k CE(f(u'_k), k)`,
    with w the softmax of :math:`\lambda \phi(u, k)`. A negative lambda believes the cheapest label, a positive one
    fears the dearest.

    Source: Najafi et al., NeurIPS 2019, arXiv:1905.13021. Reading: as in the authors' code, plain gradient ascent from
    the image itself, in steps of :math:`\alpha / (\gamma (t + 1))`, without sign or projection; each part weighs 1
    whatever its size; weights and images are constants. Reading: by default Fast-SSDRL, one class per unlabelled image,
    which is all that was run on photographs.

    Steps: 1. One train-mode forward of the clean labelled images, thrown away: it alone moves BatchNorm's statistics;
    all that follows uses those of its batch. 2. Attack the labelled images; their cross-entropy. 3. Predict the
    unlabelled images, and order the classes, the likeliest first for a negative lambda and last for others. 4. For each
    class that is considered, attack them towards a higher cross-entropy of it, and forward what came out. 5. Weight
    their cross-entropies by the softmax of lambda times what the attacks gained less what they paid; add the mean;
    backward, optimizer step.

    Warning: its attack is an L2 one that pays, so it stays below `pgd_at` in Linf by construction; look at L2 beside
    it. Epsilon, and its ramp, do not enter. Warning: gamma lives in the scale of the pixels; where the displacement
    says it is off, the row is marked, not retuned. Warning: once training accuracy is full, gradients vanish and it
    becomes plain training. Warning: the theory wants smooth activations; on ReLU it has no guarantee.

    Args:
        gamma: price of a squared L2 distance, over 2.
        alpha: first step of the ascent, over gamma; 0 is pseudo-labelling by the network itself.
        lam: lambda; with one class only its sign matters.
        max_classes: classes considered for an unlabelled image; null for all.
        clipped: keep the attack in the pixel range.
        unsup_fraction: share of unlabelled images in a batch; 0 is DRL, on the labelled images alone.
        activation: ``elu`` puts ELU, the published activation, in the place of each ReLU; ``own`` leaves the network.
        yardstick: the L2 displacement, of images in [0, 1], that gamma is chosen for; it marks the row and trains
            nothing.
        inner: only ``steps`` counts.

    History: ``displacement``, the mean L2 distance of attacked images, in pixels in [0, 1]; ``at_bounds``, share of
    their pixels on a bound that the clean image does not touch.
    """

    card = Card(key="ssdrl", category="semi-supervised", citation="najafi2019robustness", comparison="D")
    references: ClassVar[References | None] = References(
        lower=(Reference("pgd_at"), Reference("ssdrl", {"unsup_fraction": 0.0}, name="ssdrl/drl")), oracle="pgd_at"
    )

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        gamma: float = 1.0,
        alpha: float = 1.0,
        lam: float = -1.0,
        max_classes: int | None = 1,
        clipped: bool = True,
        unsup_fraction: float = 0.5,
        activation: Literal["own", "elu"] = "own",
        yardstick: float = 0.5,
        inner: Inner = Inner(steps=5, start="none", mode="batch"),
        **common: Any,
    ) -> None:
        for name, value in (("gamma", gamma), ("yardstick", yardstick)):
            if not value > 0:
                raise BadInput(f"{name} is above 0, but found {value}")
        if not alpha >= 0:
            raise BadInput(f"alpha is 0 or more, but found {alpha}")
        if not 0 <= unsup_fraction <= 1:
            raise BadInput(f"unsup_fraction lies between 0 and 1, but found {unsup_fraction}")
        if max_classes is not None and max_classes < 1:
            raise BadInput(f"max_classes is 1 or more, or null for all, but found {max_classes}")
        if activation not in ("own", "elu"):
            raise BadInput(f"activation is own or elu, but found {activation!r}")
        if inner != Inner(steps=inner.steps, start="none", mode="batch"):
            raise BadInput("ssdrl's ascent has its own rates and no start: of inner only steps can be chosen")
        super().__init__(network, threat, inner=inner, **common)
        self.gamma, self.alpha, self.lam = gamma, alpha, lam
        self.max_classes, self.clipped = max_classes, clipped
        self.unsup_fraction, self.yardstick = unsup_fraction, yardstick

    @classmethod
    def compose(
        cls, build: Callable[[int], nn.Module], *, activation: Literal["own", "elu"] = "own", **settings: Any
    ) -> nn.Module:
        """Make the network, with ELU in the place of each ReLU where that is asked for."""
        network = build(0)
        if activation == "elu":
            swap_activations(network, nn.ReLU, nn.ELU)
        return network

    def labelled_rows(self, batch_size: int, labels: int, images: int) -> int:
        """Give the labelled images their share; the unlabelled ones are rounded down, as in `rst`."""
        return batch_size - int(batch_size * self.unsup_fraction)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        known = batch.y != HIDDEN
        labelled, unlabelled = batch.rows(known), batch.rows(~known)
        if len(labelled.y):
            with torch.no_grad():
                self(labelled.x)  # for the running statistics, which nothing else moves
        parts = []
        with in_mode(self.network, "batch" if self.network.training else "eval"):
            if len(labelled.y):
                parts.append(self.labelled_loss(labelled))
            if len(unlabelled.y):
                parts.append(self.unlabelled_loss(unlabelled))
        return torch.stack(parts).sum()

    def labelled_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of attacked images, the mean; a number."""
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        self._note_way(batch.x, attacked)
        return self.classification_loss(self(attacked), batch.y)

    def unlabelled_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of each class that is considered, weighted by what its attack is worth, the mean; a number."""
        values, losses = [], []
        for label in self.classes_of(batch.x).unbind(1):
            attacked = self.perturb(batch, cross_entropy_with(label))
            self._note_way(batch.x, attacked)
            logits = self(attacked)
            paid = self.gamma * transport_cost(self._wide(attacked), self._wide(batch.x))
            values.append(F.cross_entropy(logits.detach(), label, reduction="none") - paid)
            losses.append(self.recipe.cross_entropy(logits, label))
        weights = class_weights(torch.stack(values), self.lam)
        return (weights * torch.stack(losses)).sum(0).mean()

    def classes_of(self, x: Tensor) -> Tensor:
        """Give the classes considered for unlabelled images ``x``, ``(n, classes)``, the most important first."""
        with torch.no_grad():
            order = self(x).sort(1, descending=self.lam < 0).indices
        return order[:, : self.max_classes]

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Climb ``objective`` less the price of the way, from the images themselves."""
        origin = self._wide(batch.x)
        point = origin
        with self.inner.conditions(self.network, batch.x):
            for step in range(self.inner.steps):
                point = point.detach().requires_grad_()
                with torch.enable_grad():
                    worth = objective(self(self._narrow(point))) - self.gamma * transport_cost(point, origin)
                rate = self.alpha / self.gamma / (step + 1)
                point = point.detach() + rate * slope(worth.sum(), point)
                point = point.clamp(-1, 1) if self.clipped else point
        return self._narrow(point.detach())

    def _wide(self, x: Tensor) -> Tensor:
        """Bring pixels of the threat's range to [-1, 1], in which gamma is meant."""
        return (2 * x - self.threat.low - self.threat.high) / (self.threat.high - self.threat.low)

    def _narrow(self, wide: Tensor) -> Tensor:
        return (wide * (self.threat.high - self.threat.low) + self.threat.low + self.threat.high) / 2

    # What is told

    def _note_way(self, x: Tensor, attacked: Tensor) -> None:
        low, high = self.threat.low, self.threat.high
        self.note("displacement", torch.linalg.vector_norm((attacked - x).flatten(1), dim=1))
        arrived = ((attacked <= low) & (x > low)) | ((attacked >= high) & (x < high))
        self.note("at_bounds", arrived.double())

    def remarks(self) -> dict[str, float | str]:
        """Give the last epoch's displacement, and mark a gamma that does not fit and an activation without theory."""
        told: dict[str, float | str] = {}
        if self.history:
            told |= {name: self.history[-1][name] for name in ("displacement", "at_bounds")}
            if not 1 / OFF_SCALE <= self.history[-1]["displacement"] / self.yardstick <= OFF_SCALE:
                told["mark"] = "gamma off scale"
            if self.history[-1]["at_bounds"] > CORNERED:
                told["bounds"] = "gamma too small: images end in the corners of the pixel range"
        if any(isinstance(module, nn.ReLU) for module in self.network.modules()):
            told["activation"] = "ReLU, where the theory asks for a smooth activation"
        return told


def transport_cost(moved: Tensor, origin: Tensor) -> Tensor:
    """Give half the squared L2 distance per image ``(n,)``."""
    return 0.5 * (moved - origin).flatten(1).square().sum(1)


def class_weights(values: Tensor, lam: float) -> Tensor:
    r"""Give the weights of classes in the gradient of :math:`\frac{1}{\lambda} \log \sum_k e^{\lambda q_k}`.

    Args:
        values: :math:`q_k`, ``(classes, n)``. lam: 0 weights all of them alike.
    """
    return (lam * values.detach()).softmax(0)
