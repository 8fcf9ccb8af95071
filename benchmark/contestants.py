"""Who runs when attacks are timed: the official AutoAttack, ours in its precisions, and the development attack."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks import autoattack as fast
from attacks import official
from attacks.errors import BadInput
from attacks.oracle import Precision
from attacks.quick import quick
from attacks.staged import Staged
from attacks.threat import ThreatModel
from benchmark.data import Images
from benchmark.evaluation import evaluate
from benchmark.evaluation_settings import Evaluation

OFFICIAL, STOCK, QUICK, SWEEP = "official", "official-stock", "quick", "fast-fp32-sweep"
RADII = (1 / 3, 2 / 3, 1, 4 / 3, 2)  # of epsilon: five, as in the suites

Beat = Callable[[str], None]
"""Told how an attack goes, at least once a second; there it may be interrupted, so that others have their turn."""


@dataclass(frozen=True)
class Contest:
    """What everyone attacks, and how.

    Args:
        network: on the images' device, in eval mode.
        images: the clean ones, with labels and their numbers in the data set.
        batch_size: images at once, for everyone.
        compiled: the network, through ``torch.compile``, for our engine.
        only: these attacks of AutoAttack.
    """

    network: nn.Module
    images: Images
    threat: ThreatModel
    seed: int
    batch_size: int
    compiled: bool = False
    only: tuple[str, ...] = official.STAGES

    @cached_property
    def x(self) -> Tensor:
        """Pixels ``(n, c, h, w)``."""
        return self.images.pixels()

    @property
    def y(self) -> Tensor:
        """Labels ``(n,)``."""
        return self.images.labels

    @property
    def index(self) -> Tensor:
        """Numbers in the data set ``(n,)``."""
        return self.images.index


class Contestant(NamedTuple):
    """An attack that is timed; ``share`` is about what it costs of the official one, for turns of fair length."""

    name: str
    run: Callable[[Contest, Beat], Staged]
    share: float


def contestants(precisions: Sequence[Precision], *, stock: bool = False, sweep: bool = False) -> list[Contestant]:
    """List who runs, the official AutoAttack first, and last with ``sweep`` ours at five radii, in descending order.

    It runs as ``--engine official`` does: through our wrapper, which spares it the gradients of parameters. With
    ``stock`` it runs a second time as its authors ship it, where FAB fills them in.
    """
    chosen = [Contestant(OFFICIAL, _official(stock=False), 1.0)]
    chosen += [Contestant(STOCK, _official(stock=True), 1.1)] if stock else []
    shares: dict[Precision, float] = {"fp32": 0.7, "tf32": 0.4, "bf16": 0.5}
    chosen += [Contestant(f"fast-{name}", _fast(name), shares[name]) for name in precisions]
    chosen += [Contestant(SWEEP, _sweep, 1.0)] if sweep else []
    return [*chosen, Contestant(QUICK, _quick, 0.06)]


def _official(*, stock: bool) -> Callable[[Contest, Beat], Staged]:
    def run(contest: Contest, beat: Beat) -> Staged:
        network = _own(contest.network)
        stage = "begins"

        def told(name: str, left: int) -> None:
            nonlocal stage
            stage = f"{name}: {left} hold"

        network.register_forward_pre_hook(lambda *_: beat(stage))
        return official.autoattack(
            network,
            contest.x,
            contest.y,
            contest.threat,
            seed=contest.seed,
            batch_size=contest.batch_size,
            progress=told,
            only=contest.only,
            parameter_gradients=stock,
        )

    return run


def _fast(precision: Precision) -> Callable[[Contest, Beat], Staged]:
    def run(contest: Contest, beat: Beat) -> Staged:
        return fast.autoattack(
            _own(contest.network),
            contest.x,
            contest.y,
            contest.threat,
            seed=contest.seed,
            index=contest.index,
            slots=contest.batch_size,
            precision=precision,
            compiled=contest.compiled,
            only=contest.only,
            progress=lambda progress: beat(f"{progress.attack}: {progress.robust} hold"),
        )

    return run


def _own(network: nn.Module) -> nn.Module:
    """Copy the network: who takes turns with others has flags and hooks of its own."""
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever a user's module raises
        raise BadInput(
            f"the network cannot be copied ({type(error).__name__}: {error}), but engines that take turns have one each"
        ) from error


def _quick(contest: Contest, beat: Beat) -> Staged:
    return quick(
        _own(contest.network),
        contest.x,
        contest.y,
        contest.threat,
        seed=contest.seed,
        index=contest.index,
        slots=contest.batch_size,
        compiled=contest.compiled,
        progress=lambda progress: beat(f"{progress.attack}: {progress.robust} hold"),
    )


def _sweep(contest: Contest, beat: Beat) -> Staged:
    """Attack at five radii by ``evaluation.sweep: descending``; verdicts are those at epsilon, passes those of all."""
    epsilon = contest.threat.epsilon
    settings = Evaluation(
        epsilons=[share * epsilon for share in RADII],
        ranked_at=[epsilon],
        attacks=["autoattack"],
        seed=contest.seed,
        slots=contest.batch_size,
        compile=contest.compiled,
        sweep="descending",
    )
    found = evaluate(
        _own(contest.network), contest.images, contest.threat, settings, tell=lambda what, _done, _total: beat(what)
    )
    rows = found[found["attack"] == "autoattack"]
    spent = rows.groupby("index")[["forward", "backward"]].sum().loc[contest.index.tolist()]
    there = rows[rows["epsilon"] == epsilon].set_index("index").loc[contest.index.tolist()]
    return Staged(
        contest.x,
        there["by"].tolist(),
        {},
        torch.tensor(spent["forward"].to_numpy()),
        torch.tensor(spent["backward"].to_numpy()),
        [],
    )
