"""Feature scattering: move the batch away from itself as a whole, by optimal transport between its outputs."""

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.modes import full_precision
from attacks.objectives import Objective
from attacks.threat import ThreatModel
from methods.anatomy import Features, last_linear
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step
from methods.variants.avmixup import phi

Space = Literal["logits", "features"]

IDLE = 0.9  # diagonal mass of the plan above which every image is compared with itself alone


class FeatureScatter(AdversarialTraining):
    r"""Train on images whose outputs lie, as a set, far from the clean batch's; labels play no part in the attack.

    .. math:: CE(f(x'_i), \tilde y_i), \quad \{x'\} = \arg\max \sum_{ij} T_{ij} C_{ij}, \quad
        C_{ij} = \max(0, 1 - \cos(f(x_i), f(x'_j)))

    with T the entropic transport plan between the two sets of outputs, and :math:`\tilde y` the label that leaves
    1 - ``smoothing`` to the true class.

    Source: Zhang and Wang, NeurIPS 2019, arXiv:1907.10764. Reading: as in the authors' code the outputs are logits,
    the gradient flows through the plan, and Sinkhorn's iteration stops when its potentials hardly move, after about two
    rounds, where the columns have their share and the rows need not. The start is not clipped to the pixel range. The
    live network in eval mode is the authors' copy. Their clean forward in train mode, by which every tenth step logs
    its accuracy, is left out. A recipe's label smoothing is not added: these labels are soft already.

    Steps: 1. In eval mode forward the clean batch. 2. Start from a uniform point of the ball, forward it in eval mode;
    transport distance of the two sets of logits. 3. One step of epsilon along the sign of its gradient, back into the
    ball, then into the range. 4. In train mode forward the result alone; cross-entropy of the smoothed labels,
    backward, optimizer step.

    Warning: most of the robustness is apparent: labels that soft flatten the softmax and mislead PGD on the
    cross-entropy. Rank it by the worst case; the published gap to AutoAttack, of more than 20 points, belongs to
    networks that fit CIFAR-10. Warning: the problem of transport is each device's part of the batch, so that runs which
    differ in it are different experiments. Warning: where the plan is near uniform the attack is close to noise;
    where it is nearly diagonal, each image only flees its own clean output.

    Args:
        smoothing: mass of the label that the wrong classes share; 0 is the plain cross-entropy.
        space: ``logits``, or the ``features`` that the last linear layer is given.
        fixed_plan: keep the gradient out of the plan.
        regularisation: of the transport plan, in units of the cosine.
        steps: of the attack; 1 is the method. With more, the authors' code also runs the live network in train mode on
            every iterate, and so does this.

    History: ``sinkhorn_iterations``; ``diagonal_mass``, the share of the plan that joins images with themselves: 1 / n
    for a uniform plan, 1 for an attack on each image by itself; ``rows_per_plan``, images in one problem of transport.
    """

    card = Card(
        key="feature_scatter",
        category="variant",
        citation="zhang2019defense",
        broken="AutoAttack leaves 36.64 % of the authors' WRN-28-10 that claims 60.6 (CIFAR-10, 8/255; RobustBench)",
    )
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        smoothing: float = 0.5,
        space: Space = "logits",
        fixed_plan: bool = False,
        regularisation: float = 0.01,
        steps: int = 1,
        **common: Any,
    ) -> None:
        if not 0 <= smoothing <= 1:
            raise BadInput(f"smoothing is a mass, between 0 and 1, but found {smoothing}")
        if space not in get_args(Space):
            raise BadInput(f"space is one of {', '.join(get_args(Space))}, but found {space!r}")
        if not regularisation > 0:
            raise BadInput(f"regularisation is above 0, but found {regularisation}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise BadInput(f"steps is 1 or more, but found {steps!r}")
        super().__init__(network, threat, inner=one_step(start="uniform", boxed=False), **common)
        self.smoothing, self.space, self.fixed_plan = smoothing, space, fixed_plan
        self.regularisation, self.steps = regularisation, steps
        self._last = ""  # name of the last linear layer

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x = batch.x
        outputs = self.outputs(x)
        with torch.no_grad(), self.inner.conditions(outputs, x):
            clean = outputs(x)
        scatter = self.scatter_from(clean)
        iterates = [self.perturb(batch, scatter)]
        while len(iterates) < self.steps:
            iterates.append(self.perturb(batch, scatter, iterates[-1]))
        with torch.no_grad():
            for passed in iterates[:-1]:  # only now: they move the statistics that the attack is to see as they were
                self(passed)
        logits = self(iterates[-1])
        return F.cross_entropy(logits, phi(batch.y, 1 - self.smoothing, logits))

    def perturb(self, batch: Batch, objective: Objective, start: Tensor | None = None) -> Tensor:
        """Take a step from ``start``, by default one that is drawn; ``objective`` is of the outputs in ``space``."""
        x, threat = batch.x, self.present_threat()
        start = self.inner.begin(x, threat, self.draws) if start is None else start
        return self.inner.climb(self.outputs(x), x, batch.y, objective, threat, start=start)

    def outputs(self, x: Tensor) -> nn.Module:
        """Give what maps images like ``x`` to the outputs that are transported."""
        if self.space == "logits":
            return self.network
        self._last = self._last or last_linear(self.network, x)
        return Features(self.network, self._last)

    def scatter_from(self, clean: Tensor) -> Objective:
        """Climb the distance of transport from the outputs ``clean`` ``(n, d)``, of each perturbed one its share."""

        def distance(moved: Tensor) -> Tensor:
            with full_precision(moved):  # the cost is divided by the regularisation, and bfloat16 has too few digits
                cost = cosine_cost(clean, moved)
                found = sinkhorn(cost.detach() if self.fixed_plan else cost, self.regularisation)
                self._note_plan(found)
                return (found.plan * cost).sum(0)

        return distance

    def _note_plan(self, found: "Transport") -> None:
        self.note("sinkhorn_iterations", found.plan.new_tensor(found.iterations))
        self.note("diagonal_mass", found.plan.trace())
        self.note("rows_per_plan", found.plan.new_tensor(len(found.plan)))

    def remarks(self) -> dict[str, float | str]:
        """Give the means over the training, and a mark where the images were compared with themselves alone."""
        noted = {name: self.noted(name) for name in ("diagonal_mass", "sinkhorn_iterations", "rows_per_plan")}
        means = {name: sum(values) / len(values) for name, values in noted.items() if values}
        idle = means.get("diagonal_mass", 0.0) > IDLE
        return {**means, **({"mark": "mechanism idle: the plan joins images with themselves"} if idle else {})}


class Transport(NamedTuple):
    """A plan ``(n, m)``, how much of each row goes to each column, and after how many iterations it was taken."""

    plan: Tensor
    iterations: int


def cosine_cost(clean: Tensor, moved: Tensor) -> Tensor:
    r"""Give :math:`\max(0, 1 - \cos)` of each row of ``(n, d)`` with each of ``(m, d)``, ``(n, m)``."""
    digits = torch.promote_types(moved.dtype, torch.float32)
    left, right = (F.normalize(rows.to(digits), dim=1, eps=1e-6) for rows in (clean, moved))
    return clip(1 - left @ right.T, 0.0, torch.inf)


def sinkhorn(cost: Tensor, regularisation: float = 0.01, *, at_most: int = 100, stop: float = 0.1) -> Transport:
    """Iterate, within the graph, towards the entropic transport plan of ``cost`` ``(n, m)`` between uniform margins.

    As in the authors' code: it stops once the potentials of the rows move by less than ``stop`` in sum, which is long
    before the rows have their share, and 1e-6 keeps a row of nothing but underflow from the logarithm of 0.
    """
    rows, columns = (cost.new_full((size,), 1 / size) for size in cost.shape)
    u, v = torch.zeros_like(rows), torch.zeros_like(columns)

    def exponent() -> Tensor:
        return (u[:, None] + v[None] - cost) / regularisation

    iterations, change = 0, torch.inf
    while iterations < at_most and change >= stop:
        before, iterations = u, iterations + 1
        u = regularisation * (rows.log() - (exponent().exp().sum(1) + 1e-6).log()) + u
        v = regularisation * (columns.log() - (exponent().exp().sum(0) + 1e-6).log()) + v
        change = (u - before).abs().sum().item()
    return Transport(exponent().exp(), iterations)
