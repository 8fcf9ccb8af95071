"""Golden cases: values of the original authors' code on a toy network, and how to run a method on them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.ensemble.members import Ensemble
from methods.unlabelled import HIDDEN
from tests.toy import toy_batch, toy_model

FOLDER = Path(__file__).parent / "data" / "golden"


class ScriptedDraws:
    """Stands in for ``method.draws``: the stored noise wherever the method would draw."""

    def __init__(self, normal: Tensor, uniform: Tensor) -> None:
        self._normal, self._uniform = normal, uniform

    def begin(self, **_: int) -> None: ...

    def normal(self, like, shape=None):
        return _cut(self._normal, like, shape)

    def uniform(self, like, shape=None):
        return _cut(self._uniform, like, shape)

    def laplace(self, like, shape=None):
        return _cut(self._normal, like, shape)

    def bernoulli(self, probability, like, shape=None):
        return ((_cut(self._uniform, like, shape) + 1) / 2 < probability).to(like)

    def integers(self, high, like, shape=None, **_):
        return torch.zeros(like.shape if shape is None else shape, dtype=torch.int64, device=like.device)

    def permutation(self, size, like, **_):
        return torch.arange(size, device=like.device)

    def beta(self, a, b, like, shape=None):
        return (_cut(self._uniform, like, shape) + 1) / 2

    def dirichlet(self, concentration, like, shape=()):
        points = _cut(self._uniform.flatten(1), like, (*shape, len(concentration))) + 1
        return points / points.sum(-1, keepdim=True)


def _cut(noise: Tensor, like: Tensor, shape) -> Tensor:
    for axis, size in enumerate(like.shape if shape is None else shape):
        if size > noise.shape[axis]:  # over again, as for images that a method makes of those of the batch
            noise = torch.cat([noise] * -(-size // noise.shape[axis]), axis)
        noise = noise.narrow(axis, 0, size)
    return noise.to(like)


class Normalised(nn.Module):
    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


class Rescaled(nn.Module):
    def __init__(self, network: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.scale * x + self.shift)


@dataclass
class Case:
    method: str
    toy: dict[str, Any]
    record: dict[str, Any]
    changes: dict[str, Any]  # how the network differs from the toy network

    @property
    def name(self) -> str:
        return self.record["name"]

    @property
    def settings(self) -> dict[str, Any]:
        return self.record["settings"]

    @property
    def expected(self) -> dict[str, Any]:
        return self.record["expected"]

    @cached_property
    def body(self) -> nn.Module:
        return self._toy_model(0)

    def _toy_model(self, offset: int) -> nn.Module:
        toy = self.toy
        return toy_model(toy["seed"] + offset, toy["channels"], toy["classes"])

    @cached_property
    def network(self) -> nn.Module:
        if offsets := self.changes.get("members"):
            return Ensemble(map(self._toy_model, offsets)).train(self.record["mode_at_entry"] == "train")
        normalisation = self.record["inputs"].get("normalisation")
        network = (
            self.body if normalisation is None else Normalised(self.body, normalisation["mean"], normalisation["std"])
        )
        if scaled := self.changes.get("network_input") or self.changes.get("batch_rescaled"):
            network = Rescaled(self.body, **scaled)
        return network.train(self.record["mode_at_entry"] == "train" or self.settings.get("loss_mode") == "train")

    @cached_property
    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        toy = self.toy
        return toy_batch(toy["seed"], self.body, toy["batch_size"], toy["channels"], toy["classes"])

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        x, y, *_ = self._batch
        inputs = self.record["inputs"]
        x = 0.5 + inputs.get("contrast", self.changes.get("contrast", 1)) * (x - 0.5)
        y = torch.tensor(inputs["labels"]) if "labels" in inputs else y
        if "unlabelled_images" in inputs:
            first, last = map(int, inputs["unlabelled_images"].split(".."))
            y = y.index_fill(0, torch.arange(first, last + 1), HIDDEN)
        return x, y, torch.arange(len(y))

    @property
    def draws(self) -> ScriptedDraws:
        _, _, normal, uniform = self._batch
        return ScriptedDraws(normal, uniform)


def cases(method: str, *kinds: str) -> list[Case]:
    """The cases of ``method`` whose kind is one of ``kinds``."""
    golden = json.loads((FOLDER / f"{method}.json").read_text())
    changes = golden["toy_changes"] or {}
    return [Case(method, golden["toy"], record, changes) for record in golden["cases"] if record["kind"] in kinds]


def one(method: str, name: str) -> Case:
    """The case of that name."""
    return next(
        case for case in cases(method, "training_step", "attack", "loss", "schedule", "other") if case.name == name
    )


def gradient_norm(network: nn.Module) -> float:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm().item()


def first_layer_gradient(network: nn.Module) -> Tensor:
    return next(network.parameters()).grad.flatten()[:8]


def assert_images(adversarial: Tensor, expected: dict[str, Any]) -> None:
    """Compare with the stored summary at the golden files' own tolerance for images."""
    tensor = torch.tensor(expected["first16"], dtype=torch.float64)
    torch.testing.assert_close(adversarial.flatten()[:16], tensor, rtol=0, atol=1e-9)
    assert abs(adversarial.sum().item() - expected["sum"]) < 1e-9 * abs(expected["sum"])
    assert abs(adversarial.norm().item() - expected["l2_norm"]) < 1e-9 * expected["l2_norm"]
