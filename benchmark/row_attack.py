"""The attack behind a figure of the survey's Table 1, as a published recipe writes it down."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from attacks.pixels import Pixels, fraction
from benchmark.errors import BadInput


@dataclass(frozen=True)
class RowAttack:
    """How the row's figure was measured: projected gradient ascent in one of the ways that the papers used.

    An image counts as fooled where it is misclassified in the end, as under every other attack; a targeted attack that
    arrives at another wrong class than its target has fooled it too. It runs on the ranked checkpoint only.

    Args:
        loss: what is climbed: ``ce``, the ``margin`` of Carlini and Wagner, or ``both``, an attack with each.
        target: ``none``, away from the label; else towards a class that is not the label, the same in all restarts:
            ``random``, or ``least_likely`` of the clean image.
        labels: away from the ``true`` label, or from the one ``predicted`` for the clean image (adp's protocol).
        epsilon: in pixel units; among the suite's ``ranked_at``, so that it has a line in the leaderboard.
        step_size: in pixel units, or relative to epsilon.
        random_start: uniform in the ball, inside the pixel range; else the image itself.
        restarts: of which the first success counts.
        iterate: the ``last``, or ``any`` on the way.
        note: what the row did that this does not.
    """

    epsilon: float | str
    steps: int
    loss: Literal["ce", "margin", "both"] = "ce"
    target: Literal["none", "random", "least_likely"] = "none"
    labels: Literal["true", "predicted"] = "true"
    step_size: str | float = "epsilon/4"
    random_start: bool = True
    restarts: int = 1
    iterate: Literal["last", "any"] = "last"
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", fraction(self.epsilon, "evaluation.row.epsilon"))
        Pixels.read(self.step_size, "evaluation.row.step_size")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise BadInput(f"evaluation.row.{name} is 1 or more, but found {getattr(self, name)}")
        if self.target != "none" and self.labels == "predicted":
            raise BadInput("evaluation.row.labels is true where the row has a target: nothing is climbed away from")

    def __str__(self) -> str:
        """Name the attack as the papers do, such as ``PGD-20, ce, epsilon 0.03137``."""
        kind = {"ce": "PGD", "margin": "CW", "both": "PGD and CW"}[self.loss]
        words = [f"{kind}-{self.steps} at {float(self.epsilon):.4g}"]
        words += [f"{self.target.replace('_', ' ')} target"] if self.target != "none" else []
        words += [f"{self.restarts} restarts"] if self.restarts > 1 else []
        return ", ".join(words)


def check(values: Any) -> None:
    """Raise BadInput, with the key's name, for ``values`` that are no row's attack.

    A suite's parser finds the same mistakes, but as one of two things that might have been meant, a row or none.
    """
    if not isinstance(values, Mapping):
        raise BadInput(f"evaluation.row holds keys and their values, but found {values!r}")
    known = list(RowAttack.__dataclass_fields__)
    if stray := [str(key) for key in values if key not in known]:
        near = difflib.get_close_matches(stray[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise BadInput(f"there is no key evaluation.row.{stray[0]}: {hint}")
    if missing := [key for key in ("epsilon", "steps") if key not in values]:
        raise BadInput(f"evaluation.row says {missing[0]}, but found only {', '.join(map(str, values)) or 'nothing'}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RowAttack)
    try:
        RowAttack(**dict(parser.parse_object(dict(values))))
    except ArgumentError as error:
        reason = " ".join(str(error).split()).replace("Parser key ", "").replace("typing.", "").replace('"', "")
        raise BadInput(f"evaluation.row.{reason}") from None
