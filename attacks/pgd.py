"""Projected gradient ascent, written once: FGSM, PGD for training, PGD-20 and CW for evaluation."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.objectives import Objective, cross_entropy_with
from attacks.slope import slope
from attacks.threat import ThreatModel, per_image


@torch.inference_mode(mode=False)  # Lightning evaluates in inference mode, in which nothing has a gradient
def pgd(
    network: nn.Module,
    x: Tensor,
    objective: Objective,
    threat: ThreatModel,
    *,
    start: Tensor,
    steps: int,
    step_size: float | Tensor,
    radius: Tensor | None = None,
    keep: Literal["last", "best"] = "last",
    until: Callable[[Tensor], Tensor] | None = None,
    patience: int | Tensor = 1,
    stationary: Callable[[Tensor, Tensor], Tensor] | None = None,
    jitter: Callable[[Tensor], Tensor] | None = None,
    move: Callable[[Tensor, Tensor], Tensor] | None = None,
    momentum: float = 0.0,
    whole_batch: bool = False,
) -> Tensor:
    r"""Climb ``objective`` from ``start`` within ``threat``: repeat :math:`x \gets \Pi(x + \alpha\, s(\nabla\ell))`.

    Args:
        network: images to logits ``(n, k)``; used in the mode it is in. Parameters get no gradients.
        x: the clean images ``(n, c, h, w)``, the centre of the ball.
        objective: logits ``(n, k)`` to one value per image ``(n,)``, higher being worse for the network.
        start: the first iterate, like ``x``. The caller draws it, so nothing here is random.
        step_size: in pixel units, along the sign (Linf) or the unit vector (L2) of the gradient; or ``(n,)``.
        radius: a ball of its own for each image, ``(n,)``, in place of ``threat.epsilon``.
        keep: ``last`` returns the last iterate after ``steps`` forward passes; ``best`` the iterate with the highest
            objective among all ``steps + 1``, the start and the last included, with one forward pass more.
        until: logits to a mask ``(n,)``. An image for which it held ``patience`` times (counted before each step)
            stays where it is: with patience 1 and "misclassified", the first success counts (any iterate).
        patience: one number, or one per image ``(n,)``.
        stationary: iterate and gradient, both like ``x``, to a mask ``(n,)``. An image for which it holds, asked before
            each step, stays where it is from then on; of one that no longer goes through the network it sees the last
            gradient again.
        jitter: called before each step with the mask ``(n,)`` of the images that take it; the noise that it gives, like
            ``x``, is added to the step before the projection. The caller draws it, too.
        move: iterate and gradient, both like ``x``, to the next iterate, in place of ``step_size`` along the steepest
            direction and the projection: :mod:`attacks.moves`.
        momentum: step along the sum of the gradients so far, each divided by its L1 length, the sum times this before
            each is added; 0 steps along the gradient itself.
        whole_batch: send images that have stopped through the network all the same, so that every forward has one shape
            (logits depend on it in the last bits). In train mode this is always so: batch statistics need them all.

    Returns:
        images like ``x``, without a graph.
    Source: Madry et al., ICLR 2018, arXiv:1706.06083; ``keep="best"`` as in MadryLab/robustness; ``until`` as the early
    stop of Zhang et al., ICML 2020, arXiv:2002.11242; ``stationary`` as in Wang et al., ICML 2019, arXiv:2112.08304;
    ``momentum`` as in Dong et al., CVPR 2018, arXiv:1710.06081.
    """
    adversarial = start.detach().clone()
    alpha = per_image(step_size, x) if isinstance(step_size, Tensor) else step_size
    left = torch.as_tensor(patience, device=x.device).expand(len(x)).clone()
    moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
    rows: Tensor | slice = slice(None)  # of the images that go through the network
    stopping = until is not None or stationary is not None
    droppable = stopping and not (whole_batch or any(module.training for module in network.modules()))
    logits, gradient, velocity = x.new_empty(0), x.new_empty(0), torch.zeros_like(x)
    best, best_value = adversarial, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for _ in range(steps):
        point = adversarial[rows].requires_grad_()
        with torch.enable_grad():
            fresh = network(point)  # of images that have stopped the logits are known, and the objective sees them
            logits = _placed(fresh, rows, logits)
            value = objective(logits)
        if keep == "best":
            best, best_value = _better(best, best_value, adversarial, value.detach())
        if until is not None:
            left = left - until(logits.detach()).to(left.dtype)
            moving = moving & (left > 0)
            if not moving.any():
                break
        found = slope(value.sum(), point)  # a mean would tie an image's step to its batch
        gradient = _placed(found, rows, gradient)
        if stationary is not None:
            moving = moving & ~stationary(adversarial, gradient)
            if not moving.any():
                break
        if momentum:
            length = gradient.abs().flatten(1).sum(1).clamp(min=1e-12)
            velocity = momentum * velocity + gradient / per_image(length, gradient)
        uphill = velocity if momentum else gradient
        if move is None:
            moved = adversarial + alpha * threat.direction(uphill)
            moved = threat.project(moved if jitter is None else moved + jitter(moving), x, radius).detach()
        else:
            moved = move(adversarial, uphill).detach()
        logits = logits.detach()
        if stopping:
            adversarial = torch.where(per_image(moving, x).bool(), moved, adversarial)
            rows = moving.nonzero().squeeze(1) if droppable else rows
        else:
            adversarial = moved
    if keep == "best":
        with torch.no_grad():
            best, _ = _better(best, best_value, adversarial, objective(network(adversarial)))
        return best
    return adversarial


def fgsm(network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Take one step of length epsilon from ``x`` itself along the cross-entropy's gradient; returns ``(n, c, h, w)``.

    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    return pgd(network, x, cross_entropy_with(y), threat, start=x, steps=1, step_size=threat.epsilon)


def _placed(part: Tensor, rows: Tensor | slice, whole: Tensor) -> Tensor:
    """Put what belongs to ``rows`` in its place; the others keep what ``whole`` has."""
    return part if isinstance(rows, slice) else whole.index_copy(0, rows, part)


def _better(best: Tensor, best_value: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    higher = value > best_value
    return torch.where(per_image(higher, point).bool(), point, best), torch.where(higher, value, best_value)
