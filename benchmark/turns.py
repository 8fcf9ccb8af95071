"""Let long computations take turns in short slices of one process, so that what slows the machine slows all alike.

Each runs in a thread of its own, but only while the others stand still: no two ever share a core or a clock.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch

SLICE = 1.0  # seconds, of the computation whose share is 1

Pause = Callable[[], None]
Result = TypeVar("Result")


class Taken(NamedTuple, Generic[Result]):
    """What a computation gave, and the seconds it took without the others': of all cores, and on the wall clock."""

    result: Result
    cpu: float
    wall: float


def take_turns(
    computations: Sequence[Callable[[Pause], Result]], shares: Sequence[float] | None = None, *, slice: float = SLICE
) -> list[Taken[Result]]:
    """Run all to their ends, in turns; every other round goes backwards.

    PyTorch's generators and its choice of short products belong to whoever's turn it is.

    Args:
        computations: each is given a function, and calls it often: there the next one's turn may come.
        shares: of each in a round, such that all end at about the same time; default: equal ones.
        slice: seconds of a share of 1.

    Raises:
        Whatever one of them raises; the others are stopped where they are.
    """
    seats = [
        _Seat(computation, slice * share)
        for computation, share in zip(computations, shares or [1.0] * len(computations), strict=True)
    ]
    own, running = _Surroundings(), list(seats)
    try:
        while running:
            for seat in running:
                seat.take()
            running = [seat for seat in reversed(running) if not seat.over]
    finally:
        for seat in seats:
            seat.stop()
        own.enter()
    return [Taken(seat.result, seat.cpu, seat.wall) for seat in seats]


class _Stopped(BaseException):
    """Ends a computation that nobody waits for any more; not an Exception, so that nothing in between catches it."""


class _Seat:
    """One computation with its thread, its surroundings and its clocks."""

    def __init__(self, computation: Callable[[Pause], Any], length: float) -> None:
        self.cpu = self.wall = 0.0
        self.over = False
        self.result: Any = None
        self._computation, self._length = computation, length
        self._error: BaseException | None = None
        self._stopped = False
        self._begun = 0.0
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._surroundings = _Surroundings()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def take(self) -> None:
        """Let it go on until its slice is over, or it is."""
        self._surroundings.enter()
        cpu, self._begun = time.process_time(), time.perf_counter()
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._back.acquire()
        _finish_on_device()
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - self._begun
        self._surroundings = _Surroundings()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread if it is at work."""
        self._stopped = True
        if self._thread.ident is not None:
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.result = self._computation(self._pause)
        except BaseException as error:
            self._error = error
        self.over = True
        self._back.release()

    def _pause(self) -> None:
        if not self._stopped and time.perf_counter() - self._begun >= self._length:
            self._back.release()
            self._go.acquire()
        if self._stopped:
            raise _Stopped


class _Surroundings:
    """What computations of one process share and might change: the state of generators, and short products."""

    def __init__(self) -> None:
        self._generator = torch.get_rng_state()
        self._device_generator = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._short = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def enter(self) -> None:
        """Put everything as it was."""
        torch.set_rng_state(self._generator)
        if self._device_generator is not None:
            torch.cuda.set_rng_state(self._device_generator)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._short


def _finish_on_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
