"""Which class an attack goes for, or leaves, where it is not to see the label."""

from typing import Literal, get_args

from torch import Tensor

from attacks.errors import BadInput
from attacks.objectives import Objective, cross_entropy_with, towards
from methods.draws import Draws

Label = Literal["ll", "random", "predicted", "true"]


def check_label(label: str) -> None:
    """Accept one of the four; raises :class:`BadInput` for anything else."""
    if label not in get_args(Label):
        raise BadInput(f"label is one of {', '.join(get_args(Label))}, but found {label!r}")


def aim(label: Label, logits: Tensor, draws: Draws) -> Objective:
    """Choose each image's class by ``logits`` ``(n, k)`` of it, and say what to climb; the class stays as it is chosen.

    Args:
        label: ``ll`` climbs TOWARDS the least likely class, ``random`` towards one of all classes (the true one may be
            drawn, too), ``predicted`` away from the class that is predicted. ``true`` needs no choice, nor logits.
    """
    if label == "ll":
        return towards(logits.argmin(1))
    if label == "random":
        return towards(draws.integers(logits.shape[1], logits, (len(logits),)))
    return cross_entropy_with(logits.argmax(1))
