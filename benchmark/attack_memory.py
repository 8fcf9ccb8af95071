"""Measure what an attack needs of memory: in a process of its own, because in a shared one nobody's peak is known."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import torch

from attacks.oracle import Precision
from benchmark.contestants import QUICK, SWEEP, Contestant, contestants
from benchmark.cost import held_memory, peak_memory

if TYPE_CHECKING:
    from benchmark.attack_speed import Candidate

BEGINNING = 2.0  # seconds of each attack: its first steps need as much memory as any


class _Enough(Exception):
    """Ends an attack that has shown what it needs."""


def memory_growth(candidate: "Candidate", contestant: Contestant) -> float:
    """Give by how many MiB the peak of a fresh process grows while ``contestant`` begins every attack on one batch.

    The kind of memory is that of :func:`benchmark.cost.peak_memory`. NaN where the process dies for want of it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_growth, candidate, contestant.name).result()
        except BrokenProcessPool:
            return float("nan")


def _growth(candidate: "Candidate", name: str) -> float:
    contest = candidate.contest()
    size = contest.batch_size
    contest = replace(contest, images=contest.images.take(torch.arange(min(size, len(contest.images)))))
    everyone = contestants(get_args(Precision), stock=True, sweep=True)
    one = next(one for one in everyone if one.name == name)
    pixels = contest.x.clone().requires_grad_()
    contest.network(pixels[:1]).sum().backward()  # what the libraries need once is nobody's
    before = held_memory()
    for attack in contest.only[:1] if name in (QUICK, SWEEP) else contest.only:
        begun: list[float] = []

        def beat(_what: str, begun: list[float] = begun) -> None:
            begun.append(time.monotonic())
            if begun[-1] - begun[0] > BEGINNING:
                raise _Enough

        try:
            one.run(replace(contest, only=(attack,)), beat)
        except _Enough:
            continue
    return peak_memory()[1] - before
