"""Any classifier of torchvision by name, without its trained weights."""

import difflib
from typing import Any

import torch
from torch import nn

from benchmark.errors import BadInput

PREFIX = "torchvision/"


def torchvision_names() -> list[str]:
    """List what torchvision can classify with, sorted."""
    from torchvision import models  # only those who ask for it wait for the import

    return sorted(models.list_models(module=models))


def torchvision_model(name: str, *, classes: int, channels: int, size: int, **settings: Any) -> nn.Module:
    """Build torchvision's ``name`` (without the prefix) with random weights and ``classes`` outputs.

    ``settings`` go to torchvision's own builder. The auxiliary heads of GoogLeNet and Inception are left out, because a
    classifier here returns logits alone; vision transformers are told the image size.

    Raises:
        BadInput: an unknown name or setting, images that are not RGB, or images too small for the network.
    """
    from torchvision import models

    known = torchvision_names()
    if name not in known:
        (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise BadInput(f"torchvision has no classifier {name!r}; did you mean {PREFIX}{near}?")
    if channels != 3:
        raise BadInput(
            f"{PREFIX}{name} takes RGB images (3 channels), the data set has {channels}: take a network of "
            "`atbench list architectures`"
        )
    fixed: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        fixed |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        fixed |= {"image_size": size}
    if name == "maxvit_t":
        fixed |= {"input_size": (size, size)}
    try:
        network = models.get_model(name, **(fixed | settings))
        _accepts(network, size)
    except Exception as error:  # torchvision answers bad settings and sizes with whatever breaks first
        raise BadInput(
            f"{PREFIX}{name} cannot be built for 3x{size}x{size} images with settings {settings}: {error}"
        ) from error
    return network


def _accepts(network: nn.Module, size: int) -> None:
    """Send one image through, so that a network made for larger images fails here and not in the first epoch."""
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    network.train()
