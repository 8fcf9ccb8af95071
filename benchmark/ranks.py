"""Train one experiment on several devices: a process for each, and all are ended when one of them fails."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmark.devices import Devices
from benchmark.errors import BadInput
from benchmark.experiment import Experiment
from benchmark.processes import end_with_parent

Tell = Callable[[str, int, int], None]


class RankFailed(RuntimeError):
    """A process of several ended with an error; its own traceback is in the text."""


def train_on_ranks(experiment: Experiment, folder: Path, devices: Devices, tell: Tell, **where: Any) -> None:
    """Run :func:`benchmark.training.train` in one process per device of this machine, which write what one would.

    Args:
        where: handed on to :func:`benchmark.training.train`: ``data_root`` and the like.

    Raises:
        BadInput: what any of the processes raised.
        RankFailed: for any other error of one of them; the others are ended.
    """
    devices.check()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark.training"])
    meeting = devices.meeting_place()
    pipes: dict[Connection, Any] = {}
    try:
        for local in range(devices.devices):
            ours, theirs = context.Pipe(duplex=False)
            words = (experiment, folder, devices, meeting | {"LOCAL_RANK": str(local)}, where, theirs)
            process = context.Process(target=_rank, args=words)
            process.start()
            theirs.close()
            pipes[ours] = process
        _listen(pipes, tell)
    finally:
        for process in pipes.values():
            process.kill()
            process.join()


def _listen(pipes: dict[Connection, Any], tell: Tell) -> None:
    """Pass on progress until every process has said that it is done; raise what the first failed one raised."""
    waiting = list(pipes)
    while waiting:
        ready = wait(waiting)
        for pipe in [one for one in waiting if one in ready]:
            try:
                news = pipe.recv()
            except (EOFError, OSError):
                pipes[pipe].join()
                how = _ending(pipes[pipe].exitcode)
                raise RankFailed(f"one of the {len(pipes)} training processes {how}") from None
            if news is None:
                waiting.remove(pipe)
            elif isinstance(news, BaseException):
                raise news
            else:
                tell(*news)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _rank(
    experiment: Experiment,
    folder: Path,
    devices: Devices,
    environment: dict[str, str],
    where: dict[str, Any],
    pipe: Connection,
) -> None:
    """Be one of the processes that train together."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.environ.update(environment)
    import torch

    from benchmark.training import train

    torch.set_num_threads(1)
    first = environment["LOCAL_RANK"] == environment["NODE_RANK"] == "0"
    try:
        train(experiment, folder, devices=devices, tell=(lambda *news: pipe.send(news)) if first else None, **where)
    except BadInput as error:
        pipe.send(BadInput(str(error)))
    except BaseException as error:
        text = " ".join(str(error).split())
        pipe.send(RankFailed(f"{type(error).__name__}: {text}\n\n{traceback.format_exc()}"))
    else:
        pipe.send(None)
    pipe.close()
