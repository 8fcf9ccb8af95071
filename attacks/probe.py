"""Choose by measurement how many images are attacked at once: on CPUs more is not faster, on GPUs up to a point."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.modes import full_precision, without_parameter_gradients
from attacks.oracle import Oracle, Precision
from attacks.prepared import in_bfloat16, prepared

FIRST, LAST = 16, 4096  # sizes tried, in powers of two
TIMES = 3  # each; the least counts, because what disturbs a measurement only adds to it
TIE = 1.03  # a larger batch has to be faster by more than measurements differ

Clock = Callable[[], float]


@torch.inference_mode(mode=False)  # as in pgd: in inference mode nothing has a gradient
def fastest_slots(
    network: nn.Module, x: Tensor, *, precision: Precision = "fp32", timed: Callable[[int], float] | None = None
) -> int:
    """Time a step of a gradient attack on batches of 16, 32, 64 and so on, and give the size with the fastest images.

    It ends where two sizes in a row are no faster than the best, at the number of images, and where memory ends; if
    16 images are too many for that, 8 are tried, and so on. Seconds on a CPU, once for every model.

    Args:
        network: in eval mode; it is prepared as for an attack, but not compiled.
        x: images to attack ``(n, c, h, w)``.
        precision: of the search.
        timed: seconds of a step on so many images; default: :func:`seconds_of_a_step`.

    Raises:
        torch.OutOfMemoryError: where one image is too many.
    """
    x = x.contiguous().clone()
    with torch.random.fork_rng(devices=[]), full_precision(x), without_parameter_gradients(network):
        searched = prepared(network, x[:FIRST])
        searched = in_bfloat16(searched, x[:FIRST]) if precision == "bf16" else searched
        oracle = Oracle(network, searched, precision=precision)
        timed = timed or (lambda size: seconds_of_a_step(oracle, x[:size]))
        size, pace = min(FIRST, len(x)), dict[int, float]()
        while not pace:
            try:
                pace[size] = timed(size) / size
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
        whole = size == min(FIRST, len(x))  # else the next size up is known to be too large
        while whole and 2 * size <= min(len(x), LAST) and not _slower_twice(list(pace.values())):
            size *= 2
            try:
                pace[size] = timed(size) / size
            except torch.OutOfMemoryError:
                break
    return min(size for size, each in pace.items() if each <= TIE * min(pace.values()))


def seconds_of_a_step(oracle: Oracle, points: Tensor, clock: Clock | None = None) -> float:
    """Time forward and backward through the search network, after a round that the clock does not see.

    Args:
        points: images ``(b, c, h, w)``.
        clock: in seconds. Default: the wall's, and where PyTorch has one thread alone the process's, which others that
            use the machine do not disturb.
    """
    clock, taken = clock or _clock(points), []
    for _ in range(1 + TIMES):
        begun = clock()
        oracle.climb(points, lambda logits: logits.amax(1))
        taken.append(clock() - begun)
    return min(taken[1:])


def _slower_twice(pace: list[float]) -> bool:
    return len(pace) > 2 and min(pace[-2:]) > min(pace[:-2]) / TIE


def _clock(like: Tensor) -> Clock:
    if like.is_cuda:

        def on_device() -> float:
            torch.cuda.synchronize(like.device)
            return time.perf_counter()

        return on_device
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
