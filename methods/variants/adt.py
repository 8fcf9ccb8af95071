"""Adversarial distributional training: against each image stands a distribution of perturbations, not one of them."""

import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with
from attacks.randomness import key
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card, StepTrace
from methods.generator import Encoder, Generator
from methods.inner import Inner
from methods.input_gradient import input_gradient
from methods.recipe import Recipe
from methods.together import Together
from methods.training_set import image_shape

Variant = Literal["exp", "exp_am", "imp_am"]

NOISE = 0.5  # mean |tanh| below which images hold more noise than adversary


class ADT(AdversarialTraining):
    r"""Train on samples of the worst distribution around each image, kept broad by its entropy.

    .. math:: \min_\theta \max_p E_{\delta \sim p} [CE(f(x + \delta), y)] + \lambda H(p), \quad
        \delta = \epsilon \tanh(\mu + \sigma r), \quad \sigma = \log(1 + e^\rho), \quad r \sim N(0, I)

    .. math:: H \approx \mathrm{mean}\, [ \tfrac{1}{2} r^2 + \log(\sigma + 10^{-8}) + \log(1 - \tanh^2 + 10^{-8}) ]

    Source: Dong et al., NeurIPS 2020, arXiv:2002.05999. Reading: the entropy is a MEAN over images and pixels, so that
    lambda is free of the image's size. Reading: as in the authors' code the gradients of mu and rho add up over all
    samples and steps and are never cleared, a momentum of 1; by Adam with betas 0 that is a step of their sign.

    Steps: 1. Begin at mu = rho = 0, a deviation of log 2 before tanh. 2. T times, in eval mode: draw k samples, inside
    the pixel range; gradient of cross-entropy plus lambda times entropy by mu and rho; a step of Adam. 3. Draw one
    sample more. 4. In train mode forward it; cross-entropy, backward, optimizer step. ``exp_am`` and ``imp_am`` have a
    generator in the place of 1 and 2, fed with the image, its gradient and that at its FGSM image, both of eval mode;
    it learns in the same backward pass, by a gradient that changes its sign at the adversarial images.

    Warning: its published figures rest on PGD, C&W, FeatureAttack and SPSA; third parties found less under AutoAttack
    than their own PGD training has. Warning: samples lie strictly inside the ball, so at the full epsilon it is a
    little weaker. Where images are classified with certainty, entropy alone moves mu and rho: look at the reach.
    Warning: ``exp`` is several times as dear as PGD training; k = 1 is the economy.

    Args:
        variant: ``exp``, a Gaussian for each image, sought anew for every batch; ``exp_am``, a generator gives mu and
            rho; ``imp_am``, a generator gives the perturbation itself, of a latent code z.
        lam: weight of the entropy, None takes 0.01; for ``imp_am`` of what an encoder misses of z, None takes 1.
        samples: k, of each step of ``exp``.
        inner_lr: Adam's rate for mu and rho; None takes 2.1 / T, so that mu can travel as far whatever T.
        accumulate: keep the gradients of earlier steps, as the authors' code does; the paper has a plain ascent.
        threshold: of ``imp_am``: z is told well enough where its mean negative log-likelihood is no higher.
        z_dim: of ``imp_am``: components of z.
        generator_width: of the generator's stem, half that of its blocks; None takes twice the width of the
            classifier's first convolution (the authors': 256).
        generator_lr: Adam's rate for the generator, the same throughout, and for the encoder of ``imp_am``.

    History: ``reach``, the mean of :math:`|\tanh|`, how far samples lie in epsilons; ``deviation``, the mean of
    :math:`\sigma`; ``entropy``; ``code_loss``, the negative log-likelihood of z.
    """

    card = Card(key="adt", category="variant", citation="dong2020adversarial")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        variant: Variant = "exp",
        lam: float | None = None,
        samples: int = 5,
        inner_lr: float | None = None,
        accumulate: bool = True,
        threshold: float = 0.9,
        z_dim: int = 64,
        generator_width: int | None = None,
        generator_lr: float = 2e-4,
        inner: Inner = Inner(steps=7, start="none", mode="eval"),
        **common: Any,
    ) -> None:
        if variant not in get_args(Variant):
            raise BadInput(f"variant is one of {', '.join(get_args(Variant))}, but found {variant!r}")
        if threat.norm != "linf":
            raise BadInput(f"adt's samples fill a ball of linf: threat.norm is {threat.norm!r}")
        if replace(inner, steps=7, mode="eval") != Inner(steps=7, start="none"):
            raise BadInput("adt climbs by Adam from mu = rho = 0: of inner only steps and mode can be chosen")
        for name, count in (("samples", samples), ("z_dim", z_dim), ("generator_width", generator_width)):
            if count is not None and count < 1:
                raise BadInput(f"{name} is 1 or more, but found {count}")
        for name, value in (("lam", lam), ("inner_lr", inner_lr), ("generator_lr", generator_lr)):
            if value is not None and not value >= 0:
                raise BadInput(f"{name} is 0 or more, but found {value}")
        super().__init__(network, threat, inner=inner, **common)
        self.variant: Variant = variant
        self.lam = (1.0 if variant == "imp_am" else 0.01) if lam is None else lam
        self.samples, self.inner_lr, self.accumulate = samples, inner_lr, accumulate
        self.threshold, self.z_dim = threshold, z_dim
        self.generator_width, self.generator_lr = generator_width, generator_lr
        self.generator: nn.Module | None = None  # they follow from the images' shape
        self.encoder: nn.Module | None = None

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        penalties: list[Tensor] = []
        attacked = self.perturb(batch, cross_entropy_with(batch.y), penalties)
        if attacked.requires_grad:
            attacked.register_hook(torch.neg)  # the generator climbs what the classifier descends
        return sum(penalties, self.classification_loss(self(attacked), batch.y))

    def perturb(self, batch: Batch, objective: Objective, penalties: list[Tensor] | None = None) -> Tensor:
        """Draw one sample around each image; that of a generator has its graph, and ``penalties`` get what it pays."""
        x, threat, owed = batch.x, self.present_threat(), [] if penalties is None else penalties
        if self.variant == "imp_am":
            code = self.draws.uniform(x, shape=(len(x), self.z_dim))
            reached = self._generate(x, objective, code).tanh()
            owed.append(self.lam * F.relu(self._code_loss(reached, code) - self.threshold))
        else:
            amortised = self.variant == "exp_am"
            worst = Gaussian(*self._generate(x, objective).chunk(2, 1)) if amortised else self._search(x, objective)
            noise = self.draws.normal(x)
            reached = worst.reached(noise)
            entropy = worst.entropy(noise, reached)
            self.note("deviation", worst.deviation)
            self.note("entropy", entropy)
            if amortised:
                owed.append(-self.lam * entropy)
        self.note("reach", reached.abs())
        return _around(x, reached, threat)

    def trace_step(self, batch: Any) -> StepTrace:
        """Run the step; only its loss needs the graph of a generator's images."""
        trace = super().trace_step(batch)
        return trace._replace(adversarial=trace.adversarial.detach())

    def _search(self, x: Tensor, objective: Objective) -> "Gaussian":
        """Climb to the worst Gaussian of each image, by Adam without memory but for the sum of the gradients."""
        found = slopes = Gaussian(torch.zeros_like(x), torch.zeros_like(x))
        rate = 2.1 / max(1, self.inner.steps) if self.inner_lr is None else self.inner_lr
        with self.inner.conditions(self.network, x):
            for _ in range(self.inner.steps):
                fresh = [self._slopes(x, found, objective) for _ in range(self.samples)]
                sums = ([slopes] if self.accumulate else []) + fresh
                slopes = Gaussian(*(sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True)))
                steps = (slope / (slope.abs() + 1e-8) for slope in slopes)
                found = Gaussian(*(part + rate * step for part, step in zip(found, steps, strict=True)))
        return found

    def _slopes(self, x: Tensor, present: "Gaussian", objective: Objective) -> "Gaussian":
        """Differentiate the mean objective of one sample, and lambda times the entropy, by mean and rho."""
        noise = self.draws.normal(x)
        with torch.enable_grad():
            leaves = Gaussian(*(part.detach().requires_grad_() for part in present))
            reached = leaves.reached(noise)
            climbed = objective(self(_around(x, reached, self.present_threat()))).mean()
            return Gaussian(*torch.autograd.grad(climbed + self.lam * leaves.entropy(noise, reached), leaves))

    # The generator

    def _generate(self, x: Tensor, objective: Objective, *code: Tensor) -> Tensor:
        """Run the generator on the images, their gradients, and the gradients at their FGSM images."""
        if self.generator is None:
            self._make_networks(*x.shape[1:])
        assert self.generator is not None
        with self.inner.conditions(self.network, x):
            here = input_gradient(self, x, objective).gradient / len(x)  # of the batch's mean, as in the authors' code
            fgsm = _around(x, here.sign(), self.present_threat())
            there = input_gradient(self, fgsm, objective).gradient / len(x)
        made: Tensor = self.generator(torch.cat([x, here, there], 1), *code).to(x.dtype)
        return made

    def _code_loss(self, reached: Tensor, code: Tensor) -> Tensor:
        """Give the encoder's mean negative log-likelihood of the ``code`` behind what was ``reached``, a number."""
        assert self.encoder is not None
        mean, rho = self.encoder(reached).to(code.dtype).chunk(2, 1)
        variance = F.softplus(rho)
        missed = (code - mean).square() / (2 * variance + 1e-8) + (variance + 1e-8).log() / 2
        loss = missed.mean() + math.log(2 * math.pi) / 2
        self.note("code_loss", loss)
        return loss

    def _make_networks(self, channels: int, height: int, width: int) -> None:
        """Make generator and encoder for images of this shape; their weights follow from the seed alone."""
        wide = self.generator_width or 2 * self._first_width()
        implicit, size = self.variant == "imp_am", (height, width)
        made, latent = (channels, self.z_dim) if implicit else (2 * channels, 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(self.seed, "generator") >> 1)
            generator = Generator(3 * channels, made, width=wide, size=size, latent=latent)
            encoder = Encoder(channels, 2 * self.z_dim, size=size) if implicit else None
        like = next(self.network.parameters())
        self.generator = generator.to(like).train(self.training)
        self.encoder = encoder and encoder.to(like).train(self.training)

    def _first_width(self) -> int:
        for part in self.network.modules():
            if isinstance(part, nn.Conv2d):
                return part.out_channels
        kind = type(self.network).__name__
        raise BadInput(f"generator_width follows from the first convolution, but found none in {kind}: set it")

    def optimizers_for(self, recipe: Recipe) -> torch.optim.Optimizer:
        """Put the generator's own Adam, and the encoder's, beside the recipe's optimizer of the classifier."""
        own = super().optimizers_for(recipe)
        beside = [
            torch.optim.Adam(part.parameters(), lr=self.generator_lr, betas=betas)
            for part, betas in ((self.generator, (0.5, 0.999)), (self.encoder, (0.9, 0.999)))
            if part is not None
        ]
        return Together(own, *beside) if beside else own

    def remarks(self) -> dict[str, float | str]:
        """Give reach and deviation over the whole training, the size of what is trained beside, and marks for both."""
        noted = {name: self.noted(name) for name in ("reach", "deviation")}
        told: dict[str, float | str] = {name: sum(values) / len(values) for name, values in noted.items() if values}
        marks = ["training on noise more than on adversaries"] if float(told.get("reach", 1.0)) < NOISE else []
        for name in ("generator", "encoder"):
            if (part := getattr(self, name)) is not None:
                told[f"{name}_parameters"] = float(sum(parameter.numel() for parameter in part.parameters()))
        if self.generator is not None:
            marks.append("a generator is trained beside it")
        return {**told, **({"mark": "; ".join(marks)} if marks else {})}

    # The trainer

    def setup(self, stage: str) -> None:
        """Make the generator before weights are restored and optimizers made."""
        if stage == "fit" and self.variant != "exp" and self.generator is None:
            self._make_networks(*image_shape(self))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Limit the classifier's gradient alone."""
        own = getattr(optimizer, "first", optimizer)
        super().configure_gradient_clipping(own, gradient_clip_val, gradient_clip_algorithm)


class Gaussian(NamedTuple):
    """A Gaussian for each pixel of each image, before tanh: its mean, and rho, of which softplus is the deviation."""

    mean: Tensor
    rho: Tensor

    @property
    def deviation(self) -> Tensor:
        """Sigma, like the images."""
        return F.softplus(self.rho)

    def reached(self, noise: Tensor) -> Tensor:
        """Give the sample that standard normal ``noise`` makes, in epsilons, within (-1, 1)."""
        return (self.mean + self.deviation * noise).tanh()

    def entropy(self, noise: Tensor, reached: Tensor) -> Tensor:
        """Estimate the entropy by one sample, a number: the mean over all images and pixels, but for a constant."""
        density = noise.square() / 2 + (self.deviation + 1e-8).log() + (1 - reached.square() + 1e-8).log()
        return density.mean()


def _around(x: Tensor, reached: Tensor, threat: ThreatModel) -> Tensor:
    """Put what was ``reached``, in epsilons, around the images, inside the pixel range; differentiable."""
    return clip(x + threat.epsilon * reached, threat.low, threat.high)
