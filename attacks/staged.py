"""Run several attacks one after the other, each on the images that held so far, on slots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks import compiling
from attacks.apgd import APGD
from attacks.checks import check_images, check_logits, check_unchanged
from attacks.engine import Attack, Job, Outcome, run
from attacks.errors import BadInput
from attacks.modes import full_precision, products, without_parameter_gradients
from attacks.oracle import Oracle, Precision
from attacks.passes import networks_in
from attacks.prepared import in_bfloat16, prepared
from attacks.tally import Progress, Tally
from attacks.threat import ThreatModel

SLOTS = 64  # on CPUs more is not faster: the images of a batch have to fit into the cache


class Stage(NamedTuple):
    """One attack and what each image that holds is given of it.

    Attributes:
        phases: restarts, or target classes.
        work: forward passes, about, that a phase costs; for forecasts.
        repeats: forward passes over which a gradient is averaged.
    """

    name: str
    attack: Attack[Any]
    phases: int
    work: int
    repeats: int = 1


@dataclass(frozen=True)
class Staged:
    """What the attacks found.

    Attributes:
        adversarial: images ``(n, c, h, w)``, the clean image where nothing was found.
        by: per image the attack that fooled the network: ``clean`` if it erred before, ``""`` if it held.
        survivors: images still classified correctly, keyed ``clean`` and then by attack, in order.
        forward: passes spent on each image ``(n,)``; ``backward`` likewise.
        log: remarks on the network, and on what went otherwise than planned.
    """

    adversarial: Tensor
    by: list[str]
    survivors: dict[str, int]
    forward: Tensor
    backward: Tensor
    log: list[str]


@torch.inference_mode(mode=False)  # as in pgd: in inference mode nothing has a gradient
def attack_in_stages(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    plan: Callable[[int], Sequence[Stage]],
    *,
    index: Tensor | None = None,
    slots: int | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
    finished: Mapping[str, Sequence[Outcome]] | None = None,
    keep: Callable[[str, Sequence[Outcome]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Staged:
    """Attack the images that hold with one stage after the other.

    An image is fooled when the network as it was given, in full precision, misclassifies its picture. The caller's
    random state, gradients and parameter flags are as before when it returns.

    Args:
        network: images in the range of ``threat`` to logits ``(n, k)``, in eval mode.
        x: clean images ``(n, c, h, w)``; ``y`` their labels.
        plan: the number of classes to the stages; their names differ.
        index: sample indices ``(n,)`` that key the draws, by default 0 to n - 1: what is found depends on neither slots
            nor order, but for the last bits of logits.
        slots: images in a batch, default :data:`SLOTS`, eight times that on a GPU; halved where memory is too small.
        precision: of the search: ``fp32`` is strict; ``tf32`` and ``bf16`` are faster and find nearly the same. What
            searches without gradients (Square) accepts in full precision alone.
        compiled: the network and Auto-PGD's update, through ``torch.compile``; pays on GPUs and large networks.
        finished: outcomes of an earlier, interrupted call with the same arguments, by attack; they are not repeated.
        keep: given outcomes as they arrive, every few seconds, for the next call's ``finished``.
        progress: told how it goes, at most twice a second.

    Raises:
        BadInput: for images, labels or a network that :mod:`attacks.checks` refuses, or by ``plan``.
    """
    check_images(x, y, threat.low, threat.high)
    if any(module.training for module in network.modules()):
        raise BadInput("the network is attacked as it will be used, but found it in train mode: call network.eval()")
    given, x, y = x, x.contiguous().clone(), y.clone()  # of inference tensors autograd would keep none
    indices = list(range(len(x))) if index is None else index.tolist()
    on_cpu = x.device.type == "cpu"
    slots = slots or SLOTS * (1 if on_cpu else 8)
    with torch.random.fork_rng(devices=[]), full_precision(x), without_parameter_gradients(network):
        with torch.no_grad(), products("ieee"):
            logits = torch.cat([network(part) for part in x.split(slots)])
        check_unchanged(x, given)
        stages = plan(check_logits(logits, x, y))
        with products("ieee"):  # it compares logits
            searched = prepared(network, x[:slots], to_compile=compiled)
            searched = in_bfloat16(searched, x[:slots]) if precision == "bf16" else searched
        reason = ""
        if compiled:
            searched, reason = compiling.compiled(searched, x[:slots], precision)
        work = {stage.name: stage.work * stage.phases for stage in stages}
        tally = Tally(logits.argmax(1) == y, work, progress, keep)
        tally.forward += len(networks_in(network))
        tally.log += [reason] if reason else []
        ranking = logits.sort(dim=1)[1]
        for stage in stages:
            alive = tally.alive()
            queue = [Job(row, phase) for phase in range(stage.phases) for row in alive]
            left = tally.begin(stage.name, queue, finished or {})
            attack = stage.attack
            if compiled and not reason and isinstance(attack, APGD):
                attack = attack.compiled()
            oracle = Oracle(network, searched, precision=precision, repeats=stage.repeats)
            while left:
                size = min(slots, len(alive))
                beat, look_every = partial(tally.beat, oracle, size), 1 if on_cpu else 8
                try:
                    run(
                        attack,
                        oracle,
                        x,
                        y,
                        indices,
                        ranking,
                        left,
                        slots=size,
                        done=tally.done,
                        beat=beat,
                        look_every=look_every,
                    )
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    slots = size // 2
                    tally.log.append(f"{stage.name}: out of memory with {size} slots, goes on with {slots}")
                left = tally.left()
            tally.end(stage.name)
    return Staged(tally.pictures(x), tally.by, tally.survivors, tally.forward, tally.backward, tally.log)
