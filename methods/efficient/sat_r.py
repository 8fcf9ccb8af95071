"""Single-step training with one of three regularisers against gradient masking."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.input_gradient import input_gradient

Variant = Literal["R1", "R2", "R3"]
Family = Literal["grey", "colour"]


class Constants(NamedTuple):
    """Lambda and tau, and the lengths alpha and eps_low, in pixel units or relative to the epsilon in force."""

    lam: float
    alpha: str | float
    eps_low: str | float
    tau: float


PUBLISHED: dict[tuple[Family, Variant], Constants] = {  # for MNIST at epsilon 0.3, and for CIFAR-10 at 8/255
    ("grey", "R1"): Constants(0.2, "epsilon/30", "epsilon/3", 0.4),
    ("grey", "R2"): Constants(5.0, "epsilon/30", "epsilon/3", 0.4),
    ("grey", "R3"): Constants(1.0, "epsilon/30", "epsilon/3", 0.4),
    ("colour", "R1"): Constants(0.2, "epsilon/4", "epsilon/4", 0.6),
    ("colour", "R2"): Constants(25.0, "epsilon/4", "epsilon/4", 0.6),
    ("colour", "R3"): Constants(1.0, "epsilon/4", "epsilon/4", 0.6),
}


class SATR(AdversarialTraining):
    r"""Train on FGSM images, and ask that a second one-step attack, from elsewhere, does not see another network.

    .. math:: CE(f(a), y) + \lambda \|f(a_B) - f(b)\|_2^2 \quad (R1)

    .. math:: CE(f(a), y) + \lambda\, \tfrac{1}{B} \sum_i \|f(a_i) - f(r_i)\|_2^2 \quad (R2)

    .. math:: CE_{high} + \lambda \max(0, CE_{low} - \tau\, CE_{high}) \quad (R3)

    with a the FGSM images, b the image of several steps of the LAST image, r the FGSM images of images moved to a
    random corner of a cube of size alpha; in R3 both cross-entropies lie along one gradient taken at such images.

    Source: Vivek and Babu, 2020, arXiv:2002.00614. Reading: the authors' code of 2020, whose agreement with the paper's
    equations is assumed. Nothing is subtracted from epsilon for alpha, so that R2 and R3 leave the ball by it; the
    hinge of R3 compares batch means; gradients flow through both sides of a regulariser. In L2 the random corner is a
    random direction.

    Steps: 1. In eval mode make two sets of images. R1: one step of epsilon for all, and ``inner.steps`` steps for the
    last image alone. R2: one step of epsilon from the images, and one from their moved copies. R3: the gradient at
    the moved copies, brought into the range, and one step along it of eps_low, one of epsilon. 2. In train mode forward
    both sets together. 3. Cross-entropy of the first set, in R3 of the far one, plus lambda times the regulariser.
    4. Backward through both sets, optimizer step.

    Warning: without a random start in R1 and R2 nothing but the regulariser stands against catastrophic overfitting;
    always evaluate with many steps. Warning: the colour constants cost a small network on grey images clean and robust
    accuracy, so a poor row on new data is first a question of the family. Warning: the survey's "Wide ResNet" is the
    CIFAR-10 model; its MNIST figure of 90.03 belongs to LeNet+, and it names no variant.

    Args:
        inner: ``steps``, of R1's last image alone, each a share of ``step_size``; ``mode``, of the network during all
            attacks; attacks have no start of inner's.
        variant: ``R2``, the default, is the only one that acts on every image by itself.
        family: whose constants the settings below take where they are None, ``grey`` or ``colour``; None goes by the
            images' channels.
        lam: lambda; grey 0.2, 5 and 1 for R1, R2 and R3; colour 0.2, 25 and 1.
        alpha: how far R2 and R3 move images to a random corner; grey epsilon/30, colour epsilon/4.
        eps_low: the near radius of R3; grey epsilon/3, colour epsilon/4.
        tau: of the hinge in R3; grey 0.4, colour 0.6.
        project: bring all images back into the ball of epsilon, which the authors do not.

    History: ``cross_entropy``, of the main loss; ``logit_distance``, the mean squared one, of R1 and R2;
    ``cross_entropy_low`` and ``hinge_active`` of R3; ``largest_radius``, up to which images are trained on;
    ``regularised_images``, n of n devices in a step, of R1.
    """

    card = Card(key="sat_r", category="efficient", citation="vivek2020regularizers")
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        variant: Variant = "R2",
        family: Family | None = None,
        lam: float | None = None,
        alpha: str | float | None = None,
        eps_low: str | float | None = None,
        tau: float | None = None,
        project: bool = False,
        inner: Inner = Inner(steps=10, step_size="epsilon", start="none", mode="eval"),
        **common: Any,
    ) -> None:
        if variant not in get_args(Variant):
            raise BadInput(f"variant is R1, R2 or R3, but found {variant!r}")
        if family is not None and family not in get_args(Family):
            raise BadInput(f"family is grey or colour, or null for that of the images, but found {family!r}")
        for name, value in (("lam", lam), ("tau", tau)):
            if value is not None and not value >= 0:
                raise BadInput(f"{name} is 0 or more, but found {value}")
        for name, length in (("alpha", alpha), ("eps_low", eps_low)):
            Pixels.read(length or 0, name)
        if (inner.step_size, inner.start) != ("epsilon", "none"):
            raise BadInput(
                "sat_r goes epsilon far from where its variant starts: leave inner.step_size epsilon and inner.start "
                f"none, but found {inner.step_size} and {inner.start}"
            )
        super().__init__(network, threat, inner=inner, **common)
        self.variant, self.family, self.project = variant, family, project
        self.lam, self.alpha, self.eps_low, self.tau = lam, alpha, eps_low, tau
        self.largest_radius = 0.0  # of the whole training; an epoch of a ramp has many

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        logits = self(self.perturb(batch, cross_entropy_with(batch.y)))
        lam, _, _, tau = self.constants(batch.x)
        if self.variant == "R3":
            low, high = (self.classification_loss(half, batch.y) for half in logits.chunk(2))
            hinge = torch.relu(low - tau * high)
            self.note("cross_entropy", high)
            self.note("cross_entropy_low", low)
            self.note("hinge_active", (hinge > 0).to(hinge))
            return high + lam * hinge
        of_fgsm, others = logits[: len(batch.y)], logits[len(batch.y) :]
        loss = self.classification_loss(of_fgsm, batch.y)
        distance = (of_fgsm[-len(others) :] - others).pow(2).sum(1).mean()  # in R1 of the last image alone
        self.note("cross_entropy", loss)
        self.note("logit_distance", distance)
        return loss + lam * distance

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Make both sets of images, one below the other: ``(n + 1, c, h, w)`` in R1, else ``(2 n, c, h, w)``."""
        threat, alpha = self.present_threat(), self._length("alpha", batch.x)
        if self.variant == "R1":
            made, origin = self._fgsm_and_iterated(batch, objective), torch.cat([batch.x, batch.x[-1:]])
        else:
            moved = batch.x + alpha * threat.direction(self.draws.normal(batch.x))  # in Linf to a corner of the cube
            make = self._fgsm_and_moved if self.variant == "R2" else self._near_and_far
            made, origin = make(batch, moved, objective), torch.cat([batch.x, batch.x])
        stays = self.project or self.variant == "R1"
        radius = threat.epsilon + (0.0 if stays else alpha)
        self.largest_radius = max(self.largest_radius, radius)
        self.note("largest_radius", made.new_tensor(radius))
        return threat.project(made, origin) if self.project else made

    def _fgsm_and_iterated(self, batch: Batch, objective: Objective) -> Tensor:
        x, y, steps = batch.x[-1:], batch.y[-1:], max(1, self.inner.steps)
        self.note("regularised_images", x.new_tensor(self._ranks()))

        def of_the_last(logits: Tensor) -> Tensor:  # the objective knows the labels of the whole batch
            return objective(logits.expand(len(batch.x), -1))[-1:]

        share = replace(self.inner, step_size=f"epsilon/{steps}")
        iterated = share.climb(self.network, x, y, of_the_last, self.present_threat(), start=x)
        return torch.cat([self._one_step(batch.x, objective), iterated])

    def _fgsm_and_moved(self, batch: Batch, moved: Tensor, objective: Objective) -> Tensor:
        def of_both(logits: Tensor) -> Tensor:
            return torch.cat([objective(half) for half in logits.chunk(2)])

        return self._one_step(torch.cat([batch.x, moved]), of_both)

    def _near_and_far(self, batch: Batch, moved: Tensor, objective: Objective) -> Tensor:
        threat = self.present_threat()
        moved = moved.clamp(threat.low, threat.high)
        with self.inner.conditions(self.network, moved):
            direction = threat.direction(input_gradient(self.network, moved, objective).gradient)
        radii = self._length("eps_low", batch.x), threat.epsilon
        return torch.cat([moved + radius * direction for radius in radii]).clamp(threat.low, threat.high)

    def _one_step(self, points: Tensor, objective: Objective) -> Tensor:
        """Go epsilon from ``points``, which may themselves lie outside the range, and into the range."""
        one, nobody = replace(self.inner, steps=1, patience=None), torch.empty(0)  # so it looks at no labels
        return one.climb(self.network, points, nobody, objective, self.present_threat(), start=points)

    def constants(self, x: Tensor) -> Constants:
        """Give the settings, filled up from the family that images ``x`` ``(n, c, h, w)`` belong to."""
        usual = PUBLISHED[self.family or ("grey" if x.shape[1] == 1 else "colour"), self.variant]
        chosen = {name: getattr(self, name) for name in usual._fields}
        return usual._replace(**{name: value for name, value in chosen.items() if value is not None})

    def _length(self, name: Literal["alpha", "eps_low"], x: Tensor) -> float:
        return Pixels.read(getattr(self.constants(x), name)).at(self.present_threat().epsilon)

    def remarks(self) -> dict[str, float | str]:
        """Give the largest radius trained on, and at the end the cross-entropy beside what the regulariser sees."""
        told: dict[str, float | str] = {"largest_radius": self.largest_radius} if self.largest_radius else {}
        for name in ("cross_entropy", "logit_distance", "cross_entropy_low", "regularised_images"):
            if values := self.noted(name):
                told[name] = values[-1]
        return told

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the largest radius with the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sat_r"] = {"largest_radius": self.largest_radius}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        super().on_load_checkpoint(checkpoint)
        self.largest_radius = checkpoint["sat_r"]["largest_radius"]
