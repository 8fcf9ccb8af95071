"""What a network puts out: the same twice, alone and in company, and logits rather than probabilities."""

import torch
from torch import Tensor

from benchmark.credibility import rules
from benchmark.credibility.probed import Probed
from benchmark.credibility.record import Check

_ALONE = 8  # images that go through the network one by one
_NEEDS = {"autoattack": 4, "autoattack_plus": 4, "autoattack_rand": 3}  # classes: targeted DLR takes three wrong ones


def eval_mode(probed: Probed) -> Check:
    """Look for parts that eval() left in train mode, and for buffers that a forward pass moves."""
    training = [name or "the network" for name, part in probed.network.named_modules() if part.training]
    before = {name: buffer.clone() for name, buffer in probed.network.named_buffers()}
    probed.logits_of(probed.x[:_ALONE])
    moved = [name for name, buffer in probed.network.named_buffers() if not _same(buffer, before[name])]
    note = ", ".join([*training, *(f"{name} moves" for name in moved)][:3])
    return rules.EVAL_MODE.measured(len(training) + len(moved), probed.setting, note=note)


def repeatable(probed: Probed) -> Check:
    """Run five forward passes on the same images."""
    runs = [_direction(probed.logits_of(probed.x)) for _ in range(5)]
    apart = max(_apart(runs[i], runs[j]) for i in range(5) for j in range(i))
    return rules.REPEATABLE.measured(apart, probed.setting)


def batch_independence(probed: Probed) -> Check:
    """Compare images that go through the network alone with the same ones in a batch, forwards and backwards."""
    few = probed.x[:_ALONE]
    with torch.no_grad():
        alone = _direction(torch.cat([probed.network(image[None]) for image in few]))
    together = _direction(probed.logits_of(probed.x))[:_ALONE]
    backwards = _direction(probed.logits_of(probed.x.flip(0))).flip(0)[:_ALONE]
    return rules.ALONE_OR_TOGETHER.measured(max(_apart(alone, together), _apart(alone, backwards)), probed.setting)


def probabilities(probed: Probed) -> Check:
    """Look whether the outputs are a distribution over the classes already."""
    z = probed.logits
    like = (z.amax(1) < 1 + 1e-5) & (z.amin(1) > -1e-5) & ((z.sum(1) - 1).abs() < 1e-5)
    return rules.PROBABILITIES.measured(like.float().mean().item(), probed.setting, images=len(z))


def one_class(probed: Probed) -> Check:
    """Look whether every image gets the same class, whatever it shows."""
    if len(probed.y.unique()) < 2:
        return rules.ONE_CLASS.absent(probed.setting, "all images probed show one class")
    single = len(probed.logits.argmax(1).unique()) == 1
    note = f"class {int(probed.logits[0].argmax())}" if single else ""
    return rules.ONE_CLASS.measured(single, probed.setting, note=note)


def number_of_classes(probed: Probed) -> Check:
    """Hold the classes against what the attacks of the evaluation are defined for."""
    needing = [name for name in probed.attacks if name in _NEEDS]
    if not needing:
        return rules.CLASSES.absent(probed.setting, "no attack of the evaluation needs more than two classes")
    classes = probed.logits.shape[1]
    undefined = [name for name in needing if classes < _NEEDS[name]]
    note = f"{', '.join(undefined)} with {classes} classes" if undefined else ""
    return rules.CLASSES.measured(len(undefined), probed.setting, note=note)


def _direction(logits: Tensor) -> Tensor:
    return logits / (torch.linalg.vector_norm(logits, dim=1, keepdim=True) + 1e-10)


def _apart(first: Tensor, second: Tensor) -> float:
    return torch.linalg.vector_norm(first - second, dim=1).max().item()


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)
