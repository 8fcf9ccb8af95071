"""One experiment: everything that changes the weights it ends with, and the name that follows from it."""

import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from attacks.threat import ThreatModel
from benchmark import architectures
from benchmark.data import Description, describe
from benchmark.errors import BadInput
from benchmark.suite import DataChoice, NetworkChoice, Suite
from methods import catalogue
from methods.base import AdversarialTraining
from methods.recipe import Recipe


@dataclass(frozen=True)
class Experiment:
    """Train one method once.

    ``settings`` are the method's own, with every default written out, so that a changed default is another experiment.
    """

    method: str
    settings: dict[str, Any]
    dataset: DataChoice
    fold: int
    network: NetworkChoice
    threat: ThreatModel
    recipe: Recipe
    seed: int
    precision: str
    sync_batchnorm: bool = False

    def identity(self) -> dict[str, Any]:
        """Give what the weights depend on, as plain values; where and with how many workers it ran is not among it."""
        faces_adversary = catalogue.get(self.method).faces_adversary
        dataset = {key: value for key, value in asdict(self.dataset).items() if key != "folds"} | {"fold": self.fold}
        return {
            "method": self.method,
            "settings": self.settings if faces_adversary else {},
            "threat": asdict(self.threat) if faces_adversary else None,
            "dataset": dataset,
            "network": asdict(self.network),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "precision": self.precision,
            **({"sync_batchnorm": True} if self.sync_batchnorm else {}),
        }

    @property
    def name(self) -> str:
        """Name the experiment's folder: readable in front, a hash of :meth:`identity` behind."""
        text = json.dumps(self.identity(), sort_keys=True, default=str)
        fold = f"-f{self.fold}" if self.fold else ""
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.method}-{self.dataset.name}{fold}-s{self.seed}-{digest}"

    def build_network(self) -> nn.Module:
        """Make the untrained network; its weights follow from the seed alone, the same for every method."""
        return build_network(self.network, describe(self.dataset.name), self.seed)

    def build_method(self, network: nn.Module) -> AdversarialTraining:
        """Put the method around ``network``."""
        settings = _parse(self.method, self.settings)
        return catalogue.get(self.method)(network, self.threat, recipe=self.recipe, seed=self.seed, **settings)


def build_network(choice: NetworkChoice, data: Description, seed: int) -> nn.Module:
    """Make an untrained network for a data set, leaving the global random state as it was."""
    import torch

    from attacks.randomness import key

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "network") >> 1)
        return architectures.build(
            choice.name,
            classes=data.classes,
            channels=data.channels,
            size=data.size,
            mean=data.mean,
            std=data.std,
            **choice.settings,
        )


def plan(suite: Suite) -> list[Experiment]:
    """List the suite's experiments, every method with every seed and fold, in the suite's order.

    Raises:
        BadInput: for an unknown method, data set or network, or a setting that a method does not have.
    """
    experiments = []
    for method, own in suite.methods.items():
        settings = resolve(method, own or {}, suite.inner_steps)
        for fold in suite.dataset.folds:
            for seed in suite.seeds:
                experiments.append(
                    Experiment(
                        method=method,
                        settings=settings,
                        dataset=suite.dataset,
                        fold=fold,
                        network=suite.network,
                        threat=suite.threat,
                        recipe=suite.recipe,
                        seed=seed,
                        precision=suite.precision,
                        sync_batchnorm=suite.sync_batchnorm,
                    )
                )
    build_network(suite.network, describe(suite.dataset.name), seed=0)  # so that a misspelling is told now
    return experiments


def resolve(method: str, own: dict[str, Any], inner_steps: int) -> dict[str, Any]:
    """Write out all settings of a method: its defaults, the preset's number of inner steps, then its ``own``.

    A method without an ``inner`` setting has its number of steps by definition, and the preset's is not used.

    Raises:
        BadInput: naming the method and the key.
    """
    defaults = {"inner": {"steps": inner_steps}} if "inner" in _parser(method).get_defaults() else {}
    inner = own.get("inner")
    merged = {**defaults, **own}
    if defaults and isinstance(inner, dict):
        merged["inner"] = {**defaults["inner"], **inner}
    parsed = _parse(method, merged)
    return {key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in parsed.items()}


def _parser(method: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(catalogue.get(method), skip={"network", "threat", "recipe", "seed"})
    return parser


def _parse(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    parser = _parser(method)
    try:
        return dict(parser.instantiate(parser.parse_object(settings)))
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).replace("Parser key ", "key ").replace("typing.", "")
        reason = re.sub(r"<class '(\w+)'>", r"\1", reason)
        known = [name.rpartition(".")[2] for name in parser.get_defaults().keys()]  # noqa: SIM118 - of the leaves
        wrong = re.search(r"ption '(\w+)'", reason)
        near = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
        hint = f": did you mean {near[0]}?" if near else ""
        raise BadInput(f"methods.{method}: {reason}{hint} (atbench show {method} lists its settings)") from None
