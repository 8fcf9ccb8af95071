"""Max-margin adversarial training: push the decision boundary away from every image that is on its right side."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.bisection import bisect
from attacks.errors import BadInput
from attacks.modes import full_precision, in_mode
from attacks.objectives import Objective, margin_with, soft_margin, soft_margin_with
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.randomness import uniform
from attacks.threat import ThreatModel, l2_length, per_image
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.per_image import PerImage


class MMA(AdversarialTraining):
    r"""Train each image at the boundary nearest to it, so that its margin grows, until the margin is large enough.

    .. math:: (1 - c)\,\frac{1}{B} \Big[ \sum_{i \in S^+, d_i < d_{max}} CE(f(x_i + d_i u_i), y_i)
        + \sum_{i \in S^-} CE(f(x_i), y_i) \Big] + c\,\frac{1}{B} \sum_i CE(f(x_i), y_i)

    with :math:`S^+` the images of :math:`p_y > 1/2`, :math:`u_i` the direction in which PGD moved one of them and
    :math:`d_i` how far along it the boundary lies, its margin.

    Source: Ding et al., ICLR 2020, arXiv:1812.02637. Reading: as in the authors' code, :math:`u_i` keeps the length
    that PGD gave it, at most 1; the search looks at images inside the pixel range, the loss at points that may lie
    outside; and the search runs in train mode on :math:`S^+` alone, so that it moves BatchNorm's statistics, while PGD
    runs in eval mode. Statistics of a few images mean little: there the search is in eval mode. The authors' two
    backward passes are one here, over the same two forwards. A recipe's ramp of epsilon changes nothing: radii grow by
    themselves.

    Steps: 1. In train mode forward the clean images; those of :math:`p_y > 1/2` are :math:`S^+`. 2. From a random point
    of each one's ball, whose radius is the margin found last time, climb the soft logit margin in eval mode. 3. Halve
    the interval to the boundary along that direction ten times, and remember the margins; all others have margin 0.
    4. In train mode forward the batch with :math:`S^+` moved to the boundary. 5. Cross-entropy, but none for images
    whose margin reached d_max; a share c of the clean cross-entropy; backward, optimizer step.

    Warning: until images are right with :math:`p_y > 1/2` this is natural training, and it may stay that for most of
    them; see the share. Warning: its margins reach beyond the ranked epsilon, which buys robustness there. Warning:
    AutoAttack leaves 41.44 % where PGD-100 leaves 47.18 (CIFAR-10, 8/255), a wide gap for an honest defence.

    Args:
        d_max: the margin that is enough, in pixel units or relative to the whole epsilon; None for 4 epsilon, in Linf
            0.45 at most, where mid-grey lies within 0.5 of every image.
        e_max: how far the search looks; None for 1.05 d_max.
        e_min: smallest radius of the attack; None for 1.275/8 epsilon in Linf, epsilon in L2.
        c: weight of the clean cross-entropy; 0 is OMMA, 1 natural training.
        step_scale: the way of all steps of the attack together, in radii.
        halvings: of the interval in which the boundary lies.
        search_mode: ``train``, the mode in which the network trains, or ``eval``, as always with SyncBatchNorm, which
            would wait for devices without such images.
        search_floor: with fewer images in S+ the search is in eval mode in any case.

    History: ``surely_right``, the share of S+; ``margin``, the mean, 0 outside S+; ``dropped``, the share of images
    whose margin is enough; ``held_out_margin``, of held-out images, to where they are misclassified.
    """

    card = Card(key="mma", category="adaptive epsilon", citation="ding2020mma")
    held_out_measures = ("held_out_margin",)

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        d_max: str | float | None = None,
        e_max: str | float | None = None,
        e_min: str | float | None = None,
        c: float = 1 / 3,
        step_scale: float = 2.5,
        halvings: int = 10,
        search_mode: Literal["train", "eval"] = "train",
        search_floor: int = 8,
        inner: Inner = Inner(steps=10, start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        own = Inner(start="uniform")
        if any(getattr(inner, name) != getattr(own, name) for name in ("start", "scale", "boxed", "step_size")):
            raise BadInput(
                "mma starts each image in its own ball and steps step_scale radii / steps: leave inner.start, .scale, "
                f".boxed and .step_size alone, but found {inner.start}, {inner.scale}, {inner.boxed}, {inner.step_size}"
            )
        if inner.mode != "eval":
            raise BadInput(f"mma attacks in eval mode, as devices may have no image to attack, but found {inner.mode}")
        if threat.norm == "l1":
            raise BadInput("mma searches margins in linf or l2, but found threat.norm l1")
        if search_mode not in ("train", "eval"):
            raise BadInput(f"search_mode is train or eval, but found {search_mode!r}")
        if not 0 <= c <= 1:
            raise BadInput(f"c lies between 0 and 1, but found {c}")
        for name, value in (("step_scale", step_scale), ("halvings", halvings)):
            if not value > 0:
                raise BadInput(f"{name} is above 0, but found {value}")
        super().__init__(network, threat, inner=inner, **common)
        self.d_max = largest_margin(threat) if d_max is None else Pixels.read(d_max, "d_max").at(threat.epsilon)
        self.e_max = 1.05 * self.d_max if e_max is None else Pixels.read(e_max, "e_max").at(threat.epsilon)
        smallest = {"linf": "1.275/8 epsilon", "l2": "epsilon"}[threat.norm]  # 0.005 at 8/255; 0.5 at 0.5
        self.e_min = Pixels.read(smallest if e_min is None else e_min, "e_min").at(threat.epsilon)
        if not 0 < self.e_min <= self.e_max:
            raise BadInput(f"e_min lies above 0 and is at most e_max, {self.e_max:g}, but found {self.e_min:g}")
        self.c, self.step_scale, self.halvings = c, step_scale, halvings
        self.search_mode, self.search_floor = search_mode, search_floor
        self.margins = PerImage(0.0)
        self.found = torch.empty(0)  # the margins of the last batch that was attacked

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        with torch.no_grad() if self.c == 0 else nullcontext():
            clean = self(batch.x)
        sure = soft_margin(clean.detach(), batch.y) < 0
        moved = self.perturb(batch, soft_margin_with(batch.y[sure]), sure)
        enough = self.found >= self.d_max
        loss = (self.recipe.cross_entropy(self(moved), batch.y) * ~enough).sum() / len(batch.y)
        self.remember(self.margins, batch.index, self.found)
        for name, value in (("surely_right", sure), ("margin", self.found), ("dropped", enough)):
            self.note(name, value.double())
        if self.c == 0:
            return loss
        return (1 - self.c) * loss + self.c * self.classification_loss(clean, batch.y)

    def perturb(self, batch: Batch, objective: Objective, sure: Tensor | None = None) -> Tensor:
        """Move the images in the mask ``sure`` ``(n,)`` to their boundaries; :attr:`found` says how far those lie.

        ``objective`` is of those images alone.
        """
        sure = torch.ones_like(batch.y, dtype=torch.bool) if sure is None else sure
        self.found = torch.zeros(len(sure), dtype=torch.float64, device=sure.device)
        moved, noise = batch.x.clone(), self.draws.uniform(batch.x)
        if sure.any():
            x, y = batch.x[sure], batch.y[sure]
            radius = self.margins.of(batch.index[sure]).clamp(min=self.e_min)
            direction = self._direction(Batch(x, y, batch.index[sure]), objective, radius, noise[sure])
            self.found[sure] = margin = self._search(x, y, direction, radius)
            moved[sure] = x + per_image(margin, x) * direction  # not back into the range, as in the authors' code
        return moved

    def _direction(self, batch: Batch, objective: Objective, radius: Tensor, noise: Tensor) -> Tensor:
        """Attack images within their own ``radius`` ``(n,)`` and give the perturbation in radii."""
        x, threat = batch.x, _RangeFirst(**vars(self.threat))
        if threat.norm == "linf":
            start = x + per_image(radius, x) * noise
        else:  # towards a uniform image
            away = threat.low + (threat.high - threat.low) * (noise + 1) / 2 - x
            start = x + shrunk(away, radius)
        start = start.clamp(threat.low, threat.high)
        step = self.step_scale * radius / max(1, self.inner.steps)
        attacked = self.inner.climb(
            self.network, x, batch.y, objective, threat, start=start, radius=radius, step_size=step
        )
        return (attacked - x) / (per_image(radius, x) + 1e-12)

    def _search(self, x: Tensor, y: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
        """Give the margins ``(n,)`` of images in S+ along their ``direction``."""
        # SyncBatchNorm would wait for ranks that have no such images.
        synced = any(isinstance(module, nn.SyncBatchNorm) for module in self.network.modules())
        still = self.search_mode == "eval" or len(x) < self.search_floor or synced
        # Half precision could not tell the last points from one another.
        with torch.no_grad(), full_precision(x), in_mode(self.network, "eval") if still else nullcontext():
            return bisect(
                lambda points: soft_margin(self(points), y) >= 0,
                x,
                direction,
                self.threat,
                first=radius,
                last=self.e_max,
                halvings=self.halvings,
            )

    def measure_held_out(self, batch: Batch) -> Tensor:
        """Measure the margins of held-out images ``(n, 1)``, by PGD at the whole epsilon and then by bisection."""
        x, y, index = batch
        network, threat = self.classifier(), self.threat
        with torch.no_grad(), full_precision(x), in_mode(network, "eval"):
            start = threat.project(x + threat.epsilon * uniform(x, index.tolist(), self.seed, "margin"), x)
            attacked = pgd(
                network,
                x,
                soft_margin_with(y),
                threat,
                start=start,
                steps=self.inner.steps,
                step_size=threat.epsilon / 4,
            )
            first = torch.full((len(x),), self.e_max / 2, dtype=torch.float64, device=x.device)
            return bisect(
                lambda points: margin_with(y)(network(points)) >= 0,
                x,
                (attacked - x) / (threat.epsilon + 1e-12),
                threat,
                first=first,
                last=self.e_max,
                halvings=self.halvings,
            )[:, None]

    def remarks(self) -> dict[str, float | str]:
        """Give d_max, the spread of the margins, and the last epoch's shares; mark a training that was mostly clean."""
        last = self.history[-1] if self.history else {}
        told: dict[str, float | str] = {"d_max": self.d_max, **self.margins.spread("margin")}
        told |= {name: last[name] for name in ("surely_right", "dropped", "held_out_margin") if name in last}
        if last.get("surely_right", 1.0) < 0.3:
            told["mark"] = "mostly clean training"
        return told


@dataclass(frozen=True)
class _RangeFirst(ThreatModel):
    """The authors' projection: into the range first, then into the ball, in L2 without the usual small constant."""

    def project(self, moved: Tensor, origin: Tensor, radius: Tensor | None = None) -> Tensor:
        moved = moved.clamp(self.low, self.high)
        if self.norm == "linf" or radius is None:
            return super().project(moved, origin, radius)
        return origin + shrunk(moved - origin, radius)


def shrunk(delta: Tensor, radius: Tensor) -> Tensor:
    """Shorten perturbations ``(n, c, h, w)`` to the Euclidean length ``radius`` ``(n,)`` where they are longer."""
    return delta * (per_image(radius, delta) / l2_length(delta)).clamp(max=1)


def largest_margin(threat: ThreatModel) -> float:
    """Give the default d_max: 32/255 for Linf at 8/255 and 0.45 for MNIST at 0.3, as published."""
    return min(4 * threat.epsilon, 0.45) if threat.norm == "linf" else 4 * threat.epsilon
