"""How models are attacked: the settings under ``evaluation`` in a suite."""

from dataclasses import dataclass, field
from typing import Any, Literal

from attacks.pixels import Pixels, fraction
from benchmark.errors import BadInput
from benchmark.row_attack import RowAttack


def check_distinct(key: str, values: list[Any], *, may_be_empty: bool = False) -> None:
    """Raise BadInput, naming the ``key``, where a value stands twice, or where there is none."""
    if not values and not may_be_empty:
        raise BadInput(f"{key} holds at least one value, but found []")
    if len(set(values)) < len(values):
        raise BadInput(f"{key} holds every value once, but found {values}")


@dataclass(frozen=True)
class Unseen:
    """Attacks on the ranked checkpoint that no method was trained on; see :mod:`benchmark.unseen`.

    Those in the threat's own norm, at radii above that of training, are among ``epsilons`` as ever.

    Args:
        l2, l1: radii of these norms, in pixel units. Of each the first one is a part of the union, with the training
            epsilon.
        transfer_from: rows of the suite whose pictures are shown to all others, at the training epsilon.
    """

    l2: list[float | str] = field(default_factory=list)
    l1: list[float | str] = field(default_factory=list)
    transfer_from: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("l2", "l1"):
            radii = [fraction(value, f"evaluation.unseen.{name}") for value in getattr(self, name)]
            check_distinct(f"evaluation.unseen.{name}", radii, may_be_empty=True)
            object.__setattr__(self, name, radii)
        check_distinct("evaluation.unseen.transfer_from", self.transfer_from, may_be_empty=True)


@dataclass(frozen=True)
class Surrogate:
    """Pictures made on naturally trained networks of other seeds, shown to ranked checkpoints: black-box figures.

    Args:
        attacks: how they are made: ``fgsm``; ``pgd20``, steps of epsilon/4; ``pgd30``, steps of epsilon/10.
        networks: how many there are at least, whose mean prediction is attacked; the suite's other seeds come first.
        classes: of the methods that they are shown to; by default ensembles, whose claim it is.
    """

    attacks: list[Literal["fgsm", "pgd20", "pgd30"]] = field(default_factory=list)
    networks: int = 1
    classes: list[Literal["A", "B", "C", "D", "E", "F"]] = field(default_factory=lambda: ["C"])

    def __post_init__(self) -> None:
        check_distinct("evaluation.surrogate.attacks", list(self.attacks), may_be_empty=True)
        if self.networks < 1:
            raise BadInput(f"evaluation.surrogate.networks is 1 or more, but found {self.networks}")

    @property
    def names(self) -> list[str]:
        """Names of the attacks in the evidence."""
        return [f"surrogate_{attack}" for attack in self.attacks]


@dataclass(frozen=True)
class Evaluation:
    """How every model is attacked.

    Args:
        epsilons: radii at which the cheap attacks run, in pixel units, such as 8/255.
        ranked_at: radii at which models are ranked; among ``epsilons``. AutoAttack runs at these, always in full.
        sweep: of AutoAttack over all other ``epsilons``: ``strict`` in full, ``descending`` with verdicts carried
            from one radius to the next (:mod:`benchmark.sweep`), ``none`` for no sweep.
        attacks: names of :data:`benchmark.evaluation.ATTACKS`.
        images: test images, the first ones; None for all.
        batch_size: images attacked together, and the unit of resumption.
        checkpoints: which of a run's networks are attacked; AutoAttack runs on ``ranked_checkpoint`` only.
        steps, step_size, restarts: of the two fixed-step attacks.
        seed: of all draws.
        row: the attack of the method's row of Table 1, where ``attacks`` names ``row``; for published recipes.
        engine: of AutoAttack: ``fast``, ours, or ``official``, its authors' package.
        precision: of the fast engine's search; every success is confirmed in float32.
        slots: images in the fast engine's batch; None: 64 on a CPU, 512 on a GPU; ``auto``: by a short probe.
        compile: the network, through ``torch.compile``, for the fast engine.
        custom: the attacks of ``autoattack_custom``.
        save_adversarial: keep the picture behind each verdict: :mod:`benchmark.results.pictures`.
        unseen: attacks in other norms and from other networks, which no ranking rests on.
        surrogate: pictures made on other networks, which no ranking rests on: :mod:`benchmark.surrogate`.
    """

    epsilons: list[float | str] = field(default_factory=lambda: ["8/255"])
    ranked_at: list[float | str] = field(default_factory=lambda: ["8/255"])
    attacks: list[str] = field(default_factory=lambda: ["pgd20", "cw20", "autoattack"])
    images: int | None = None
    batch_size: int = 200
    checkpoints: list[Literal["last", "best"]] = field(default_factory=lambda: ["last", "best"])
    ranked_checkpoint: Literal["last", "best"] = "last"
    steps: int = 20
    step_size: str | float = "epsilon/4"
    restarts: int = 1
    seed: int = 0
    row: RowAttack | None = None
    engine: Literal["fast", "official"] = "fast"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    slots: int | Literal["auto"] | None = None
    compile: bool = False
    custom: list[str] = field(default_factory=list)
    save_adversarial: bool = False
    sweep: Literal["none", "strict", "descending"] = "none"
    unseen: Unseen = Unseen()
    surrogate: Surrogate = Surrogate()

    def __post_init__(self) -> None:
        for name in ("epsilons", "ranked_at"):
            radii = sorted({fraction(value, f"evaluation.{name}") for value in getattr(self, name)})
            object.__setattr__(self, name, radii)
        stray = set(self.ranked_at) - set(self.epsilons)
        if stray:
            raise BadInput(f"evaluation.ranked_at lies among evaluation.epsilons, but found {sorted(stray)}")
        if self.ranked_checkpoint not in self.checkpoints:
            raise BadInput(f"evaluation.ranked_checkpoint ({self.ranked_checkpoint}) is among evaluation.checkpoints")
        check_distinct("evaluation.ranked_at", self.ranked_at)
        check_distinct("evaluation.attacks", self.attacks, may_be_empty=True)
        for name in ("batch_size", "restarts", "steps"):
            if getattr(self, name) < 1:
                raise BadInput(f"evaluation.{name} is 1 or more, but found {getattr(self, name)}")
        if isinstance(self.slots, int) and self.slots < 1:
            raise BadInput(f"evaluation.slots is 1 or more, or auto, but found {self.slots}")
        if self.images is not None and self.images < 1:
            raise BadInput(f"evaluation.images is 1 or more, but found {self.images}")
        Pixels.read(self.step_size, "evaluation.step_size")
        if self.row is not None and self.row.epsilon not in self.ranked_at:
            raise BadInput(
                f"evaluation.row.epsilon lies among evaluation.ranked_at, {self.ranked_at}, "
                f"but found {self.row.epsilon}"
            )
