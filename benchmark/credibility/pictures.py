"""Whether the adversarial pictures that were saved are what the verdicts say: inside ball and range, and misread."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from benchmark.credibility import rules
from benchmark.credibility.probed import Probed
from benchmark.credibility.record import Check


class Saved(NamedTuple):
    """Pictures that one attack saved at one radius: images ``x``, ``pictures`` of them, ``labels``; pixel units."""

    attack: str
    epsilon: float
    x: Tensor
    pictures: Tensor
    labels: Tensor


def saved_pictures(probed: Probed, saved: Iterable[Saved]) -> Check:
    """Count saved pictures that lie outside ball or pixel range, or are not misread; they may be of any test image."""
    wrong, count, first = 0, 0, ""
    for one in saved:
        threat = probed.threat.at(one.epsilon)
        outside = threat.distance(one.pictures, one.x) > one.epsilon * (1 + 1e-5) + 1e-6
        low, high = (one.pictures.flatten(1).amin(1) < threat.low), (one.pictures.flatten(1).amax(1) > threat.high)
        read = probed.logits_of(one.pictures).argmax(1) == one.labels
        bad = int((outside | low | high | read).sum())
        first = first or (f"{bad} of {one.attack} at {one.epsilon:.4g}" if bad else "")
        wrong, count = wrong + bad, count + len(one.labels)
    if not count:
        return rules.SAVED.absent(probed.setting, "no pictures were saved")
    return rules.SAVED.measured(wrong / count, probed.setting, images=count, note=first)
