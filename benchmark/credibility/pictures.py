"""Whether the adversarial pictures that were saved are what the verdicts say: inside ball and range, and misread."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.objectives import margin
from benchmark.credibility import rules
from benchmark.credibility.probed import Probed
from benchmark.credibility.record import Check
from benchmark.data import Images
from benchmark.errors import BadInput
from benchmark.pictures import ask, slack
from benchmark.results import pictures
from benchmark.results.evidence import Part
from benchmark.results.pictures import distance, farthest_allowed


class Saved(NamedTuple):
    """Pictures that one attack saved at one radius: images ``x``, ``pictures`` of them, ``labels``; pixel units."""

    attack: str
    epsilon: float
    x: Tensor
    pictures: Tensor
    labels: Tensor


def saved_pictures(probed: Probed, saved: Iterable[Saved]) -> Check:
    """Count saved pictures that lie outside ball or pixel range, or are not misread; they may be of any test image.

    As in `atbench verify`, two logits that differ in their last digits alone are held against nobody.
    """
    wrong, count, first = 0, 0, ""
    for one in saved:
        found = one.pictures.numpy()
        inside = distance(found, one.x.numpy(), probed.threat.norm) <= farthest_allowed(one.epsilon)
        flat = found.reshape(len(found), -1)
        inside &= (flat.min(1) >= probed.threat.low) & (flat.max(1) <= probed.threat.high)  # NaN is not
        logits = ask(probed.network, one.pictures, probed.batch_size)
        misread = (margin(logits, one.labels) >= -slack(logits)).numpy()
        bad = int((~(inside & misread)).sum())
        first = first or (f"{bad} of {one.attack} at {one.epsilon:.4g}" if bad else "")
        wrong, count = wrong + bad, count + len(one.labels)
    if not count:
        return rules.SAVED.absent(probed.setting, NONE)
    return rules.SAVED.measured(wrong / count, probed.setting, images=count, note=first)


NONE = "no pictures were saved"


def read_saved(parts: Iterable[Part], test: Images, size: int) -> Iterator[Saved]:
    """Read the pictures beside ``parts``, at most ``size`` at a time, with the test images that they are of.

    Raises:
        BadInput: where a file is damaged, or holds a picture of an image that is not in the test set.
    """
    places = {index: row for row, index in enumerate(test.index.tolist())}
    for part in parts:
        path = pictures.beside(part.path)
        if not path.is_file():
            continue
        saved = pictures.read(path, len(test), tuple(test.images.shape[1:]))
        strange = [index for index in saved.index.tolist() if index not in places]
        if strange:
            raise BadInput(f"expected pictures of test images, found one of image {strange[0]}: {path}")
        for start in range(0, len(saved.index), size):
            some = saved.rows(start, start + size)
            rows = torch.tensor([places[index] for index in some.index.tolist()])
            # On the CPU, as when they were saved, because a GPU divides by 255 with another last bit.
            images = test.take(rows.to(test.labels.device)).to("cpu")
            x = images.pixels()
            yield Saved(part.attack, part.epsilon, x, torch.from_numpy(some.of(x.numpy())), images.labels)
