"""The records that methods are made of and hand over: who a method is, a batch, what a step made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Category = Literal[
    "origin",
    "regularization",
    "curriculum",
    "ensemble",
    "adaptive epsilon",
    "semi-supervised",
    "efficient",
    "variant",
    "generalization",
    "own",  # a user's, outside the survey
]


@dataclass(frozen=True)
class Card:
    """Who a method is: its key, its category in the survey, the key of its citation, the class it is ranked in.

    ``comparison`` is the letter of protocol.md: A one network, labelled data, fixed epsilon; B changed network; C
    ensembles; D other data; E unions of norms; F rejection.

    Args:
        reconstruction: built from a paper whose code is not public and whose formulas could not be checked; every table
            says so beside its name.
        broken: what AutoAttack, or a strong attack before it, is known to leave, as one short sentence with the figure,
            its setting and whose it is; empty where the method holds or nothing is known.
        trials: how many settings were tried on validation images of a data set, by its name, before the defaults stood;
            one where it is not named.
    """

    key: str
    category: Category
    citation: str
    comparison: Literal["A", "B", "C", "D", "E", "F"] = "A"
    reconstruction: bool = False
    broken: str = ""
    trials: Mapping[str, int] = field(default_factory=dict, hash=False)


class Batch(NamedTuple):
    """Images ``(n, c, h, w)`` in [0, 1], labels ``(n,)`` and the samples' numbers in their data set ``(n,)``, int64."""

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment] # the protocol's word, though tuples have a method of that name

    @classmethod
    def of(cls, items: Any) -> "Batch":
        """Take what a DataLoader yields: ``(x, y, index)``, or ``(x, y)`` where nothing is kept per sample."""
        if len(items) == 2:
            x, y = items
            return cls(x, y, torch.arange(len(y), device=y.device))
        return cls(*items)

    def rows(self, which: Tensor) -> "Batch":
        """Take the rows that ``which`` ``(n,)`` is true for, or those it numbers ``(m,)``."""
        return Batch(self.x[which], self.y[which], self.index[which])


class StepTrace(NamedTuple):
    """What one training step made, up to the optimizer: the images it trained on, and the loss with its graph."""

    adversarial: Tensor
    loss: Tensor
