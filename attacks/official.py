"""AutoAttack through its authors' package ``pyautoattack``: seeded, observed from outside, leaving no trace behind."""

import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attacks.checks import check_classifier, check_images
from attacks.errors import BadInput
from attacks.modes import without_parameter_gradients
from attacks.passes import Passes, counting, networks_in
from attacks.staged import Staged
from attacks.threat import ThreatModel

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def version() -> str:
    """Name the engine for tables: the package's version."""
    return f"official {importlib.metadata.version('pyautoattack')}"


@torch.inference_mode(mode=False)  # as in pgd: in inference mode nothing has a gradient
def autoattack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    batch_size: int = 250,
    progress: Callable[[str, int], None] | None = None,
    only: Sequence[str] = STAGES,
    parameter_gradients: bool = False,
) -> Staged:
    """Run AutoAttack standard: APGD-CE, targeted APGD on DLR, targeted FAB, Square, each on the survivors of the last.

    The caller's random state, gradients and parameter flags are as before when it returns.

    Args:
        network: images in [0, 1] to logits ``(n, k)``, in eval mode, at least four classes.
        seed: of every attack; the official package seeds by the clock unless it is given one.
        batch_size: images in one call of an attack. Verdicts near the boundary may depend on it.
        progress: told (attack, survivors) as each attack ends a batch.
        only: these of its attacks, in its order; for measurements.
        parameter_gradients: leave the parameters as they are, so that FAB fills their gradients too, which is slower:
            what who calls the package by hand meets.

    Raises:
        BadInput: for images, labels or a network that :mod:`attacks.checks` refuses, another range than [0, 1], or
            fewer than four classes, where the targeted DLR loss is not defined.
    Source: Croce and Hein, ICML 2020, arXiv:2003.01690; package by the authors, github.com/fra31/auto-attack.
    """
    from pyautoattack import AutoAttack

    stages = [stage for stage in STAGES if stage in only]
    x = x.contiguous()  # the package uses view(), which images stored channels-last do not have
    if (threat.low, threat.high) != (0.0, 1.0):
        raise BadInput(f"AutoAttack works on pixels in [0, 1], but the threat has [{threat.low:g}, {threat.high:g}]")
    check_images(x, y)
    if x.dtype != torch.float32:
        raise BadInput(f"AutoAttack works in torch.float32, but the images are {x.dtype}: use x.float()")
    # The package seeds the current CUDA device, even where it attacks on another one or on the CPU.
    touched = {torch.cuda.current_device(), x.device.index} if torch.cuda.is_initialized() else set()
    devices = [device for device in touched if device is not None]
    with (
        torch.random.fork_rng(devices=devices),
        _kept_log() as log,
        _kept_trace(),
        nullcontext() if parameter_gradients else without_parameter_gradients(network),
        counting(network) as passes,
    ):
        for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            classes = check_classifier(network, part, labels)
        if classes < 4:
            raise BadInput(f"AutoAttack standard needs at least 4 classes (targeted DLR), but found {classes}")
        attack = AutoAttack(network, norm=_NORMS[threat.norm], eps=threat.epsilon, seed=seed, device=x.device)
        attack.attacks_to_run = stages
        targets = min(9, classes - 1)
        attack.fab.n_target_classes = min(attack.fab.n_target_classes, targets)
        attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, targets)
        watch = _Watch(network, x, y, passes, batch_size, progress, stages)
        attack.get_logits = watch.logits
        for stage, part in zip(STAGES, (attack.apgd, attack.apgd_targeted, attack.fab, attack.square), strict=True):
            watch.follow(stage, part)
        adversarial, _ = attack.run_standard_evaluation(x, y, batch_size=batch_size)
    return watch.result(adversarial.detach(), log)


class _Watch:
    """Stand beside the package's four attacks and note which image each of them fooled, and what it cost."""

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        passes: Passes,
        batch_size: int,
        progress: Callable[[str, int], None] | None,
        stages: Sequence[str],
    ) -> None:
        self.stages = stages
        self.network, self.x, self.y, self.passes = network, x, y, passes
        self.batch_size, self.progress = batch_size, progress
        self.forward, self.backward = torch.full((len(x),), float(len(networks_in(network)))), torch.zeros(len(x))
        self.by: list[str] = []
        self.survivors: dict[str, int] = {}
        self.clean: list[Tensor] = []
        self.attacked: tuple[str, list[int]] | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Answer the package's own questions, so that both see the same verdicts even where a network is random.

        It asks about the clean images, in batches and in order, before the first attack, and then after each attack of
        a batch about the images that came out.
        """
        logits: Tensor = self.network(x)
        predictions = logits.max(dim=1)[1]
        if self.attacked is None:
            self.clean.append(predictions)
            return logits
        stage, rows = self.attacked
        self.attacked = None
        fooled = predictions != self.y[rows]
        for row in torch.tensor(rows)[fooled.cpu()].tolist():
            self.by[row] = stage
        self.survivors[stage] = self.by.count("")
        if self.progress is not None:
            self.progress(stage, self.survivors[stage])
        return logits

    def _note_clean(self) -> None:
        if not self.by:
            batches = -(-len(self.x) // self.batch_size)
            predictions = torch.cat(self.clean[-batches:])  # before them it asked about the first batch, for its checks
            self.by = ["" if right else "clean" for right in (predictions == self.y).tolist()]
            self.survivors["clean"] = self.by.count("")

    def follow(self, stage: str, part: Any) -> None:
        """Put a note-taker around ``part.perturb``; the package gives it the survivors in ascending order."""
        perturb = part.perturb
        queue: list[int] | None = None

        def noted(x: Tensor, y: Tensor) -> Tensor:
            nonlocal queue
            self._note_clean()
            if queue is None:
                queue = [i for i, by in enumerate(self.by) if by == ""]
            rows, queue = queue[: self.batch_size], queue[self.batch_size :]
            if not torch.equal(x, self.x[rows]):
                raise RuntimeError(f"pyautoattack no longer hands {stage} its survivors in order: pin version 0.2")
            before = Passes(self.passes.forward, self.passes.backward)
            adversarial: Tensor = perturb(x, y)
            self.forward[rows] += (self.passes.forward - before.forward) / len(rows)
            self.backward[rows] += (self.passes.backward - before.backward) / len(rows)
            self.attacked = (stage, rows)
            return adversarial

        part.perturb = noted

    def result(self, adversarial: Tensor, log: list[str]) -> Staged:
        self._note_clean()
        left = self.survivors["clean"]
        for stage in self.stages:  # an attack that had nobody left to attack reports that nobody is left
            left = self.survivors[stage] = self.survivors.get(stage, left)
        ordered = {stage: self.survivors[stage] for stage in ("clean", *self.stages)}
        return Staged(adversarial, self.by, ordered, self.forward, self.backward, log)


@contextmanager
def _kept_log() -> Iterator[list[str]]:
    """Collect what the package logs (its checks' warnings included), and keep it off the terminal."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname}: {record.getMessage()}")

    logger, handler = logging.getLogger("auto-attack"), Keep()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _kept_trace() -> Iterator[None]:
    """Give a debugger or coverage tool its trace function back: one of the package's checks takes it away.

    That check also keeps its counts for good, so that one dynamic network would mark every later one: start from 0.
    """
    from pyautoattack import checks

    trace = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        sys.settrace(trace)
