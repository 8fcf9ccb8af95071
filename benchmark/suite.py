"""A suite: what is trained, with what, and how it is attacked; YAML, checked key by key."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from attacks.pixels import Pixels, fraction
from attacks.threat import ThreatModel
from benchmark import curves as curve_settings
from benchmark import row_attack
from benchmark.changes import based_on, set_value
from benchmark.curves import Curves
from benchmark.data.description import Augmentation
from benchmark.data.extra import is_dataset
from benchmark.data.unlabelled import Unlabelled
from benchmark.errors import BadInput
from benchmark.row_attack import RowAttack
from benchmark.storage import read_yaml
from benchmark.user_code import UserCode, anchored
from methods.recipe import Recipe

FOLDER = Path(__file__).parent / "suites"


def _check_distinct(key: str, values: list[Any], *, may_be_empty: bool = False) -> None:
    if not values and not may_be_empty:
        raise BadInput(f"{key} holds at least one value, but found []")
    if len(set(values)) < len(values):
        raise BadInput(f"{key} holds every value once, but found {values}")


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
        _check_distinct("dataset.folds", self.folds)
        if self.labels is not None and self.labels < 1:
            raise BadInput(f"dataset.labels is 1 or more, but found {self.labels}")


@dataclass(frozen=True)
class NetworkChoice:
    """Which network: a name of ``atbench list architectures``, or a user's FILE:BUILDER, and its settings."""

    name: str = "digits_cnn"
    settings: dict[str, Any] = field(default_factory=dict)
    code: UserCode | None = None


@dataclass(frozen=True)
class Unseen:
    """Attacks on the ranked checkpoint that no method was trained on; see :mod:`benchmark.unseen`.

    Those in the threat's own norm, at radii above that of training, are among ``epsilons`` as ever.

    Args:
        l2, l1: radii of these norms, in pixel units. Of each the first one is a part of the union, with the training
            epsilon.
        transfer_from: rows of the suite whose pictures are shown to all others, at the training epsilon.
    """

    l2: list[float | str] = field(default_factory=list)
    l1: list[float | str] = field(default_factory=list)
    transfer_from: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("l2", "l1"):
            radii = [fraction(value, f"evaluation.unseen.{name}") for value in getattr(self, name)]
            _check_distinct(f"evaluation.unseen.{name}", radii, may_be_empty=True)
            object.__setattr__(self, name, radii)
        _check_distinct("evaluation.unseen.transfer_from", self.transfer_from, may_be_empty=True)


@dataclass(frozen=True)
class Surrogate:
    """Pictures made on naturally trained networks of other seeds, shown to ranked checkpoints: black-box figures.

    Args:
        attacks: how they are made: ``fgsm``; ``pgd20``, steps of epsilon/4; ``pgd30``, steps of epsilon/10.
        networks: how many there are at least, whose mean prediction is attacked; the suite's other seeds come first.
        classes: of the methods that they are shown to; by default ensembles, whose claim it is.
    """

    attacks: list[Literal["fgsm", "pgd20", "pgd30"]] = field(default_factory=list)
    networks: int = 1
    classes: list[Literal["A", "B", "C", "D", "E", "F"]] = field(default_factory=lambda: ["C"])

    def __post_init__(self) -> None:
        _check_distinct("evaluation.surrogate.attacks", list(self.attacks), may_be_empty=True)
        if self.networks < 1:
            raise BadInput(f"evaluation.surrogate.networks is 1 or more, but found {self.networks}")

    @property
    def names(self) -> list[str]:
        """Names of the attacks in the evidence."""
        return [f"surrogate_{attack}" for attack in self.attacks]


