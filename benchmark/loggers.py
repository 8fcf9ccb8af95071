"""What is told of a training while it runs: ``history.csv`` always, TensorBoard and Weights & Biases where asked for.

None of it is part of an experiment's identity: the weights are the same whoever listens.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from benchmark.errors import BadInput
from benchmark.storage import write_text
from methods.alarm import FGSM, PGD10

HISTORY = "history.csv"
_FIRST = ("epoch", "loss", "held_out_robust", "held_out_clean", FGSM, PGD10)
_LAST = ("learning_rate", "epsilon", "seconds", "selection_seconds")


class History(pl.Callback):
    """Write ``history.csv``, a line per epoch, whole after every epoch.

    A line is what the method remembers of its epoch, with the learning rate and the epsilon of the epoch's last step
    and what ``seconds`` says of it. All of that goes with the checkpoint, so that a resumed run repeats no line.

    Args:
        seconds: epoch, counted from 0, to what it took; read anew each time.
    """

    def __init__(self, path: Path, seconds: Mapping[int, Mapping[str, float]]) -> None:
        self.path, self.seconds = path, seconds
        self.pace: dict[int, dict[str, float]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the learning rate and the radius in force at this step."""
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.pace[trainer.current_epoch] = {"learning_rate": rate, "epsilon": pl_module.present_threat().epsilon}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the file, and tell the loggers what the method does not tell them itself."""
        lines = [{**line, **self._beside(int(line["epoch"]))} for line in pl_module.history_so_far()]
        if trainer.loggers:
            pl_module.log_dict(self._beside(trainer.current_epoch))
        if trainer.is_global_zero:
            write_text(self.path, as_csv(lines))

    def _beside(self, epoch: int) -> dict[str, float]:
        return {**self.pace.get(epoch, {}), **self.seconds.get(epoch, {})}

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run could not find out again."""
        return {"pace": self.pace}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.pace = state_dict["pace"]


def as_csv(lines: Sequence[Mapping[str, float]]) -> str:
    """Lay lines out as CSV: what all methods have first, then the method's own notes, then rates and seconds."""
    found = dict.fromkeys(name for line in lines for name in line)
    own = [name for name in found if name not in _FIRST + _LAST]
    columns = [name for name in (*_FIRST, *own, *_LAST) if name in found]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for line in lines:
        table.writerow([f"{line[name]:.10g}" if name in line else "" for name in columns])
    return text.getvalue()


def _tensorboard(name: str, folder: Path, settings: dict[str, Any]) -> Logger:
    return TensorBoardLogger(folder, name="", version="tensorboard", flush_secs=10)


def _wandb(name: str, folder: Path, settings: dict[str, Any]) -> Logger:
    os.environ.setdefault("WANDB_SILENT", "true")  # the display of a suite's progress has the terminal
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(project="atbench", name=name, id=name, resume="allow", save_dir=folder, config=settings)


CHOICES: dict[str, Callable[[str, Path, dict[str, Any]], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def check(names: Sequence[str]) -> None:
    """Make sure that the loggers asked for are there; raises :class:`BadInput` with the command that installs one."""
    for name in names:
        if name not in CHOICES:
            raise BadInput(f"--logger is one of {', '.join(CHOICES)}, but found {name!r}")
        if find_spec(name) is None:
            raise BadInput(f"--logger {name} needs the package {name}, which is not installed: pip install {name}")


@contextmanager
def listening(names: Sequence[str], experiment: str, folder: Path, settings: dict[str, Any]) -> Iterator[list[Logger]]:
    """Give Lightning's loggers by name, for the time of one training; they write under ``folder``.

    ``settings`` go to those that show a run's settings. Weights & Biases obeys its own WANDB_MODE, such as ``offline``.
    """
    check(names)
    loggers = [CHOICES[name](experiment, folder, settings) for name in dict.fromkeys(names)]
    try:
        yield loggers
    finally:
        for logger in loggers:
            run = getattr(logger, "experiment", None)
            finish = getattr(run, "finish", None)  # a worker's end does not run what W&B leaves for an exit
            if finish is not None:
                finish()
