"""Build a network that a report is about once more, and load the images it was tested on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.threat import ThreatModel
from benchmark import own_model, user_code
from benchmark.data import Images, load
from benchmark.errors import BadInput
from benchmark.experiment import Experiment, description
from benchmark.storage import read_yaml
from benchmark.suite import DataChoice, NetworkChoice
from benchmark.tasks import restore
from benchmark.user_code import UserCode, is_reference, shown
from benchmark.verification import Sources
from methods.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A network in eval mode with its weights, on the device that is there, and its test images."""

    network: nn.Module
    test: Images


def weights_of(report: Path, card: dict[str, Any], checkpoint: str, noted: str | None, sources: Sources) -> Path:
    """Find the weights that verdicts were measured on; ``noted`` is where they lay, as seen from the report.

    Raises:
        BadInput: when they are not there.
    """
    name = str(card["experiment"])
    if "identity" not in card:  # of atbench evaluate
        path, option = sources.weights, "--weights FILE"
    else:
        folder = sources.checkpoints
        path, option = folder and folder / name / f"{checkpoint}.safetensors", "--checkpoints FOLDER"
        if sources.weights is not None:
            raise BadInput(f"--weights is for a report of atbench evaluate; {name} was trained: use --checkpoints")
    if path is None:
        path = report / noted if noted else Path("checkpoints") / name / f"{checkpoint}.safetensors"
    if not path.is_file():
        raise BadInput(
            f"the weights of {name}, {checkpoint}, are not at {shown(path.resolve())}: {option} says where they lie, "
            "--tables checks files and tables without them"
        )
    return path


def rebuild(report: Path, card: dict[str, Any], weights: Path, digest: str, sources: Sources) -> Rebuilt:
    """Make the network of a card with its weights, whose SHA-256 is ``digest``, and load its test images.

    Raises:
        BadInput: when data or a user's file is missing or another than it was, or the weights do not fit the network.
    """
    where: dict[str, Any] = {"download": sources.download}
    if "identity" in card:
        trained = _experiment(report, card, sources)
        try:
            network = restore(trained, weights, digest)
        except RuntimeError as error:  # of load_state_dict
            reason = " ".join(str(error).split())[:160]
            raise BadInput(f"{weights} does not fit the network that {trained.name}'s card names: {reason}") from None
        choice = trained.dataset
        return Rebuilt(network, load(choice.name, sources.data_root, fold=trained.fold, code=choice.code, **where).test)
    code = card.get("code") or {}
    choice = DataChoice(str(card["dataset"]), code=_located(code.get("dataset"), report, sources))
    own, model = _located(code.get("network"), report, sources), str(card["network"])
    if own is None and is_reference(model):
        raise BadInput(
            f"the card of {card['experiment']} does not say which file {model} is: evaluate it anew with this version"
        )
    network = own_model.build(model if own is None else f"{own.path}:{own.name}", description(choice))
    own_model.load_into(network, weights)
    network = own_model.scaled(network, float(card.get("logit_scale", 1.0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Rebuilt(
        network.to(device).eval(), load(choice.name, sources.data_root, fold=0, code=choice.code, **where).test
    )


def _experiment(report: Path, card: dict[str, Any], sources: Sources) -> Experiment:
    """Read an experiment back from its card, as far as network and test images depend on it."""
    identity, suite = card["identity"], read_yaml(report / "suite.yaml")
    key = str(identity["method"])
    own = {
        "method": (suite.get("own") or {}).get(key),
        "dataset": suite["dataset"].get("code"),
        "network": suite["network"].get("code"),
    }
    code = {part: _located(own[part], report, sources) for part in own if part in identity.get("own", {})}
    try:
        return Experiment(
            method=key,
            settings=identity["settings"],
            dataset=_fields(DataChoice, identity["dataset"], code=code.get("dataset")),
            fold=identity["dataset"]["fold"],
            network=_fields(NetworkChoice, {"name": card["network"], **identity["network"]}, code=code.get("network")),
            threat=_fields(ThreatModel, identity["threat"] or suite["threat"]),
            recipe=_fields(Recipe, identity["recipe"]),
            seed=identity["seed"],
            precision=identity["precision"],
            code=code.get("method"),
            row=str(card["method"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"expected what the network follows from in the card of {card['experiment']}: {reason}"
        ) from None


def _fields(kind: Any, values: dict[str, Any], **others: Any) -> Any:
    """Make a record of those ``values`` that it has a field for."""
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in values.items() if key in known}, **others)


def _located(noted: dict[str, str] | None, report: Path, sources: Sources) -> UserCode | None:
    """Find a file of the user's that the report names, as it was when the report was made.

    One inside the report is not run unasked: whoever made the report may have written it.
    """
    if noted is None:
        return None
    path, name = Path(noted["path"]), noted["name"]
    remedy = "--code FOLDER says where it lies, --tables checks files and tables without it"
    if sources.code is not None:
        path = sources.code / path.name
    elif path.resolve().is_relative_to(report.resolve()):
        raise BadInput(f"{shown(path)} would be run, but came with the report: read it, then give --code {path.parent}")
    if not path.is_file():
        raise BadInput(f"the report was measured with {path.name}:{name}, but there is no {shown(path)}: {remedy}")
    found = user_code.find(f"{path}:{name}", "build")
    if found.sha256 != noted["sha256"]:
        raise BadInput(
            f"{shown(path)}, or what it imports, is not what the report was measured with (fingerprint "
            f"{found.sha256[:12]}, expected {noted['sha256'][:12]}): {remedy}"
        )
    return found
