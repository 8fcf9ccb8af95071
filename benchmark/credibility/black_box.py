"""Attacks that see no gradient: where they find what gradient attacks missed, the gradients mislead."""

import torch
from torch import Tensor

from attacks.autoattack import autoattack
from benchmark.credibility import rules
from benchmark.credibility.probed import Probed
from benchmark.credibility.record import Check


def random_noise(probed: Probed) -> Check:
    """Try random points of the ball, half of them corners, on images that the gradient attacks left standing."""
    left = probed.holds(*probed.white_box)
    standing, draws = left.nonzero().squeeze(1), 500 if probed.thorough else 20
    if not len(standing):
        return rules.NOISE.absent(probed.setting, "no image is left for it: gradient attacks fooled all")
    x, y = probed.x[standing], probed.y[standing]
    found = torch.zeros_like(y, dtype=torch.bool)
    for number in range(draws):
        drawn = probed.noise("random", number, rows=standing)
        drawn = drawn.sign() if number % 2 else drawn
        tried = probed.threat.project(x + _reach(probed, drawn), x)
        found |= probed.logits_of(tried).argmax(1) != y
    note = f"{draws} draws on {len(standing)} images that held"
    return rules.NOISE.measured(int(found.sum()) / len(left), probed.setting, images=len(left), note=note)


def square(probed: Probed) -> Check:
    """Compare Square's accuracy with that of the gradient attacks together, on the same images."""
    white = probed.holds(*probed.white_box)
    found = autoattack(
        probed.network,
        probed.x,
        probed.y,
        probed.threat,
        seed=probed.seed,
        version="custom",
        attacks=["square"],
        index=probed.index,
    )
    black = probed.right & (probed.logits_of(found.adversarial).argmax(1) == probed.y)
    both = [mask.float().mean().item() for mask in (white, black)]
    note = f"{100 * both[0]:.1f} % and {100 * both[1]:.1f} %; Square alone fools {int((white & ~black).sum())}"
    return rules.SQUARE.measured(max(both[0] - both[1], 0.0), probed.setting, images=len(white), note=note)


def _reach(probed: Probed, drawn: Tensor) -> Tensor:
    """Scale a draw so that it reaches the edge of the ball, where most of the ball is."""
    if probed.threat.norm == "linf":
        return probed.threat.epsilon * drawn
    length = probed.threat.distance(drawn, torch.zeros_like(drawn)).clamp(min=1e-12)
    return probed.threat.epsilon * drawn / length[:, None, None, None]
