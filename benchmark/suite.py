"""A suite: what is trained, with what, and how it is attacked; YAML, checked key by key."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from attacks.pixels import fraction
from attacks.threat import ThreatModel
from benchmark import curves as curve_settings
from benchmark import row_attack
from benchmark.changes import based_on, set_value
from benchmark.curves import Curves
from benchmark.data.description import Augmentation
from benchmark.data.extra import is_dataset
from benchmark.data.unlabelled import Unlabelled
from benchmark.errors import BadInput
from benchmark.evaluation_settings import Evaluation, check_distinct
from benchmark.storage import read_yaml
from benchmark.user_code import UserCode, anchored
from methods.recipe import Recipe

FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class DataChoice:
    """Which images, and how many of them keep their label where a method learns from unlabelled ones.

    Args:
        name: of the data set; a user's FILE:OBJECT becomes a name and its ``code`` in
            :func:`benchmark.own_parts.take_up`.
        augment: whether training images are moved as is usual for the set, or how, such as crop2+flip.
        train_images, validation_images: cut the set down.
        folds: of digits, 0 to 4.
        labels: training images that keep their label for semi-supervised methods and their references, None for a sixth
            of them; no other method sees a difference. How they are chosen: ``label_choice``, see
            ``benchmark.data.hidden_labels``.
        unlabelled: what such methods have beside the images whose labels are hidden, such as a folder of images.
    """

    name: str = "digits"
    augment: bool | Augmentation = False
    train_images: int | None = None
    validation_images: int | None = None
    folds: list[int] = field(default_factory=lambda: [0])
    code: UserCode | None = None
    labels: int | None = None
    label_choice: Literal["stratified", "permutation", "file"] = "stratified"
    unlabelled: Unlabelled = Unlabelled()

    def __post_init__(self) -> None:
        check_distinct("dataset.folds", self.folds)
        if self.labels is not None and self.labels < 1:
            raise BadInput(f"dataset.labels is 1 or more, but found {self.labels}")


@dataclass(frozen=True)
class NetworkChoice:
    """Which network: a name of ``atbench list architectures``, or a user's FILE:BUILDER, and its settings."""

    name: str = "digits_cnn"
    settings: dict[str, Any] = field(default_factory=dict)
    code: UserCode | None = None


@dataclass(frozen=True)
class Suite:
    """One suite, as read from ``suites/NAME.yaml`` or a file of the user's.

    Args:
        note: a warning that every table, figure page and CSV carries.
        inner_steps: attack steps in training, for methods that let a preset choose.
        methods: keys of methods to their own settings; nothing but what is special to them. ``trades/beta_1`` is a
            variant of the method, which starts from the settings of its row, ``trades``, here or in the suite that this
            one is based on; ``trades@200`` is the method trained on 200 labelled images alone. One may be a user's
            FILE:CLASS.
        seeds: one experiment each, for every method (and fold).
        precision: of training, as Lightning names it; evaluation is in float32.
        sync_batchnorm: share BatchNorm's statistics between several GPUs; else each has those of its part of the batch.
        own: where methods of a user's live, by key.
        against: the methods that those are compared with; where none is named, all are compared with ``pgd_at``.
        curves: accuracy on training and on test images over the epochs; None for none.
    """

    name: str
    title: str = ""
    note: str = ""
    track: Literal["common", "published"] = "common"
    dataset: DataChoice = DataChoice()
    network: NetworkChoice = NetworkChoice()
    threat: ThreatModel = ThreatModel()
    inner_steps: int = 10
    recipe: Recipe = Recipe()
    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    sync_batchnorm: bool = False
    evaluation: Evaluation = Evaluation()
    own: dict[str, UserCode] = field(default_factory=dict)
    against: list[str] = field(default_factory=list)
    curves: Curves | None = None

    def __post_init__(self) -> None:
        check_distinct("seeds", self.seeds)
        check_distinct("against", self.against, may_be_empty=True)

    def as_plain(self) -> dict[str, Any]:
        """Give the suite as values that YAML holds, every default written out but those of a user's own code."""
        values: dict[str, Any] = _plain(asdict(self))
        seldom = [
            (values["dataset"], "code"),
            (values["network"], "code"),
            (values, "own"),
            (values, "against"),
            (values, "curves"),
        ]
        seldom += [(values["evaluation"], "row"), (values["evaluation"], "save_adversarial")]
        if not any(values["evaluation"]["unseen"].values()):
            del values["evaluation"]["unseen"]
        if self.dataset.unlabelled == Unlabelled():
            del values["dataset"]["unlabelled"]
        if not values["evaluation"]["surrogate"]["attacks"]:
            del values["evaluation"]["surrogate"]
        for holder, key in seldom:
            if not holder[key]:
                del holder[key]
        return values


