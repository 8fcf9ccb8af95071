"""Look at network, images and labels before an attack spends hours on them; one sentence for each mistake."""

import torch
from torch import Tensor, nn

from attacks.errors import BadInput


def check_images(x: Tensor, y: Tensor, low: float = 0.0, high: float = 1.0) -> None:
    """Accept floating images ``(n, c, h, w)`` within ``[low, high]`` and whole labels ``(n,)``.

    Raises:
        BadInput: naming what was found.
    """
    if not x.is_floating_point():
        raise BadInput(f"images are floating-point numbers in [{low:g}, {high:g}], but found {x.dtype}: divide by 255")
    if x.ndim != 4:
        raise BadInput(f"images have the shape (n, channels, height, width), but found {tuple(x.shape)}")
    if y.ndim != 1:
        raise BadInput(f"labels are one number per image, of shape ({len(x)},), but found {tuple(y.shape)}")
    if len(x) != len(y):
        raise BadInput(f"there is one label per image, but found {len(x)} images and {len(y)} labels")
    if len(x) == 0:
        raise BadInput("there is nothing to attack: found 0 images")
    smallest, largest = x.min().item(), x.max().item()
    if not (low <= smallest and largest <= high):  # NaN fails too
        raise BadInput(
            f"images lie in [{low:g}, {high:g}], but found values from {smallest:g} to {largest:g}: "
            "normalise inside the network, as its first layer"
        )
    if y.dtype != torch.int64:  # the only whole numbers that every loss of torch takes
        raise BadInput(f"labels are whole numbers of type torch.int64, but found {y.dtype}")


def check_classifier(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """Run ``network`` once on ``x`` and look at what comes out; returns the number of classes.

    Raises:
        BadInput: for a network in train mode or one that changes its images, an output that is no tensor ``(n, k)``,
            logits that are not finite, or labels outside the classes.
    """
    if any(module.training for module in network.modules()):
        raise BadInput("the network is attacked as it will be used, but found it in train mode: call network.eval()")
    given = x.clone()
    with torch.no_grad():
        logits = network(given)
    check_unchanged(given, x)
    return check_logits(logits, x, y)


def check_unchanged(given: Tensor, x: Tensor) -> None:
    """Accept what a network was ``given`` if it left it as ``x``, the same images, are.

    Raises:
        BadInput: for a network that writes to its images: an attack would lose track of what it asks about.
    """
    if not torch.equal(given, x):
        raise BadInput(
            "the network leaves the images it is given as they are, but found it changing them: write x = x - mean in "
            "place of x -= mean, and so on"
        )


def check_logits(logits: object, x: Tensor, y: Tensor) -> int:
    """Accept finite logits ``(n, k)`` for images ``x`` and labels ``y`` in 0..k-1; returns k.

    Raises:
        BadInput: as in :func:`check_classifier`.
    """
    if not isinstance(logits, Tensor):
        raise BadInput(
            f"the network returns one tensor of logits (n, classes), but found a {type(logits).__name__}: "
            "wrap it so that only the logits come out"
        )
    if logits.ndim != 2 or len(logits) != len(x):
        raise BadInput(
            f"the network returns logits of shape ({len(x)}, classes) for {len(x)} images, "
            f"but found {tuple(logits.shape)}"
        )
    if not torch.isfinite(logits).all():
        rows = int((~torch.isfinite(logits)).any(1).sum())
        raise BadInput(f"logits are finite numbers, but found NaN or infinity for {rows} of {len(x)} images")
    classes = logits.shape[1]
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise BadInput(
            f"labels lie in 0..{classes - 1} (the network has {classes} classes), "
            f"but found {int(y.min())}..{int(y.max())}"
        )
    return classes
