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
from benchmark import architectures, own_method, own_network, own_parts, user_code
from benchmark.data import Description, describe
from benchmark.data import own as own_data
from benchmark.errors import BadInput
from benchmark.suite import DataChoice, NetworkChoice, Suite
from benchmark.user_code import UserCode
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
    code: UserCode | None = None

    def identity(self) -> dict[str, Any]:
        """Give what the weights depend on, as plain values; where and with how many workers it ran is not among it."""
        faces_adversary = self.method_class.faces_adversary
        dataset = _without(self.dataset, "folds", "code") | {"fold": self.fold}
        plain = {
            "method": self.method,
            "settings": self.settings if faces_adversary else {},
            "threat": asdict(self.threat) if faces_adversary else None,
            "dataset": dataset,
            "network": _without(self.network, "code", *(["name"] if self.network.code else [])),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "precision": self.precision,
            **({"sync_batchnorm": True} if self.sync_batchnorm else {}),
        }
        own = {part: [code.name, code.sha256] for part, code in self.user_code.items()}
        return {**plain, "own": own} if own else plain

    @property
    def user_code(self) -> dict[str, UserCode]:
        """What of the experiment a user wrote: any of ``method``, ``dataset`` and ``network``."""
        every = {"method": self.code, "dataset": self.dataset.code, "network": self.network.code}
        return {part: code for part, code in every.items() if code is not None}

    @property
    def method_class(self) -> type[AdversarialTraining]:
        """The class of the method."""
        return own_method.find(self.method, self.code)

    @property
    def name(self) -> str:
        """Name the experiment's folder: readable in front, a hash of :meth:`identity` behind."""
        text = json.dumps(self.identity(), sort_keys=True, default=str)
        fold = f"-f{self.fold}" if self.fold else ""
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.method}-{self.dataset.name}{fold}-s{self.seed}-{digest}"

    def build_network(self) -> nn.Module:
        """Make the untrained network, as the method composes it; weights follow from seed and member alone."""
        data = description(self.dataset)
        settings = _parse(self.method, self.method_class, self.settings)
        return self.method_class.compose(
            lambda member: build_network(self.network, data, self.seed, member), **settings
        )

    def build_method(self, network: nn.Module) -> AdversarialTraining:
        """Put the method around ``network``."""
        settings = _parse(self.method, self.method_class, self.settings)
        return self.method_class(network, self.threat, recipe=self.recipe, seed=self.seed, **settings)


def description(choice: DataChoice) -> Description:
    """Describe a suite's data set; a user's own is read for that."""
    return describe(choice.name) if choice.code is None else own_data.describe(choice.code)


def build_network(choice: NetworkChoice, data: Description, seed: int, member: int = 0) -> nn.Module:
    """Make an untrained network for a data set, leaving the global random state as it was.

    The first member of an ensemble has the weights of a single network with that seed.
    """
    import torch

    from attacks.randomness import key

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "network", *([member] if member else [])) >> 1)
        if choice.code is not None:
            return own_network.build(choice.code, data, choice.settings).train()
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
    suite, experiments = own_parts.take_up(suite), []
    data = description(suite.dataset)
    network = build_network(suite.network, data, seed=0)  # so that a misspelling is told now
    if data.classes < 4 and "autoattack" in suite.evaluation.attacks:
        raise BadInput(
            f"AutoAttack needs at least 4 classes (targeted DLR), but {data.name} has {data.classes}: "
            "choose other attacks with --set evaluation.attacks=[pgd20,cw20]"
        )
    if suite.dataset.code or suite.network.code:
        own_network.try_out(network, data, suite.network.name, suite.network.code)
    for method, own in suite.methods.items():
        code = suite.own.get(method)
        settings = resolve(method, own or {}, suite.inner_steps, code)
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
                        code=code,
                    )
                )
        if code is not None:
            user_code.call(code, experiments[-1].build_method, network=network)  # the user's constructor may fail
    return experiments


def resolve(method: str, own: dict[str, Any], inner_steps: int, code: UserCode | None = None) -> dict[str, Any]:
    """Write out all settings of a method: its defaults, the preset's number of inner steps, then its ``own``.

    A method without an ``inner`` setting has its number of steps by definition, and the preset's is not used.

    Raises:
        BadInput: naming the method and the key.
    """
    found = own_method.find(method, code)
    defaults = {"inner": {"steps": inner_steps}} if "inner" in _parser(found).get_defaults() else {}
    inner = own.get("inner")
    merged = {**defaults, **own}
    if defaults and isinstance(inner, dict):
        merged["inner"] = {**defaults["inner"], **inner}
    parsed = _parse(method, found, merged)
    return {key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in parsed.items()}


def _without(value: Any, *keys: str) -> dict[str, Any]:
    return {key: part for key, part in asdict(value).items() if key not in keys}


def _parser(found: type[AdversarialTraining]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, skip={"network", "threat", "recipe", "seed"})
    return parser


def _parse(method: str, found: type[AdversarialTraining], settings: dict[str, Any]) -> dict[str, Any]:
    parser = _parser(found)
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
