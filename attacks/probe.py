"""Choose by measurement how many images are attacked at once: on CPUs more is not faster, on GPUs up to a point."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.modes import full_precision, without_parameter_gradients
from attacks.oracle import Oracle, Precision
from attacks.prepared import prepared

FIRST, LAST = 16, 4096  # sizes tried, in powers of two
TIMES = 3  # each; the least counts, because what disturbs a measurement only adds to it
TIE = 1.03  # a larger batch has to be faster by more than measurements differ


@torch.inference_mode(mode=False)  # as in pgd: in inference mode nothing has a gradient
def fastest_slots(
    network: nn.Module,
    x: Tensor,
    *,
    precision: Precision = "fp32",
    clock: Callable[[], float] | None = None,
) -> int:
    """Time a step of a gradient attack on batches of 16, 32, 64 and so on, and give the size with the fastest images.

    It ends where two sizes in a row are no faster than the best, at the number of images, and where memory ends; if
    16 images are too many for it, 8 are tried, and so on. Seconds on a CPU, once for every model.

    Args:
        network: in eval mode; it is prepared as for an attack, but not compiled.
        x: images to attack ``(n, c, h, w)``.
        precision: of the search.
        clock: in seconds. Default: the wall's, and where PyTorch has one thread alone the process's, which others that
            use the machine do not disturb.
    """
    clock = clock or _clock(x)
    x = x.contiguous().clone()
    with torch.random.fork_rng(devices=[]), full_precision(x), without_parameter_gradients(network):
        oracle = Oracle(network, prepared(network, x[:FIRST]), precision=precision)
        pace: dict[int, float] = {}
        size = first = min(FIRST, len(x))
        while size not in pace and size <= min(len(x), LAST):
            try:
                pace[size] = _seconds(oracle, x[:size], clock) / size
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                if pace:
                    break
                size = first = size // 2
                continue
            if size < first or _slower_twice(list(pace.values())):
                break
            size *= 2
    return min(size for size, each in pace.items() if each <= TIE * min(pace.values()))


def _seconds(oracle: Oracle, points: Tensor, clock: Callable[[], float]) -> float:
    """Time forward and backward through the search network, after a round that the clock does not see."""
    taken = []
    for _ in range(1 + TIMES):
        begun = clock()
        oracle.climb(points, lambda logits: logits.amax(1))
        taken.append(clock() - begun)
    return min(taken[1:])


def _slower_twice(pace: list[float]) -> bool:
    return len(pace) > 2 and min(pace[-2:]) > min(pace[:-2]) / TIE


def _clock(like: Tensor) -> Callable[[], float]:
    if like.is_cuda:

        def on_device() -> float:
            torch.cuda.synchronize(like.device)
            return time.perf_counter()

        return on_device
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
