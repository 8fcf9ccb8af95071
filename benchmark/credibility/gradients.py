"""Gradients with respect to the image: there, finite, not zero, and what finite differences say they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.objectives import Objective, cross_entropy_with, margin, margin_with
from attacks.slope import slope
from benchmark.credibility import rules
from benchmark.credibility.probed import Probed
from benchmark.credibility.record import Check, Rule

_LENGTH = 0.05  # of the step of finite differences, in L2: float32 tells it, and few networks bend on so short a way
_DIRECTIONS = 3


def finite(probed: Probed) -> Check:
    """Count images whose gradient holds something that is no number."""
    bad = torch.zeros_like(probed.right)
    for objective in (cross_entropy_with, margin_with):
        bad |= ~_gradients(probed, probed.x, objective).isfinite().flatten(1).all(1)
    return rules.FINITE.measured(bad.float().mean().item(), probed.setting, images=len(bad))


def zero_of_cross_entropy(probed: Probed) -> Check:
    """Count correct images whose gradient of the cross-entropy is exactly zero, at a random start."""
    return _zero(probed, rules.ZERO_CE, cross_entropy_with)


def zero_of_margin(probed: Probed) -> Check:
    """Count correct images whose gradient of the margin is exactly zero, at a random start."""
    return _zero(probed, rules.ZERO_MARGIN, margin_with)


def differences(probed: Probed) -> Check:
    """Compare the margin's slope along random directions with finite differences, away from the ends of the range."""
    if probed.constant:
        return rules.DIFFERENCES.absent(probed.setting, _CONSTANT)
    low, high = probed.threat.low, probed.threat.high
    inside = probed.x + 0.05 * (low + high - 2 * probed.x) + 0.02 * (high - low) * probed.noise("inside")
    gradients = _gradients(probed, inside, margin_with)
    step = _LENGTH / probed.x[0].numel() ** 0.5
    errors = []
    # Convolutions in TF32 have three digits, of which a difference leaves none.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        for number in range(_DIRECTIONS):
            direction = probed.noise("direction", number).sign()
            ahead, behind = (
                margin(probed.logits_of(inside + way * step * direction).double(), probed.y) for way in (1, -1)
            )
            measured = (ahead - behind) / (2 * step)
            told = (gradients * direction).flatten(1).sum(1).double()
            larger = torch.maximum(measured.abs(), told.abs())
            errors.append(torch.where(larger > 0, (measured - told).abs() / larger, 0.0))
    return rules.DIFFERENCES.measured(torch.stack(errors).median().item(), probed.setting)


def saturation(probed: Probed) -> Check:
    """Count correct images on which the cross-entropy has run out of digits."""
    if not probed.right.any():
        return rules.SATURATION.absent(probed.setting, _NONE_RIGHT)
    loss = cross_entropy_with(probed.y)(probed.logits.float())[probed.right]
    return rules.SATURATION.measured((loss == 0).float().mean().item(), probed.setting, images=len(loss))


_CONSTANT = "the network answers every image with the same logits"
_NONE_RIGHT = "no image probed is right when clean"


def _zero(probed: Probed, rule: Rule, objective: Callable[[Tensor], Objective]) -> Check:
    if probed.constant:
        return rule.absent(probed.setting, _CONSTANT)
    if not probed.right.any():
        return rule.absent(probed.setting, _NONE_RIGHT)
    gradients = _gradients(probed, probed.started(0, probed.threat), objective)[probed.right]
    zero = gradients.flatten(1).abs().sum(1) == 0
    return rule.measured(zero.float().mean().item(), probed.setting, images=len(zero))


@torch.inference_mode(mode=False)
def _gradients(probed: Probed, x: Tensor, objective: Callable[[Tensor], Objective]) -> Tensor:
    """Differentiate a loss by the images; zero where the network gives no gradient at all."""
    found = []
    for part, labels in zip(x.split(probed.batch_size), probed.y.split(probed.batch_size), strict=True):
        point = part.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = objective(labels)(probed.network(point)).sum()
        found.append(slope(value, point))
    return torch.cat(found)
