"""Adversarial interpolation: move each image towards another one's features, and its label away from that one's."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.objectives import Objective
from attacks.threat import ThreatModel
from methods.anatomy import Features, last_linear
from methods.base import AdversarialTraining, Batch, Card
from methods.inner import one_step

Partner = Literal["reversed", "random"]


class AdvInterp(AdversarialTraining):
    r"""Train on images that lean towards a partner of the batch, under labels that lean away from the partner's.

    .. math:: CE(f(\tilde x_i), \tilde y_i), \quad \tilde x_i = \arg\min_{\|x' - x_i\| \le \epsilon}
        [1 - \cos(g(x'), g(x_j))], \quad \tilde y_i = (1 - \epsilon_y) y_i + \frac{\epsilon_y}{k - 1} (1 - y_j)

    with g the features that the last linear layer is given, and k classes.

    Source: Zhang and Xu, 2019, OpenReview Syejj0NYvr (submitted to ICLR 2020). Reading: from the authors' code, one
    step DOWN the distance from a start that is not clipped to the pixel range; the partner is the batch in reversed
    order, clean. The live network in eval mode is their copy. A recipe's label smoothing is not added: these labels are
    soft already.

    Steps: 1. Pair the images: the batch in reversed order. 2. In eval mode forward the partners; their features.
    3. From a uniform point of the ball, one step of epsilon against the sign of the gradient of the features' distance
    to the partner's, in eval mode, back into the ball, then into the range. 4. Take the label's share from the true
    class and give it to all classes but the partner's. 5. In train mode forward the moved images alone; cross-entropy
    with the soft labels, backward, optimizer step.

    Warning: most of the robustness is apparent: labels of half the confidence mislead PGD on the cross-entropy. Rank it
    by the worst case; the published gap, 74 under PGD-20 against 36 under AutoAttack, belongs to networks that fit
    CIFAR-10. Warning: the survey's 45.11 contradicts the authors' own figures and looks like that of a PGD-AT baseline;
    it is no target. Warning: pairs depend on the batch and on the number of devices, and the data must be shuffled.
    Warning: a step towards a random partner is a weak attack where epsilon is large.

    Args:
        epsilon_y: share of the label that goes to the classes other than the partner's; 0 leaves hard labels.
        partner: ``reversed``, where the middle image of an odd batch is its own; or ``random``, a permutation.
        image_step: False leaves each image where it starts, so that only the label is adversarial.

    Raises:
        BadInput: for a network without a last linear layer; for batches of one image, which have no partner. One that
            is left over behind larger ones is its own.

    History: ``top_probability``, the largest of the prediction on moved images; ``own_class``, share of partners of the
    image's own class.
    """

    card = Card(
        key="adv_interp",
        category="variant",
        citation="zhang2019adversarial",
        broken="AutoAttack leaves 36.45 % of the authors' WRN-28-10 that claims 68.7 (CIFAR-10, 8/255; RobustBench)",
    )
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        epsilon_y: float = 0.5,
        partner: Partner = "reversed",
        image_step: bool = True,
        **common: Any,
    ) -> None:
        if not 0 <= epsilon_y <= 1:
            raise BadInput(f"epsilon_y is a share, between 0 and 1, but found {epsilon_y}")
        if partner not in get_args(Partner):
            raise BadInput(f"partner is one of {', '.join(get_args(Partner))}, but found {partner!r}")
        step = one_step(start="uniform", boxed=False)
        super().__init__(network, threat, inner=step if image_step else replace(step, steps=0), **common)
        self.epsilon_y, self.partner = epsilon_y, partner
        self._last = ""  # name of the last linear layer
        self._paired = False  # whether a batch of two images or more was seen

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        partners = self.partners(batch.x)
        moved = self.perturb(batch, self.towards_features(batch.x[partners]))
        logits = self(moved)
        self.note("top_probability", logits.softmax(1).amax(1))
        self.note("own_class", (batch.y[partners] == batch.y).to(logits))
        return F.cross_entropy(logits, interpolated_labels(batch.y, batch.y[partners], self.epsilon_y, logits))

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Take the step; ``objective`` is of the features."""
        return self.inner.maximise(
            self.features(batch.x), batch.x, batch.y, objective, self.present_threat(), self.draws
        )

    def partners(self, x: Tensor) -> Tensor:
        """Give the row of each image's partner ``(n,)``."""
        if len(x) < 2 and not self._paired:
            raise BadInput(f"{self.card.key} pairs the images of a batch, which holds 2 or more, but found {len(x)}")
        self._paired = True
        if self.partner == "random":
            return self.draws.permutation(len(x), x)
        return torch.arange(len(x), device=x.device).flip(0)

    def towards_features(self, x: Tensor) -> Objective:
        """Climb minus the distance to the features of ``x``, images ``(n, c, h, w)`` that stay as they are."""
        body = self.features(x)

        def closeness(features: Tensor) -> Tensor:
            with torch.no_grad():  # in the middle of the attack, so in its mode
                target = body(x)
            return -feature_distance(features, target)

        return closeness

    def features(self, x: Tensor) -> Features:
        """Give what maps images like ``x`` to their features."""
        self._last = self._last or last_linear(self.network, x)
        return Features(self.network, self._last)

    def remarks(self) -> dict[str, float | str]:
        """Give the last epoch's largest probability and share of partners of the same class."""
        return {name: self.noted(name)[-1] for name in ("top_probability", "own_class") if self.noted(name)}


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    r"""Measure :math:`\max(0, 1 - \cos)` of features ``(n, d)`` to those of ``target``, row by row, ``(n,)``."""
    return clip(1 - F.cosine_similarity(features, target, dim=1, eps=1e-6), 0.0, torch.inf)


def interpolated_labels(y: Tensor, partner_y: Tensor, share: float, like: Tensor) -> Tensor:
    """Give label distributions for logits ``like`` them, ``(n, k)``: ``share`` goes to all but the partner's class."""
    classes = like.shape[1]
    own, others = F.one_hot(y, classes).to(like), F.one_hot(partner_y, classes).to(like)
    return (1 - share) * own + share * (1 - others) / (classes - 1)
