"""Run tasks in worker processes: one per core with one thread on CPUs, one per device on GPUs.

Every task gets a process of its own, forked from a server that has imported PyTorch once, so that a crash or a kill
takes one task with it and memory comes back. Two PyTorch jobs with two threads each run many times slower on two cores
than two with one thread.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmark import user_code
from benchmark.errors import BadInput
from benchmark.evaluation_settings import Evaluation
from benchmark.processes import end_with_parent
from benchmark.tasks import Places, Task


@dataclass
class Outcome:
    """How a task ended; ``error`` is one line, ``trace`` the whole traceback, both empty where it went well."""

    error: str = ""
    trace: str = ""
    bad_input: bool = False


@dataclass
class _Running:
    task: Task
    process: Any
    pipe: Connection
    slots: list[int]
    outcome: Outcome | None = field(default=None)


class Watcher:
    """What a runner tells while it works; a display overrides what it shows."""

    def started(self, task: Task) -> None:
        """Tell that ``task`` has begun."""

    def progressed(self, task: Task, what: str, done: int, total: int) -> None:
        """Tell how far ``task`` is; ``total`` 0 means unknown."""

    def ended(self, task: Task, outcome: Outcome) -> None:
        """Tell that ``task`` is over."""


def workers() -> int:
    """Give the number of worker processes that suit this machine."""
    return devices() or len(os.sched_getaffinity(0))


def devices() -> int:
    """Count GPUs without starting CUDA in this process, which could not be forked then."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def visible(gpu: int) -> str:
    """Name the GPU with this number among those that we were given, as ``CUDA_VISIBLE_DEVICES`` names it."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[gpu] if given else str(gpu)


def run(
    tasks: Sequence[Task], places: Places, settings: Evaluation, *, processes: int, watcher: Watcher = Watcher()
) -> dict[Task, Outcome]:
    """Perform all ``tasks``, at most ``processes`` at a time; a failed one does not stop the others.

    Attacks wait for their experiment's training; where that failed they are not begun. A student waits for its teacher,
    and fails with it. AutoAttack goes before further trainings, the later trainings of a suite before the first,
    natural one, and the cheap attacks last: they are small, and fill all processes to the end.

    Returns:
        each task begun, and each student that could not be, in the order of ending, with its outcome.
    """
    gpus = devices()
    room = max(processes, places.devices.devices)
    waiting, running, ended = list(tasks), list[_Running](), dict[Task, Outcome]()
    failed: dict[str, Outcome] = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark.tasks"])
    try:
        while waiting or running:
            for task in _untaught(waiting, failed):
                ended[task] = failed[task.experiment.name]
                watcher.started(task)
                watcher.ended(task, ended[task])
            waiting = [t for t in waiting if t.experiment.name not in failed]
            training = {r.task.experiment.name for r in running if not r.task.attacks}
            to_train = {t.experiment.name for t in waiting if not t.attacks} | training
            ready = [t for t in waiting if t.waits_for is None or t.waits_for.name not in to_train]
            ready.sort(key=_dearest_first(tasks))
            for task in ready:
                free = sorted(set(range(room)) - {slot for r in running for slot in r.slots})
                together = room if places.devices.nodes > 1 else places.devices.devices  # nodes meet at one address
                wanted = 1 if task.attacks else together
                if wanted > len(free):
                    break  # what comes first waits for room, or a training on all devices would never begin
                waiting.remove(task)
                running.append(_start(context, task, places, settings, free[:wanted], gpus))
                watcher.started(task)
            if not running:
                break
            for done in _listen(running, watcher):
                running.remove(done)
                outcome = done.outcome or _died(done.process)
                ended[done.task] = outcome
                if outcome.error and not done.task.attacks:
                    failed[done.task.experiment.name] = outcome
                watcher.ended(done.task, outcome)
    finally:
        for left in running:
            left.process.kill()
            left.process.join()
    return ended


def _untaught(waiting: Sequence[Task], failed: dict[str, Outcome]) -> list[Task]:
    """List the trainings whose teacher failed, and enter them among the failures."""
    found = []
    for task in waiting:
        teacher = None if task.attacks else task.waits_for
        if teacher is not None and teacher.name in failed:
            reason = failed[teacher.name]
            failed[task.experiment.name] = dataclasses.replace(
                reason, error=f"its teacher {teacher.row} failed: {reason.error}"
            )
            found.append(task)
    return found


def _dearest_first(tasks: Sequence[Task]) -> Callable[[Task], tuple[int, int]]:
    order = {task: place for place, task in enumerate(tasks)}
    return lambda task: (0 if "autoattack" in task.attacks else 2 if task.attacks else 1, -order[task])


def _start(context: Any, task: Task, places: Places, settings: Evaluation, slots: list[int], gpus: int) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    seen = ",".join(visible(slot % gpus) for slot in slots) if gpus else None
    process = context.Process(target=_work, args=(task, places, settings, theirs, seen), name=task.label)
    process.start()
    theirs.close()
    return _Running(task, process, ours, slots)


def _listen(running: list[_Running], watcher: Watcher) -> Iterator[_Running]:
    """Wait for news from any process, pass it on, and yield the processes that are over."""
    by_pipe = {one.pipe: one for one in running}
    for pipe in wait(list(by_pipe), timeout=1.0):
        one = by_pipe[pipe]  # type: ignore[index] # they are the connections that were handed in
        try:
            news = one.pipe.recv()
        except (EOFError, OSError):
            one.process.join()
            yield one
            continue
        if isinstance(news, Outcome):
            one.outcome = news
        else:
            watcher.progressed(one.task, *news)


def _died(process: Any) -> Outcome:
    code = process.exitcode or 0
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = ", most likely out of memory: lower the batch size or --workers" if code == -signal.SIGKILL else ""
    return Outcome(f"the worker process was {how}{hint}", f"no traceback: the worker process was {how}\n")


def _work(task: Task, places: Places, settings: Evaluation, pipe: Connection, gpus: str | None) -> None:
    """Perform one task in a process of its own, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    import torch

    torch.set_num_threads(1)

    def tell(what: str, done: int, total: int) -> None:
        pipe.send((what, done, total))

    try:
        task.perform(places, settings, tell)
        outcome = Outcome()
    except BadInput as error:
        outcome = Outcome(_place(error, task) + str(error), traceback.format_exc(), bad_input=True)
    except torch.cuda.OutOfMemoryError as error:
        outcome = Outcome(f"out of GPU memory: lower the batch size ({_line(error)})", traceback.format_exc())
    except MemoryError:
        outcome = Outcome("out of memory: lower the batch size or --workers", traceback.format_exc())
    except (Exception, SystemExit) as error:  # a user's file may call for an exit
        outcome = Outcome(_place(error, task) + user_code.described(error), traceback.format_exc())
    with contextlib.suppress(OSError):
        pipe.send(outcome)
        pipe.close()


def _place(error: BaseException, task: Task) -> str:
    """Say where in a user's own file it happened, for those who wrote one."""
    place = user_code.place(error, *(code.path for code in task.experiment.user_code.values()))
    return f"{place}: " if place else ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
