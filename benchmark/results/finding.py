"""What a check of a report finds wrong, in one sentence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that does not hold: where, what was expected there, and what is there."""

    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


def place(experiment: str, checkpoint: str, attack: str, epsilon: float, index: int | None = None) -> str:
    """Name a verdict, or all of an attack: ``trades-digits-s0-1a2b, last, pgd20 at 0.1, image 17``."""
    image = "" if index is None else f", image {index}"
    return f"{experiment}, {checkpoint}, {attack} at {epsilon:g}{image}"
