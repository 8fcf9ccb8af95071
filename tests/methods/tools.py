"""A small network, a few images, and how the tests run a method on them."""

import copy
import inspect
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import ThreatModel
from methods import catalogue
from methods.base import AdversarialTraining
from tests.golden import ScriptedDraws
from tests.toy import toy_batch, toy_model

EPSILON = 0.1


def network(dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """Two convolutions with BatchNorm on ``(1, 8, 8)`` images, three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(6 * 4 * 4, 3),
        )


def sharpened(body: nn.Sequential, factor: float) -> nn.Sequential:
    """The same network with larger logits, so that it is sure of what it says."""
    with torch.no_grad():
        body[-1].weight *= factor
        body[-1].bias *= factor
    return body


def images(count: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images that a network can learn: a bright patch in the place of the class, with exact 0s and 1s among them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = 0.4 + 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(x, y.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 3] += 0.4
    return x.clamp(0, 1), y


def toy(seed: int = 7) -> tuple[nn.Module, Tensor, Tensor, ScriptedDraws]:
    """The golden files' network, images and labels in float64, and their noise as scripted draws."""
    model = toy_model(seed, 3, 10)
    x, y, normal, uniform = toy_batch(seed, model)
    return model, x, y, ScriptedDraws(normal, uniform)


def build(name: str, body: nn.Module, threat: ThreatModel | None = None, **settings: Any) -> AdversarialTraining:
    """A method on ``body``, in an ensemble the first member; ``steps`` goes to its attack where it leaves them open."""
    steps = settings.pop("steps", None)
    if name == "eat":
        settings.setdefault("source_floor", 0)  # a few images and epochs are no training
    composed = catalogue.get(name).compose(
        lambda member, kind=None: redrawn(body, member) if member else body, **settings
    )
    method = catalogue.get(name)(composed, threat or ThreatModel("linf", EPSILON), **settings)
    if steps is not None and "inner" in inspect.signature(type(method)).parameters:
        method.inner = replace(method.inner, steps=steps)
    return method


def redrawn(body: nn.Module, seed: int) -> nn.Module:
    """The same network with other first weights."""
    other = copy.deepcopy(body)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in other.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    return other


def trace(method: AdversarialTraining, batch: Any, step: int = 0):
    method.draws.begin(epoch=0, step=step)
    return method.trace_step(batch)


def gradients(method: AdversarialTraining, loss: Tensor) -> Tensor:
    """The loss's gradient with respect to all parameters, flat."""
    parameters = list(method.network.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def statistics(body: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in body.named_buffers()}


def batches_seen(body: nn.Module) -> list[int]:
    """How many batches each BatchNorm has counted."""
    return [int(m.num_batches_tracked) for m in body.modules() if isinstance(m, nn.BatchNorm2d)]


def loader(count: int = 24, *, batch_size: int = 8, indexed: bool = False, seed: int = 1) -> DataLoader:
    x, y = images(count, seed)
    items = (x, y, torch.arange(count)) if indexed else (x, y)
    return DataLoader(TensorDataset(*items), batch_size=batch_size)


def trainer(epochs: int = 2, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        max_epochs=epochs, logger=False, accelerator="cpu", callbacks=list(callbacks), **(quiet | settings)
    )


def weights(body: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in body.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
