"""What a training costs, seen from outside: passes, seconds, device-hours, memory."""

import os
import resource
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from attacks.passes import Passes, counting


class Cost(pl.Callback):
    """Count passes, seconds and memory from outside; they go on counting after a resumption.

    Passes and seconds of training and of selection are held apart; device-hours are those of training alone. Passes
    through a method's companions count as its own. Passes are those of all devices together, seconds and the largest
    memory those of one.

    Attributes:
        seconds_of: epoch, counted from 0, to its ``seconds`` and ``selection_seconds``.
        memory: the largest memory so far in MiB, by what it is a figure of.
        growth: how much of it came on top of what was held when training began, likewise. A process that has PyTorch
            and the data set in it holds hundreds of MiB before it trains anything.
    """

    def __init__(self) -> None:
        self.training, self.selection = Passes(), Passes()
        self.training_seconds = self.selection_seconds = self.device_seconds = 0.0
        self.seconds_of: dict[int, dict[str, float]] = {}
        self.memory: dict[str, float] = {}
        self.growth: dict[str, float] = {}
        self.devices = 1
        self._before = 0.0
        self._epoch = Passes(), Passes()  # of this device, in training and in selection
        self._since = 0.0
        self._counters = ExitStack()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the memory before training."""
        self._before = held_memory()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count training from here."""
        self._epoch = Passes(), Passes()
        for network in (pl_module.network, *pl_module.companions()):
            self._counters.enter_context(counting(network, self._epoch[0]))
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count selection from here: Lightning validates inside the epoch."""
        self._counters.close()
        seconds = time.perf_counter() - self._since
        self.devices = trainer.world_size
        self.training_seconds += seconds
        self.device_seconds += seconds * self.devices
        self.seconds_of[trainer.current_epoch] = {"seconds": seconds}
        self._counters.enter_context(counting(pl_module.classifier(), self._epoch[1]))
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop counting selection; nothing of the epoch's training is left."""
        self._counters.close()
        seconds = time.perf_counter() - self._since
        self.selection_seconds += seconds
        self.seconds_of[trainer.current_epoch] |= {"selection_seconds": seconds}
        mine = torch.tensor([[passes.forward, passes.backward] for passes in self._epoch], device=pl_module.device)
        counts = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        for total, (forward, backward) in zip((self.training, self.selection), counts, strict=True):
            total.forward += forward
            total.backward += backward
        kind, memory = peak_memory()
        for table, figure in ((self.memory, memory), (self.growth, memory - self._before)):
            largest = trainer.strategy.reduce(torch.tensor(figure, device=pl_module.device), reduce_op="max")
            table[kind] = max(float(largest), table.get(kind, 0.0))

    def of_devices(self) -> dict[str, Any]:
        """Give what a card says of devices and memory: ``peak_memory_of`` names what was measured."""
        kind, _ = peak_memory()
        return {
            "devices": self.devices,
            "device_hours": round(self.device_seconds / 3600, 6),
            "peak_memory_mib": round(self.memory.get(kind, 0.0), 1),
            "peak_memory_of": kind,
            "memory_growth_mib": round(self.growth.get(kind, 0.0), 1),
        }

    def state_dict(self) -> dict[str, Any]:
        """Give the counts for a checkpoint."""
        return {
            "training": asdict(self.training),
            "selection": asdict(self.selection),
            "seconds": [self.training_seconds, self.selection_seconds, self.device_seconds],
            "seconds_of": self.seconds_of,
            "memory": self.memory,
            "growth": self.growth,
            "devices": self.devices,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the counts of a checkpoint."""
        self.training, self.selection = Passes(**state_dict["training"]), Passes(**state_dict["selection"])
        self.training_seconds, self.selection_seconds, self.device_seconds = state_dict["seconds"]
        self.seconds_of.update(state_dict["seconds_of"])  # the very mapping that others read
        self.memory, self.growth, self.devices = (state_dict[key] for key in ("memory", "growth", "devices"))


def peak_memory() -> tuple[str, float]:
    """Give what this process has used most so far, in MiB: of the GPU what was allocated, else its resident memory."""
    if torch.cuda.is_available():
        return "GPU memory allocated", torch.cuda.max_memory_allocated() / 2**20
    return "resident memory of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux: KiB


def held_memory() -> float:
    """Give what this process holds now, in MiB of the kind that :func:`peak_memory` gives, and begin a new peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError):  # not everywhere allowed; a peak of before then counts as training's
        Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
