"""What attacks climb: functions of logits ``(n, k)`` that give one value per image ``(n,)``, higher being worse."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.errors import BadInput

Objective = Callable[[Tensor], Tensor]


def cross_entropy_with(y: Tensor) -> Objective:
    """Climb the cross-entropy of the labels ``y`` ``(n,)``."""
    return lambda logits: F.cross_entropy(logits, _plain(y), reduction="none")


def kl_from(reference: Tensor) -> Objective:
    r"""Climb :math:`KL(p \| q)` from the fixed prediction :math:`p` of ``reference`` logits ``(n, k)``; no labels."""
    fixed = reference.detach()
    return lambda logits: kl_divergence(fixed, logits)


def margin_with(y: Tensor) -> Objective:
    """Climb the margin :func:`margin` of the labels ``y`` ``(n,)``, the loss of Carlini and Wagner without a floor."""
    return lambda logits: margin(logits, y)


def soft_margin_with(y: Tensor) -> Objective:
    """Climb the soft logit margin :func:`soft_margin` of the labels ``y`` ``(n,)``."""
    return lambda logits: soft_margin(logits, y)


def towards(target: Tensor) -> Objective:
    """Climb towards the classes ``target`` ``(n,)``: minus their cross-entropy, a targeted attack."""
    return lambda logits: -F.cross_entropy(logits, _plain(target), reduction="none")


def towards_least_likely(logits: Tensor) -> Tensor:
    """Climb towards the class that ``logits`` themselves hold for the least likely, for attacks of one step.

    Source: Kurakin et al., ICLR 2017, arXiv:1611.01236, "step l.l.". Over several steps the class would change on the
    way: choose it once, and climb :func:`towards` it.
    """
    return towards(logits.detach().argmin(1))(logits)


def away_from_prediction(logits: Tensor) -> Tensor:
    """Climb the cross-entropy of the class that ``logits`` themselves predict, so that no label leaks; of one step.

    Classes that tie for the highest logit share the prediction, as in CleverHans.
    """
    highest = (logits == logits.amax(1, keepdim=True)).to(logits).detach()
    return -(highest / highest.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)


def wrong_confidence_with(y: Tensor) -> Objective:
    r"""Climb the largest probability of a wrong class, :math:`\max_{k \ne y} p_k`: find confident errors.

    Its logarithm, which has the same order and gradients of the same direction, and keeps both where the probability
    rounds to 0 or to 1. Source: Stutz et al., ICML 2020, arXiv:1910.06259, equation 7.
    """

    def confidence(logits: Tensor) -> Tensor:
        return logits.log_softmax(1).scatter(1, _plain(y)[:, None], -torch.inf).amax(1)

    return confidence


def dlr_with(y: Tensor) -> Objective:
    r"""Climb the difference of logits ratio, free of shift and scale.

    .. math:: -\frac{z_y - \max_{k \ne y} z_k}{z_{\pi_1} - z_{\pi_3}}

    with :math:`\pi` the order of the logits, largest first. Source: Croce and Hein, ICML 2020, arXiv:2003.01690,
    equation 6. The official code adds 1e-12 below the line; so does this.

    Raises:
        BadInput: for fewer than three classes, where the ratio has no meaning.
    """

    def ratio(logits: Tensor) -> Tensor:
        if logits.shape[1] < 3:
            raise BadInput(f"the DLR objective needs at least 3 classes, but found {logits.shape[1]} logits")
        top = logits.topk(3, dim=1).values
        return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)

    return ratio


def targeted_dlr_with(y: Tensor, target: Tensor) -> Objective:
    r"""Climb the difference of logits ratio towards the classes ``target`` ``(n,)``, away from the labels ``y``.

    .. math:: -\frac{z_y - z_t}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2}

    with :math:`\pi` the order of the logits, largest first. Source: Croce and Hein, ICML 2020, arXiv:2003.01690,
    equation 7. The official code adds 1e-12 below the line; so does this.

    Raises:
        BadInput: for fewer than four classes, where the ratio has no meaning.
    """

    def ratio(logits: Tensor) -> Tensor:
        if logits.shape[1] < 4:
            raise BadInput(f"the targeted DLR objective needs at least 4 classes, but found {logits.shape[1]} logits")
        label, aim = (logits.gather(1, _plain(classes)[:, None]).squeeze(1) for classes in (y, target))
        top = logits.topk(4, dim=1).values
        return (aim - label) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)

    return ratio


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Give :math:`\max_{k \ne y} z_k - z_y` per image ``(n,)``: above 0 exactly where the network is wrong.

    Source: Carlini and Wagner, S&P 2017, arXiv:1608.04644, objective f6, with the sign that an ascent needs.
    """
    column = _plain(y)[:, None]
    correct = logits.gather(1, column).squeeze(1)
    wrong = logits.scatter(1, column, -torch.inf).amax(1)
    return wrong - correct


def soft_margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Give :math:`\log\sum_{k \ne y} e^{z_k} - z_y` per image ``(n,)``: below 0 exactly where :math:`p_y > 1/2`.

    Never less than :func:`margin`. Source: Ding et al., ICLR 2020, arXiv:1812.02637, the soft logit margin loss.
    """
    column = _plain(y)[:, None]
    correct = logits.gather(1, column).squeeze(1)
    return logits.scatter(1, column, -torch.inf).logsumexp(1) - correct


def kl_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    r"""Give :math:`KL(p \| q)` per image ``(n,)`` from two sets of logits ``(n, k)``: ``clean`` is p, the target.

    In log space on both sides; gradients flow through both arguments.
    """
    p, q = clean.log_softmax(1), adversarial.log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def _plain(y: Tensor) -> Tensor:
    """Copy labels that were loaded in inference mode (as Lightning evaluates): autograd refuses to keep those."""
    return y.clone() if y.is_inference() else y