@dataclass(frozen=True)
class Evaluation:
    """How every model is attacked.

    Args:
        epsilons: radii at which the cheap attacks run, in pixel units, such as 8/255.
        ranked_at: radii at which models are ranked; among ``epsilons``. AutoAttack runs at these, always in full.
        sweep: of AutoAttack over all other ``epsilons``: ``strict`` in full, ``descending`` with verdicts carried
            from one radius to the next (:mod:`benchmark.sweep`), ``none`` for no sweep.
        attacks: names of :data:`benchmark.evaluation.ATTACKS`.
        images: test images, the first ones; None for all.
        batch_size: images attacked together, and the unit of resumption.
        checkpoints: which of a run's networks are attacked; AutoAttack runs on ``ranked_checkpoint`` only.
        steps, step_size, restarts: of the two fixed-step attacks.
        seed: of all draws.
        row: the attack of the method's row of Table 1, where ``attacks`` names ``row``; for published recipes.
        engine: of AutoAttack: ``fast``, ours, or ``official``, its authors' package.
        precision: of the fast engine's search; every success is confirmed in float32.
        slots: images in the fast engine's batch; None: 64 on a CPU, 512 on a GPU; ``auto``: by a short probe.
        compile: the network, through ``torch.compile``, for the fast engine.
        custom: the attacks of ``autoattack_custom``.
        save_adversarial: keep the picture behind each verdict: :mod:`benchmark.results.pictures`.
        unseen: attacks in other norms and from other networks, which no ranking rests on.
        surrogate: pictures made on other networks, which no ranking rests on: :mod:`benchmark.surrogate`.
    """

    epsilons: list[float | str] = field(default_factory=lambda: ["8/255"])
    ranked_at: list[float | str] = field(default_factory=lambda: ["8/255"])
    attacks: list[str] = field(default_factory=lambda: ["pgd20", "cw20", "autoattack"])
    images: int | None = None
    batch_size: int = 200
    checkpoints: list[Literal["last", "best"]] = field(default_factory=lambda: ["last", "best"])
    ranked_checkpoint: Literal["last", "best"] = "last"
    steps: int = 20
    step_size: str | float = "epsilon/4"
    restarts: int = 1
    seed: int = 0
    row: RowAttack | None = None
    engine: Literal["fast", "official"] = "fast"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    slots: int | Literal["auto"] | None = None
    compile: bool = False
    custom: list[str] = field(default_factory=list)
    save_adversarial: bool = False
    sweep: Literal["none", "strict", "descending"] = "none"
    unseen: Unseen = Unseen()
    surrogate: Surrogate = Surrogate()

    def __post_init__(self) -> None:
        for name in ("epsilons", "ranked_at"):
            radii = sorted({fraction(value, f"evaluation.{name}") for value in getattr(self, name)})
            object.__setattr__(self, name, radii)
        stray = set(self.ranked_at) - set(self.epsilons)
        if stray:
            raise BadInput(f"evaluation.ranked_at lies among evaluation.epsilons, but found {sorted(stray)}")
        if self.ranked_checkpoint not in self.checkpoints:
            raise BadInput(f"evaluation.ranked_checkpoint ({self.ranked_checkpoint}) is among evaluation.checkpoints")
        _check_distinct("evaluation.ranked_at", self.ranked_at)
        _check_distinct("evaluation.attacks", self.attacks, may_be_empty=True)
        for name in ("batch_size", "restarts", "steps"):
            if getattr(self, name) < 1:
                raise BadInput(f"evaluation.{name} is 1 or more, but found {getattr(self, name)}")
        if isinstance(self.slots, int) and self.slots < 1:
            raise BadInput(f"evaluation.slots is 1 or more, or auto, but found {self.slots}")
        if self.images is not None and self.images < 1:
            raise BadInput(f"evaluation.images is 1 or more, but found {self.images}")
        Pixels.read(self.step_size, "evaluation.step_size")
        if self.row is not None and self.row.epsilon not in self.ranked_at:
            raise BadInput(
                f"evaluation.row.epsilon lies among evaluation.ranked_at, {self.ranked_at}, "
                f"but found {self.row.epsilon}"
            )


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
        _check_distinct("seeds", self.seeds)
        _check_distinct("against", self.against, may_be_empty=True)

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
