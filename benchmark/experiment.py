"""One experiment: everything that changes the weights it ends with, and the name that follows from it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attacks.threat import ThreatModel
from benchmark import architectures, own_method, own_network, own_parts, user_code
from benchmark.curves import Curves
from benchmark.data import Description, describe, load
from benchmark.data import own as own_data
from benchmark.data.hidden_labels import choose_labelled, digest, usual_labels
from benchmark.data.unlabelled import pool_identity
from benchmark.errors import BadInput
from benchmark.kin import kin
from benchmark.results.rows import parts
from benchmark.settings import parse, resolve
from benchmark.storage import sha256
from benchmark.suite import DataChoice, NetworkChoice, Suite
from benchmark.user_code import UserCode
from methods.base import AdversarialTraining
from methods.recipe import Recipe


@dataclass(frozen=True)
class Experiment:
    """Train one method once.

    Args:
        settings: the method's own, with every default written out, so that a changed default is another experiment.
        labels: how many training images keep their label; None where all do.
        row: what tables call it, such as ``trades@200`` or ``trades/beta_1``; by default the method's key.
        reference: whether it is only there to be compared with.
        teacher: whose predictions on the unlabelled images it learns from; trained before.
        data_root: where the data set lies, for the choice of the labelled images.
        curves: what is measured beside the training, which changes no weights.
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
    labels: int | None = None
    row: str = ""
    reference: bool = False
    teacher: "Experiment | None" = None
    data_root: Path | None = None
    curves: Curves | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "row", self.row or self.method)

    @property
    def semi_supervised(self) -> bool:
        """Whether the method also trains on the images whose labels are hidden; a reference leaves them out."""
        return self.method_class.references is not None

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """The indices of the training images that keep their label; the run's seed chooses them.

        Raises:
            BadInput: where so many labels cannot be chosen, or the data set is missing.
        """
        index, y, classes = _training_part(self.dataset, self.data_root, self.fold)
        choice = self.dataset.label_choice
        return choose_labelled(index, y, self.labels or 0, classes=classes, seed=self.seed, choice=choice)

    def identity(self) -> dict[str, Any]:
        """Give what the weights depend on, as plain values; where and with how many workers it ran is not among it."""
        faces_adversary = self.method_class.faces_adversary
        dataset = _without(self.dataset, "folds", "code", "labels", "label_choice", "unlabelled") | {"fold": self.fold}
        if self.labels is not None:  # nothing of it for methods that see all labels, whatever the suite says
            dataset |= {"labels": self.labels, "labelled": digest(self.labelled)}
            dataset |= pool_identity(self.dataset.unlabelled, description(self.dataset))
        plain = {
            "method": self.method,
            "settings": _with_hashes(self.settings) if faces_adversary else {},
            "threat": asdict(self.threat) if faces_adversary else None,
            "dataset": dataset,
            "network": _without(self.network, "code", *(["name"] if self.network.code else [])),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "precision": self.precision,
            **({"sync_batchnorm": True} if self.sync_batchnorm else {}),
            **({} if self.teacher is None else {"teacher": self.teacher.name}),
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

    @cached_property
    def name(self) -> str:
        """Name the experiment's folder: readable in front, a hash of :meth:`identity` behind."""
        text = json.dumps(self.identity(), sort_keys=True, default=str)
        fold = f"-f{self.fold}" if self.fold else ""
        labels = "" if self.labels is None else f"-n{self.labels}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.method}-{self.dataset.name}{labels}{fold}-s{self.seed}-{digest}"

    def build_network(self) -> nn.Module:
        """Make the untrained network, as the method composes it; weights follow from seed and member alone."""
        data = description(self.dataset)
        settings = parse(self.method, self.method_class, self.settings)
        return self.method_class.compose(
            lambda member, kind=None: build_network(kin(self.network, kind), data, self.seed, member), **settings
        )

    def build_method(self, network: nn.Module) -> AdversarialTraining:
        """Put the method around ``network``."""
        settings = parse(self.method, self.method_class, self.settings)
        return self.method_class(network, self.threat, recipe=self.recipe, seed=self.seed, **settings)


def _with_hashes(settings: dict[str, Any]) -> dict[str, Any]:
    """Put the hash of a file of weights in the place of its path: where it lies changes nothing."""
    named = {key: Path(value) for key, value in settings.items() if str(value).endswith(".safetensors")}
    for key, path in named.items():
        if not path.is_file():
            raise BadInput(f"{key} names a file of weights, but there is no {path}")
    return settings | {key: f"sha256:{sha256(path)}" for key, path in named.items()}


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


def plan(suite: Suite, data_root: Path | None = None) -> list[Experiment]:
    """List the suite's experiments, every method with every seed and fold, in the suite's order.

    The references of semi-supervised methods, which a suite need not name, are ``benchmark.references.references``.

    Raises:
        BadInput: for an unknown method, data set or network, a setting that a method does not have, or a user's file
            with a mistake.
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
    for row, own in suite.methods.items():
        key, labels = _with_labels(row, suite, data_root)
        code = suite.own.get(key)
        own = own or suite.methods.get(row.partition("@")[0]) or {}
        settings = resolve(key, own, suite.inner_steps, code, row=row)
        for fold in suite.dataset.folds:
            for seed in suite.seeds:
                experiments.append(experiment(suite, key, settings, fold, seed, labels, row, data_root))
        if code is not None:
            user_code.call(code, experiments[-1].build_method, network=network)  # the user's constructor may fail
    return experiments


def experiment(
    suite: Suite,
    method: str,
    settings: dict[str, Any],
    fold: int,
    seed: int,
    labels: int | None,
    row: str,
    data_root: Path | None = None,
) -> Experiment:
    """Make one experiment of a suite, with its teacher where it has one; ``settings`` as :func:`resolve` gives them."""
    kind, teacher = own_method.find(method, suite.own.get(method)), None
    if labels is not None and kind.pools_apart and suite.dataset.unlabelled.with_labelled:
        raise BadInput(
            f"{method} samples labelled and unlabelled images apart: set dataset.unlabelled.with_labelled to false"
        )
    if labels is not None and kind.references is not None and kind.needs_teacher(settings):
        key, own = kind.references.teacher.method, dict(kind.references.teacher.settings)
        taught_by = resolve(key, own, suite.inner_steps)
        teacher = experiment(suite, key, taught_by, fold, seed, labels, f"{key}@{labels}", data_root)
    return Experiment(
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
        code=suite.own.get(method),
        labels=labels,
        row=row,
        reference=labels is not None and kind.references is None,
        teacher=teacher,
        data_root=data_root,
        curves=suite.curves,
    )


def _with_labels(row: str, suite: Suite, data_root: Path | None) -> tuple[str, int | None]:
    """Give a row's method and the number of its labels, as in ``trades@200``; a semi-supervised one has the suite's."""
    key, _, number = parts(row)
    if number:
        if not number[1:].isdecimal() or int(number[1:]) < 1:
            raise BadInput(f"methods.{row}: after @ stands the number of labelled images, as in trades@200")
        own_method.find(key, suite.own.get(key))
        return key, int(number[1:])
    if own_method.find(key, suite.own.get(key)).references is None:
        return key, None
    if suite.dataset.labels is not None:
        return key, suite.dataset.labels
    _, labels, classes = _training_part(suite.dataset, data_root, suite.dataset.folds[0])
    return key, usual_labels(len(labels), classes)


def _training_part(choice: DataChoice, data_root: Path | None, fold: int) -> tuple[Tensor, Tensor, int]:
    """Give index and labels of a suite's training images, and the number of classes."""
    return _training_labels(choice.name, data_root, fold, choice.train_images, choice.validation_images, choice.code)


@lru_cache(maxsize=16)
def _training_labels(
    name: str, root: Path | None, fold: int, train_images: int | None, validation_images: int | None, code: Any
) -> tuple[Tensor, Tensor, int]:
    splits = load(name, root, fold=fold, train_images=train_images, validation_images=validation_images, code=code)
    return splits.train.index, splits.train.labels, splits.description.classes


def _without(value: Any, *keys: str) -> dict[str, Any]:
    return {key: part for key, part in asdict(value).items() if key not in keys}
