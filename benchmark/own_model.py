"""Evaluate a model that somebody trained elsewhere: a builder in a file, weights, and the standard attacks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from attacks.checks import check_classifier, check_images
from attacks.passes import networks_in
from attacks.threat import Norm, ThreatModel
from benchmark import architectures, own_network, own_parts, user_code
from benchmark.credibility.run import Depth
from benchmark.credibility.saved import keep_saved, left_of
from benchmark.credibility.task import keep_probes, way_of
from benchmark.data import Description, Images, load
from benchmark.display import bars
from benchmark.errors import BadInput
from benchmark.evaluation import Tell, check_versions, evaluate, jobs
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import description
from benchmark.results import manifest
from benchmark.results.evidence import card_path, escaped, evidence_folder
from benchmark.results.probes import is_probed, probe_path
from benchmark.storage import load_weights, locked, sha256, write_yaml
from benchmark.suite import DataChoice
from benchmark.tasks import same_measurement
from benchmark.training import versions
from benchmark.user_code import is_reference


def evaluate_file(
    model: str,
    weights: Path,
    *,
    dataset: str,
    norm: Norm,
    settings: Evaluation,
    name: str | None,
    output: Path | None,
    data_root: Path | None,
    download: bool,
    credibility: Depth = "cheap",
    logit_scale: float = 1.0,
) -> int:
    """Attack and probe the model of ``FILE:BUILDER`` with ``weights`` and make a report; returns the exit code.

    Args:
        logit_scale: what its logits are multiplied by before anyone sees them, see :class:`Scaled`.
        credibility: how thoroughly it is probed, see :mod:`benchmark.credibility.run`.

    Raises:
        BadInput: for a builder, weights, data set or network that does not fit, naming the file.
    """
    choice = own_parts.data(DataChoice(dataset))
    data, dataset = description(choice), choice.name
    network = build(model, data)
    load_into(network, weights)
    network = scaled(network, logit_scale)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).eval()
    test = load(dataset, data_root, download=download, code=choice.code).test
    probe(network, test.take(torch.arange(2)).to(device), model)
    list(jobs(settings, ranked=True))  # so that a misspelled attack is told before anything is written
    few = test.take(torch.arange(1)).to(device)
    check_versions(network, few, ThreatModel(norm), settings, settings.attacks)
    name = name or weights.stem
    how: dict[str, Any] = {} if logit_scale == 1 else {"logit_scale": logit_scale}
    report = output or Path("reports") / escaped(f"evaluate-{name}")
    console = Console(stderr=True)
    with locked(report):
        digest = sha256(weights)
        images = dataset if choice.code is None else f"{dataset} {choice.code.sha256[:12]}"
        same_measurement(report, name, "last", settings, weights=digest, dataset=images, norm=norm, path=weights, **how)
        _describe_run(report, name, model, network, choice, norm, settings, digest, how)
        manifest.forget_missing(report)
        threat = ThreatModel(norm, max(map(float, settings.epsilons)))
        with bars(console) as progress:
            tell = _teller(progress, name)
            evaluate(
                network,
                test,
                threat,
                settings,
                place=lambda job: evidence_folder(report, name, "last", *job),
                tell=tell,
            )
            way = way_of(settings, threat, dataset=images, weights=digest) | how
            probed = is_probed(path := probe_path(report, name, "last"), way, credibility)
            manifest.forget(report, [*([] if probed else [path]), *left_of(report, name, "last", way)])
            keep_probes(report, name, "last", lambda: network, test, threat, settings, way, credibility, tell)
            keep_saved(report, name, "last", lambda: network, test, threat, settings, way)
        from benchmark.report import build as build_report

        build_report(report)
    console.out(f"report: {report / 'index.html'}", highlight=False)
    return 0


def build(model: str, data: Description) -> nn.Module:
    """Make the network of ``FILE:BUILDER``, or the architecture of that name for the data set.

    Raises:
        BadInput: naming file and line where the user's code fails.
    """
    if is_reference(model):
        return own_network.build(user_code.find(model, "build"), data)
    return architectures.build(
        model, classes=data.classes, channels=data.channels, size=data.size, mean=data.mean, std=data.std
    )


class Scaled(nn.Module):
    """A network whose logits are multiplied by a factor: predictions stay, attacks on their cross-entropy change.

    Some networks give raw cosines, on which cross-entropy hardly has a gradient; other people's figures may stand on
    them.
    """

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` of images ``(n, c, h, w)``."""
        logits: Tensor = self.factor * self.network(x)
        return logits


