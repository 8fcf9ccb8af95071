"""Keep adversarial pictures small: whole steps away from the test image, one compressed file per batch of verdicts.

``evidence/<experiment>/<checkpoint>/<attack>@<epsilon>/part-00000.pictures.npz`` stands beside the verdicts
``part-00000.parquet`` and holds one picture for each image that this attack fooled at this epsilon, so that every such
verdict can be checked by itself; images that are misread as they stand need none. The strongest picture of an image is
that of the attack whose verdict has the largest margin. A picture is

    clamp(x + steps * step, 0, 1)  in float32,

``x`` being the test image in [0, 1]. For Linf, steps are int8 and a step is epsilon / 127. For L2 and L1, steps are
int16, a step is the largest change of this picture / 32,767, and changes are rounded towards 0, so that the picture
comes closer to the image in every norm. Where rounding would cost the misclassification, the picture itself is kept in
float32.
"""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.storage import write_bytes

Floats = NDArray[np.float32]
Steps = NDArray[np.int8] | NDArray[np.int16]
_MOST = {"linf": 127, "l2": 32_767, "l1": 32_767}  # steps in either direction
_ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


@dataclass(frozen=True, eq=False)
class Pictures:
    """The adversarial pictures of one batch.

    Args:
        index: of the images in the test set, int32 ``(n,)``.
        rounded: bool ``(n,)``, whether a picture is kept in steps; those that are not stand in ``exact``, in order.
        steps, step: of the rounded ones, int8 or int16 ``(m, c, h, w)`` and float32 ``(m,)``, in pixel units.
        exact: float32 ``(n - m, c, h, w)``, in [0, 1].
    """

    index: NDArray[np.int32]
    rounded: NDArray[np.bool_]
    steps: Steps
    step: Floats
    exact: Floats

    def of(self, x: Floats) -> Floats:
        """Give the pictures ``(n, c, h, w)`` made of the test images ``x`` with these indices."""
        pictures = np.empty_like(x)
        pictures[self.rounded] = moved(x[self.rounded], self.steps, self.step)
        pictures[~self.rounded] = self.exact
        return pictures

    def rows(self, start: int, stop: int) -> "Pictures":
        """Give the pictures from ``start`` up to ``stop``, so that not all need unfold at once."""
        before, now = self.rounded[:start], self.rounded[start:stop]
        some = slice(int(before.sum()), int(before.sum() + now.sum()))
        others = slice(int((~before).sum()), int((~before).sum() + (~now).sum()))
        return Pictures(self.index[start:stop], now, self.steps[some], self.step[some], self.exact[others])


def in_steps(adversarial: Floats, x: Floats, norm: str, epsilon: float) -> tuple[Steps, Floats]:
    """Express how ``adversarial`` differs from ``x``, both ``(n, c, h, w)``, in steps; returns steps and step."""
    change = adversarial - x
    if norm == "linf":
        step = np.full(len(x), epsilon / 127, np.float32)
    else:
        step = (np.abs(change).reshape(len(x), -1).max(1, initial=0) / _MOST[norm]).astype(np.float32)
    step = np.maximum(step, np.finfo(np.float32).tiny)  # of a picture that was not moved
    counted = change / step[:, None, None, None]
    whole = np.rint(counted) if norm == "linf" else np.trunc(counted)
    kind = np.int8 if norm == "linf" else np.int16
    return whole.clip(-_MOST[norm], _MOST[norm]).astype(kind), step


def moved(x: Floats, steps: Steps, step: Floats) -> Floats:
    """Take ``steps`` of length ``step`` ``(n,)`` away from ``x``: the same bits wherever it is computed."""
    return np.clip(x + steps * step[:, None, None, None], np.float32(0), np.float32(1))


def distance(pictures: Floats, x: Floats, norm: str) -> NDArray[np.float64]:
    """Measure how far each picture lies from its image, ``(n,)``, in float64."""
    change = (pictures.astype(np.float64) - x).reshape(len(x), -1)
    return np.linalg.norm(change, _ORDER[norm], axis=1) if len(x) else np.zeros(0)


def farthest_allowed(epsilon: float) -> float:
    """The distance up to which a picture counts as inside the ball: float32 pixels cannot keep it to the last bit."""
    return epsilon * (1 + 1e-5) + 1e-6


def beside(part: Path) -> Path:
    """Return where the pictures of a part file lie."""
    return part.with_name(f"{part.stem}.pictures.npz")


def write(path: Path, pictures: Pictures) -> Path:
    """Write pictures, whole or not at all: equal pictures give equal bytes. Raises BadInput when the disk is full."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **vars(pictures))
    return write_bytes(path, buffer.getvalue())


def read(path: Path, rows: int, shape: tuple[int, ...]) -> Pictures:
    """Read the pictures of a batch of ``rows`` images ``(c, h, w)``; nothing in the file is executed.

    Raises:
        BadInput: the file is missing, damaged, or holds something else.
    """
    most = rows * (4 * math.prod(shape) + 16) + 10_000  # a small file may claim to unfold into a huge array
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(member.file_size for member in packed.infolist()) > most:
                raise BadInput(f"expected at most {rows} pictures of shape {shape}, found more in {path}")
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"expected pictures, found no file {path}; {_AGAIN}") from None
    except Exception as error:  # a damaged archive fails in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"expected a whole file of pictures, found a damaged one ({reason}): {path}; {_AGAIN}") from None
    if found.keys() != Pictures.__dataclass_fields__.keys() or not _fits(pictures := Pictures(**found), shape):
        raise BadInput(f"expected pictures of shape {shape} as atbench writes them, found others: {path}; {_AGAIN}")
    return pictures


_AGAIN = "delete it with the part file beside it and run again, only that batch is repeated"


def _fits(pictures: Pictures, shape: tuple[int, ...]) -> bool:
    count, whole = len(pictures.index), int(pictures.rounded.sum())
    kinds = [pictures.index.dtype, pictures.rounded.dtype, pictures.step.dtype, pictures.exact.dtype]
    return (
        kinds == [np.int32, np.bool_, np.float32, np.float32]
        and pictures.steps.dtype in (np.int8, np.int16)
        and pictures.index.shape == pictures.rounded.shape == (count,)
        and pictures.step.shape == (whole,)
        and pictures.steps.shape == (whole, *shape)
        and pictures.exact.shape == (count - whole, *shape)
        and len(np.unique(pictures.index)) == count
    )
