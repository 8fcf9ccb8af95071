"""What a method says of itself that learns from images without labels, and a teacher's labels for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.errors import BadInput
from attacks.modes import in_mode
from methods.per_image import PerImage
from methods.records import Batch

HIDDEN = -1  # stands where a label is not to be seen


@dataclass(frozen=True)
class Reference:
    """A training on the labelled images alone: a method by its key, what is special to it, and its ``name`` in tables.

    Without a ``name`` it is called after its method; the number of labels follows: ``trades@200``.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    name: str = ""


@dataclass(frozen=True)
class References:
    """What a semi-supervised method is shown beside: same network, recipe, seed and number of steps.

    Args:
        lower: trained on the labelled images alone; the first is what the recovered share counts from.
        oracle: key of the method that, with ALL labels, is the share's upper end.
        teacher: natural training on the labelled images, whose predictions may serve as pseudo-labels.
    """

    lower: tuple[Reference, ...]
    oracle: str
    teacher: Reference = Reference("natural")


class PseudoLabelled:
    """Mixed into a method that trains unlabelled images on a teacher's hard, fixed labels.

    The labels are kept by sample index in :attr:`pseudo_labels`, which the base saves with the checkpoint; the teacher
    itself is not needed once it has labelled. Give them before training::

        method.learn_from(index, predicted_labels(teacher, images))
    """

    pseudo_labels: PerImage

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """Tell whether these settings make use of pseudo-labels."""
        return True

    def learn_from(self, index: Tensor, labels: Tensor) -> None:
        """Take ``labels`` ``(n,)``, int64, for the unlabelled images numbered ``index`` ``(n,)``."""
        self.pseudo_labels.store(index, labels)

    def with_pseudo_labels(self, y: Tensor, index: Tensor) -> Tensor:
        """Fill in the labels ``y`` ``(n,)`` that are hidden; an image that no teacher has seen stays at -1."""
        return torch.where(y == HIDDEN, self.pseudo_labels.of(index), y)

    def with_targets(self, batch: Batch) -> Batch:
        """Fill in the hidden labels of ``batch``, for a method that cannot do without.

        Raises:
            BadInput: where no teacher has labelled an image.
        """
        targets = self.with_pseudo_labels(batch.y, batch.index)
        if (without := targets == HIDDEN).any():
            raise BadInput(
                f"{type(self).__name__} needs a pseudo-label for each unlabelled image, but image "
                f"{int(batch.index[without][0])} has none: give them with learn_from(index, labels) before training"
            )
        return batch._replace(y=targets)


class Guesses(NamedTuple):
    """Labels ``(n,)`` that a method gave the unlabelled images ``index`` ``(n,)`` in one step."""

    index: Tensor  # type: ignore[assignment] # as in Batch
    labels: Tensor


class SelfLabelling:
    """Mixed into a method that labels unlabelled images itself, anew in every step.

    It leaves them in :attr:`guesses`, where whoever knows the hidden labels may look at them.
    """

    guesses: Guesses | None = None


def predicted_labels(network: nn.Module, x: Tensor, *, batch_size: int = 256) -> Tensor:
    """Label images ``x`` ``(n, c, h, w)`` as ``network`` in eval mode sees them, without a graph: int64 ``(n,)``."""
    device = next((parameter.device for parameter in network.parameters()), x.device)
    with torch.no_grad(), in_mode(network, "eval"):
        found = [network(part.to(device)).argmax(1) for part in x.split(batch_size)]
    return torch.cat(found).to(x.device) if found else torch.empty(0, dtype=torch.int64, device=x.device)


def mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Average the ``values`` ``(n,)`` that are ``chosen`` ``(n,)``; 0, with a graph, where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def entropy(logits: Tensor) -> Tensor:
    r"""Give :math:`-\sum_k p_k \log p_k` per image ``(n,)`` of logits ``(n, k)``."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(1)