def scaled(network: nn.Module, factor: float) -> nn.Module:
    """Multiply the logits of ``network`` by ``factor``; raises :class:`BadInput` unless it is above 0."""
    if not factor > 0:
        raise BadInput(f"--logit-scale is above 0, but found {factor:g}")
    return network if factor == 1 else Scaled(network, factor)


def probe(network: nn.Module, images: Images, model: str) -> None:
    """Run the network on a few images, so that what does not fit is told before hours are spent on it.

    Raises:
        BadInput: naming ``model``, or the line of the user's file.
    """
    check_images(images.pixels(), images.labels)
    try:
        check_classifier(network, images.pixels(), images.labels)
    except BadInput as error:
        raise BadInput(f"{model}: {error}") from None
    except (Exception, SystemExit) as error:
        place = user_code.place(error, user_code.find(model, "build").path) if is_reference(model) else ""
        shape = tuple(images.images.shape)
        raise BadInput(
            f"{place or model}: the network failed on images of shape {shape} with {user_code.described(error)}"
        ) from error


def load_into(network: nn.Module, path: Path) -> None:
    """Put the weights of a file into ``network``; raises :class:`BadInput` naming the first entry that does not fit."""
    weights = load_weights(path)
    own = network.state_dict()
    missing = [key for key in own if key not in weights]
    surplus = [key for key in weights if key not in own]
    if missing or surplus:
        first = f"{missing[0]} is missing" if missing else f"{surplus[0]} has no place"
        raise BadInput(
            f"{path} does not fit the network: {first} ({len(missing)} missing, "
            f"{len(surplus)} without a place, of {len(own)})"
        )
    for key, value in own.items():
        if value.shape != weights[key].shape:
            raise BadInput(
                f"{path} does not fit the network: {key} has shape {tuple(weights[key].shape)}, "
                f"the network wants {tuple(value.shape)}"
            )
    network.load_state_dict(weights)


def _describe_run(
    report: Path,
    name: str,
    model: str,
    network: nn.Module,
    choice: DataChoice,
    norm: Norm,
    settings: Evaluation,
    digest: str,
    how: dict[str, Any],
) -> None:
    """Write what a report needs to know: a suite of one model, and its card."""
    own = {"network": user_code.find(model, "build") if is_reference(model) else None, "dataset": choice.code}
    code = {part: asdict(found) for part, found in own.items() if found is not None}
    write_yaml(
        report / "suite.yaml",
        {
            "name": f"evaluate-{name}",
            "title": f"Evaluation of {name}",
            "note": "A model trained elsewhere; its training is not known to this report.",
            "track": "common",
            "dataset": {"name": choice.name},
            "network": {"name": model},
            "threat": {"norm": norm, "epsilon": max(map(float, settings.ranked_at))},
            "methods": {name: {}},
            "seeds": [0],
            "evaluation": asdict(settings),
        },
    )
    write_yaml(
        card_path(report, name),
        {
            "experiment": name,
            "status": "done",
            "method": name,
            "category": "evaluated",
            "comparison_class": "A",
            "citation": "",
            "reconstruction": False,  # whatever the file is called
            "broken": "",
            "seed": 0,
            "fold": 0,
            "dataset": choice.name,
            "network": model,
            **({"code": code} if code else {}),
            **how,
            "members": len(networks_in(network)),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "weights": {"last": {"sha256": digest}},
            "versions": versions(),
            "trials": 1,
        },
    )


def _teller(progress: Progress, name: str) -> Tell:
    line = progress.add_task(name, total=None)

    def tell(what: str, done: int, total: int) -> None:
        progress.update(line, description=f"{name}: {what}")
        if total:
            progress.update(line, completed=done, total=total)

    return tell
