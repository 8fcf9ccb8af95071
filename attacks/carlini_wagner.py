"""The minimum-norm attack of Carlini and Wagner: how far must an image move before the network errs?"""

import torch
from torch import Tensor, nn

from attacks.modes import without_parameter_gradients
from attacks.objectives import margin
from attacks.threat import l2_length, per_image


@torch.inference_mode(mode=False)  # as in pgd: in inference mode nothing has a gradient
def carlini_wagner_l2(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    confidence: float = 0.0,
    searches: int = 9,
    iterations: int = 1000,
    learning_rate: float = 0.01,
    first_constant: float = 1e-3,
) -> Tensor:
    r"""Find misclassified images near ``x`` in Euclidean distance, pixels in [0, 1].

    .. math:: \min_w \|x' - x\|_2^2 + c \max(z_y - \max_{k \ne y} z_k, -\kappa), \quad x' = (\tanh w + 1) / 2

    by Adam, with a search per image over :math:`c`: halved between the bounds once an attack succeeded, tenfold before.

    Args:
        network: images ``(n, c, h, w)`` to logits ``(n, k)``, in eval mode.
        y: true labels ``(n,)``; images that are misclassified as they stand come back unmoved.
        confidence: :math:`\kappa \ge 0`, the margin in logits by which the network has to err.
        searches: values of :math:`c` tried per image. iterations: Adam steps for each of them.

    Returns:
        images like ``x``: the closest success of each, ``x`` itself where none was found (test with the network).
    Source: Carlini and Wagner, S&P 2017, arXiv:1608.04644, section VI.A; constants as in the authors' code.
    """
    with torch.no_grad():
        solved = margin(network(x), y) > confidence
    best = x.clone()
    best_distance = torch.where(solved, 0.0, torch.inf).to(x)
    low, high = torch.zeros_like(best_distance), torch.full_like(best_distance, torch.inf)
    constant = torch.full_like(best_distance, first_constant)
    # A hair inside (0, 1): tanh reaches the ends only at infinity, where its gradient is gone.
    anchor = torch.atanh((2 * x - 1) * 0.999999)

    for _ in range(searches):
        succeeded = torch.zeros_like(solved)
        w = anchor.clone().requires_grad_()
        adam = torch.optim.Adam([w], lr=learning_rate)
        with without_parameter_gradients(network):
            for _ in range(iterations):
                with torch.enable_grad():
                    candidate = (torch.tanh(w) + 1) / 2
                    missing = margin(network(candidate), y)
                    distance = (candidate - x).square().flatten(1).sum(1)
                    loss = distance + constant * (-missing).clamp(min=-confidence)
                    (w.grad,) = torch.autograd.grad(loss.sum(), w)
                candidate = candidate.detach()
                success = missing.detach() > confidence
                closer = success & (distance.detach() < best_distance)
                best = torch.where(per_image(closer, x).bool(), candidate, best)
                best_distance = torch.where(closer, distance.detach(), best_distance)
                succeeded |= success
                adam.step()
        high = torch.where(succeeded, torch.minimum(high, constant), high)
        low = torch.where(succeeded, low, torch.maximum(low, constant))
        constant = torch.where(high.isinf(), constant * 10, (low + high) / 2)
    return best.detach()


def l2_distance(adversarial: Tensor, x: Tensor) -> Tensor:
    """Euclidean distance per image ``(n,)`` between two sets ``(n, c, h, w)``, in pixel units."""
    return l2_length(adversarial - x).flatten()
