"""TLA: adversarial training with a triplet loss on the features."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.modes import full_precision
from attacks.objectives import cross_entropy_with
from attacks.pixels import Pixels
from attacks.threat import ThreatModel
from methods.anatomy import last_linear, with_features
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import Inner
from methods.training_set import TrainingSet

Positives = Literal["both", "noisy", "other"]
Negatives = Literal["hard", "random"]

IDLE = 0.05  # share of anchors below which the triplets explain nothing; a choice of ours
_NOTES = ("active_noisy", "active_other", "active_anchors", "feature_square", "dead_features")


class TLA(AdversarialTraining):
    r"""Bring an adversarial image's features near those of its class, and away from the most similar other class.

    .. math:: CE(f(x'), y) + \lambda_1 \sum_p [ \max(0, D(a, p) - D(a, n) + \alpha)
        + \lambda_2\, \mathrm{mean}(a^2 + p^2 + n^2) ], \quad D(u, v) = 1 - \frac{|\langle u, v \rangle|}{\|u\| \|v\|}

    with features :math:`a` of the adversarial image (the anchor), :math:`n` of a clean image of another class, and
    :math:`p` of two positives: the image itself with noise, and another training image of its class.

    Source: Mao et al., NeurIPS 2019, arXiv:1909.00900. Reading: two triplets, and :math:`\lambda_2` inside
    :math:`\lambda_1`, as in the authors' code, where the paper has one positive; anchor, positive and negative all get
    gradients; the features are what the last linear layer is given. Candidates of the anchor's class are ruled out in
    the search, where the authors' code gives them a similarity of 0: that differs where all others are negative.

    Steps: 1. Draw candidates from the training set, augmented like the batch; their features in eval mode. 2. Attack
    the cross-entropy by PGD in eval mode; features of what came out. 3. For each image the negative is the candidate of
    another class with the largest cosine. 4. Draw another training image of each label. 5. Add uniform noise to each
    image, inside the pixel range. 6. In train mode forward noisy, adversarial, negative and other images, each a batch
    of its own for BatchNorm. 7. Cross-entropy of the adversarial ones and the triplets; backward, optimizer step.

    Warning: late in training most triplets are inactive; where nearly all are throughout, the row is `pgd_at` with a
    penalty on features. Warning: evaluation statistics differ from those of `pgd_at`, for three of the four forwards
    are of images that are not adversarial. AutoAttack lies 3 points below the published PGD-20 (47.41 against 50.03).

    Args:
        lambda1: weight of each triplet.
        lambda2: weight of the mean square of the features, within it.
        alpha: margin, in angular distance.
        noise: of the first positive, in pixel units or relative.
        positives: ``both``; or one of them, ``noisy`` (the same image) or ``other`` (another of its class).
        negatives: ``hard``; or ``random``, any image of another class.
        switch_anchor: let the clean positive be the anchor and the adversarial image its positive.
        pool_size: candidates a step and device; None takes a tenth of the training images, 500 at most; 0 takes the
            batch for the training set, which needs no access to the data.

    History: ``active_noisy``, ``active_other``, share of triplets that are active, by their positive;
    ``active_anchors``, share of images with one that is; ``feature_square``, the mean of :math:`a^2 + p^2 + n^2`;
    ``dead_features``, share of adversarial images whose features are all 0, so that their cosine is 0 with anything.
    """

    card = Card(key="tla", category="regularization", citation="mao2019metric")

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        lambda1: float = 2.0,
        lambda2: float = 1e-3,
        alpha: float = 0.03,
        noise: str | float = "epsilon",
        positives: Positives = "both",
        negatives: Negatives = "hard",
        switch_anchor: bool = False,
        pool_size: int | None = None,
        inner: Inner = Inner(steps=7, step_size="epsilon/4", start="uniform", mode="eval"),
        **common: Any,
    ) -> None:
        for name, chosen, kind in (("positives", positives, Positives), ("negatives", negatives, Negatives)):
            if chosen not in get_args(kind):
                raise BadInput(f"{name} is one of {', '.join(get_args(kind))}, but found {chosen!r}")
        for name, weight in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not weight >= 0:
                raise BadInput(f"{name} is 0 or more, but found {weight}")
        if pool_size is not None and (isinstance(pool_size, bool) or not isinstance(pool_size, int) or pool_size < 0):
            raise BadInput(f"pool_size is a number of images, 0 or more, or null, but found {pool_size!r}")
        super().__init__(network, threat, inner=inner, **common)
        self.lambda1, self.lambda2, self.alpha = lambda1, lambda2, alpha
        self.noise = Pixels.read(noise, "noise")
        self.positives, self.negatives = positives, negatives
        self.switch_anchor, self.pool_size = switch_anchor, pool_size
        self.training_set: TrainingSet | None = None
        self._last = ""  # name of the last linear layer

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        self._last = self._last or last_linear(self.network, batch.x)
        images = TrainingSet.of_batch(batch) if self.training_set is None else self.training_set
        pool = images.read(self._candidates(images))
        attacked = self.perturb(batch, cross_entropy_with(batch.y))
        negative, found = self._choose_negatives(batch, attacked, pool)

        positives = {}
        if self.positives != "other":
            positives["noisy"] = self._look(self._noisy(batch.x))[1]
        logits, adversarial = self._look(attacked)
        _, farther = self._look(pool.x[negative])
        if self.positives != "noisy":
            other = images.read(images.another_of_its_class(batch, self.draws))
            positives["other"] = self._look(other.x)[1]
        triplets = self._triplets(adversarial, positives, farther, found)
        return self.classification_loss(logits, batch.y) + self.lambda1 * triplets

    def _triplets(self, adversarial: Tensor, positives: dict[str, Tensor], negative: Tensor, found: Tensor) -> Tensor:
        total = active = torch.zeros_like(found)
        for name, positive in positives.items():
            triplet = (positive, adversarial, negative) if self.switch_anchor else (adversarial, positive, negative)
            hinge, square = found * triplet_hinge(*triplet, self.alpha), mean_square(*triplet)
            total = total + hinge + self.lambda2 * square
            active = active.maximum((hinge > 0).to(active))
            self.note(f"active_{name}", (hinge > 0).to(hinge))
            self.note("feature_square", square)
        self.note("active_anchors", active)
        self.note("dead_features", (adversarial == 0).all(1).to(adversarial))
        return total.mean()

    def _candidates(self, images: TrainingSet) -> Tensor:
        """Draw the positions of the pool, without repetition; a batch that stands in for the set is all of it."""
        if images is not self.training_set:
            return torch.arange(len(images), device=images.labels.device)
        size = min(500, max(1, len(images) // 10)) if self.pool_size is None else self.pool_size
        return self.draws.permutation(len(images), images.labels)[:size]

    def _choose_negatives(self, batch: Batch, attacked: Tensor, pool: Batch) -> tuple[Tensor, Tensor]:
        """Choose a candidate of another class for each image ``(n,)``, and tell for which there was one ``(n,)``."""
        if self.negatives == "random":
            return hardest(self.draws.uniform(batch.x, shape=(len(batch.x), len(pool.x))), batch.y, pool.y)
        candidates, anchors = (self._frozen_features(x) for x in (pool.x, attacked))
        return hardest(cosines(anchors, candidates), batch.y, pool.y)

    def _noisy(self, x: Tensor) -> Tensor:
        """Add the first positive's noise, which the authors also round to whole grey values."""
        threat = self.present_threat()
        return clip(x + self.noise.at(threat.epsilon) * self.draws.uniform(x), threat.low, threat.high)

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Forward images: logits ``(n, k)`` and features ``(n, d)``, in float32 at least."""
        logits, features = with_features(self, f"network.{self._last}", x)
        return logits, features.to(logits.dtype)

    def _frozen_features(self, x: Tensor) -> Tensor:
        with torch.no_grad(), self.inner.conditions(self.network, x):
            return self._look(x)[1]

    def remarks(self) -> dict[str, float | str]:
        """Give the shares and the feature term over the whole training, and a mark where next to no triplet acted."""
        noted = {name: self.noted(name) for name in _NOTES}
        means = {name: sum(values) / len(values) for name, values in noted.items() if values}
        idle = means.get("active_anchors", 1.0) < IDLE
        return {**means, **({"mark": "pgd_at with a feature penalty: triplets idle"} if idle else {})}

    # The training set

    def on_train_start(self) -> None:
        """Look at what there is to draw from."""
        super().on_train_start()
        if self.pool_size != 0:
            self.training_set = TrainingSet.of_trainer(self, instead="set pool_size to 0, to compare within the batch")

    def on_train_end(self) -> None:
        """Let go of it."""
        super().on_train_end()
        self.training_set = None


def angular_distance(u: Tensor, v: Tensor) -> Tensor:
    r"""Give :math:`1 - |\cos(u, v)|` of each pair of rows of ``(n, d)``, ``(n,)``, in [0, 1]; opposite is near, too."""
    return 1 - (_unit(u) * _unit(v)).sum(1).abs()


def triplet_hinge(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Give what is missing ``(n,)`` for the negative to be farther from the anchor than the positive by ``margin``."""
    return (angular_distance(anchor, positive) - angular_distance(anchor, negative) + margin).clamp(min=0)


def mean_square(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Average the sum of the three squares over images and features ``(n, d)``."""
    return (anchor.square() + positive.square() + negative.square()).mean()


def cosines(features: Tensor, candidates: Tensor) -> Tensor:
    """Give the cosine of each row of ``(n, d)`` with each of ``(m, d)``, ``(n, m)``; 1e-7 keeps zeros at 0."""
    left, right = (rows / (rows.norm(dim=1, keepdim=True) + 1e-7) for rows in (features, candidates))
    with full_precision(features):  # bfloat16 has too few digits to tell candidates apart
        return left @ right.T


def hardest(similarity: Tensor, y: Tensor, candidates_y: Tensor) -> tuple[Tensor, Tensor]:
    """Choose for each row of ``(n, m)`` the column of another class with the largest value ``(n,)``.

    Returns:
        the columns, and 1 where there was one of another class, else 0, ``(n,)``.
    """
    best = similarity.masked_fill(y[:, None] == candidates_y[None], -torch.inf).max(1)
    return best.indices, (best.values > -torch.inf).to(similarity)


def _unit(rows: Tensor) -> Tensor:
    return rows / (rows.square() + 1e-20).sum(1, keepdim=True).sqrt()