def names() -> list[str]:
    """List the suites that come with the project, but for the published recipes: :mod:`benchmark.published`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipes() -> list[str]:
    """List the published recipes that come with the project, such as ``published/trades``."""
    return sorted(f"published/{path.stem}" for path in (FOLDER / "published").glob("*.yaml"))


def load(name: str, changes: Mapping[str, Any] | None = None) -> Suite:
    """Read a suite by name or by the path of a YAML file.

    Args:
        changes: dotted keys to values that replace what the file says, such as ``{"recipe.epochs": 2}``.

    Raises:
        BadInput: for an unknown suite, a key that is not in the schema (with the nearest that is), a value of the wrong
            type, or an unknown method; the sentence names file and key.
    """
    path, values = _read(name, ())
    for key, value in (changes or {}).items():
        set_value(values, key, value)
    _anchor(values, Path())
    stray = next((key for key in values if key not in Suite.__dataclass_fields__), None)
    if stray is not None:
        near = difflib.get_close_matches(str(stray), Suite.__dataclass_fields__, n=1)
        raise BadInput(f"{path}: there is no key {stray!r}" + (f": did you mean {near[0]}?" if near else ""))
    for section in ("dataset", "network", "threat", "recipe", "evaluation"):  # the parser takes a word for a file
        if not isinstance(values.get(section, {}), dict):
            raise BadInput(f"{path}: {section} holds keys and their values, but found {values[section]!r}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Suite)
    try:
        if "epsilon" in values.get("threat", {}):
            values["threat"] |= {"epsilon": fraction(values["threat"]["epsilon"], "threat.epsilon")}
        if values.get("evaluation", {}).get("row") is not None:
            row_attack.check(values["evaluation"]["row"])
        curve_settings.check(values.get("curves"))
        suite = Suite(**dict(parser.instantiate(parser.parse_object(values))))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (ArgumentError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: {_one_sentence(str(error), values)}") from None
    if not suite.methods:
        raise BadInput(f"{path}: methods names at least one method (atbench list methods)")
    return suite


def read_change(text: str) -> tuple[str, Any]:
    """Split ``recipe.epochs=2`` into the key and its value, read as YAML; raises :class:`BadInput`."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise BadInput(f"--set takes KEY=VALUE, such as recipe.epochs=2, but found {text!r}")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise BadInput(f"--set {key}: {value!r} is not a YAML value") from None


def _read(name: str, above: tuple[Path, ...]) -> tuple[Path, dict[str, Any]]:
    """Read a suite and what it is based on; a file named there is looked for beside the file that names it."""
    beside = above[-1].parent if above else Path()
    path = beside / name if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.resolve() in above:
        raise BadInput(f"{above[-1]}: based_on leads in a circle, back to {path}")
    if not path.is_file():
        near = [recipe for recipe in recipes() if recipe == f"published/{name}"]
        near = near or difflib.get_close_matches(name, recipes() if "/" in name else names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}, or give a .yaml file"
        where = f"{above[-1]}: based_on: " if above else ""
        raise BadInput(f"{where}there is no suite {name!r}: {hint}")
    values = read_yaml(path)
    _anchor(values, path.parent)
    base = values.pop("based_on", None)
    if base is not None:
        values = based_on(_read(str(base), (*above, path.resolve()))[1], values)
    return path, values


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Look from ``folder`` for the files of a user's that a suite names, in place."""
    for section in ("dataset", "network"):
        part = values.get(section)
        if isinstance(part, dict) and isinstance(part.get("name"), str) and not part.get("code"):
            values[section] = part | {"name": anchored(part["name"], folder)}
    unlabelled = (values.get("dataset") or {}).get("unlabelled") if isinstance(values.get("dataset"), dict) else None
    if (
        isinstance(unlabelled, dict)
        and isinstance(unlabelled.get("extra"), str)
        and not is_dataset(unlabelled["extra"])
    ):
        unlabelled["extra"] = str((folder / Path(unlabelled["extra"]).expanduser()).absolute())
    if isinstance(values.get("methods"), dict):
        values["methods"] = {anchored(str(name), folder): own for name, own in values["methods"].items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _one_sentence(message: str, values: dict[str, Any]) -> str:
    """Shorten the parser's message and point at the nearest key where one was misspelled."""
    text = " ".join(message.split()).replace("Parser key ", "key ").replace("typing.", "")
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    for wrong in (word.strip("'\"") for word in text.split() if word.startswith(("'", '"'))):
        known = [*Suite.__dataclass_fields__, *Recipe.__dataclass_fields__, *Evaluation.__dataclass_fields__]
        if wrong not in known and ("not accept" in text or "not expected" in text):
            near = difflib.get_close_matches(wrong, known, n=1)
            return f"{text}: did you mean {near[0]}?" if near else text
    return text
