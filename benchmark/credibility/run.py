"""Which checks a network is put to: a cheap subset with every evaluation, all of them when asked for."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import nn

from attacks.modes import in_mode
from attacks.passes import Passes, counting
from attacks.threat import ThreatModel
from benchmark.credibility import black_box, gradients, outputs, rules, steps
from benchmark.credibility.pictures import NONE, Saved, saved_pictures
from benchmark.credibility.probed import Probed
from benchmark.credibility.record import Check, Rule
from benchmark.credibility.transfer import transfer
from benchmark.data import Images

Depth = Literal["cheap", "full"]
Tell = Callable[[str, int, int], None]
Function = Callable[[Probed], Check]

IMAGES: dict[Depth, int] = {"cheap": 64, "full": 200}
CHEAP: tuple[tuple[Rule, Function], ...] = (
    (rules.EVAL_MODE, outputs.eval_mode),
    (rules.REPEATABLE, outputs.repeatable),
    (rules.ALONE_OR_TOGETHER, outputs.batch_independence),
    (rules.PROBABILITIES, outputs.probabilities),
    (rules.ONE_CLASS, outputs.one_class),
    (rules.CLASSES, outputs.number_of_classes),
    (rules.FINITE, gradients.finite),
    (rules.ZERO_CE, gradients.zero_of_cross_entropy),
    (rules.ZERO_MARGIN, gradients.zero_of_margin),
    (rules.DIFFERENCES, gradients.differences),
    (rules.SATURATION, gradients.saturation),
    (rules.FGSM, steps.fgsm_against_pgd),
    (rules.ONE_STEP, steps.one_step_beats_many),
    (rules.CONVERGED, steps.steps_converged),
    (rules.STEP_SIZE, steps.step_size),
    (rules.SCALED, steps.logits_scaled),
    (rules.WHOLE_RANGE, steps.whole_range),
    (rules.NOISE, black_box.random_noise),
)
FULL: tuple[tuple[Rule, Function], ...] = (
    (rules.RESTARTS, steps.restarts),
    (rules.SQUARE, black_box.square),
)
ASK = "only with --credibility full"
ALONE = "no other trained model in the report"  # until :func:`probe_transfer` says something else


def probe(
    network: nn.Module,
    images: Images,
    threat: ThreatModel,
    *,
    dataset: str,
    depth: Depth = "cheap",
    batch_size: int = 200,
    attacks: tuple[str, ...] = (),
    seed: int = 0,
    tell: Tell | None = None,
) -> tuple[list[Check], Passes]:
    """Put ``network`` to the checks of ``depth``; returns them and what they cost, in images through the network.

    Square is not in the cost: its engine searches on a copy of the network.

    A check that the network makes fail is told as failed; the others go on. Its mode is as before afterwards.

    Args:
        network: images in [0, 1] to logits ``(n, k)``.
        images: of the test set; the first 64, or 200 in full, are used.
        threat: with the radius at which the model is ranked.
        dataset: its name, to which thresholds belong.
        attacks: what the evaluation runs.
        tell: told (check, checks done, checks in all).
    """
    probed = probed_on(
        network, images, threat, dataset=dataset, depth=depth, batch_size=batch_size, attacks=attacks, seed=seed
    )
    todo = [*CHEAP, *(FULL if probed.thorough else ())]
    found = []
    with in_mode(network, "eval"), counting(network) as passes:
        for done, (rule, function) in enumerate(todo):
            if tell is not None:
                tell(rule.name, done, len(todo))
            found.append(_guarded(rule, function, probed))
    found.append(rules.SAVED.absent(probed.setting, NONE))  # until :func:`probe_saved` says something else
    if probed.thorough:
        return [*found, rules.TRANSFER.absent(probed.setting, ALONE)], passes
    return [
        *found,
        *(rule.absent(probed.setting, ASK) for rule in (*(rule for rule, _ in FULL), rules.TRANSFER)),
    ], passes


def probe_transfer(
    network: nn.Module,
    others: Mapping[str, nn.Module],
    images: Images,
    threat: ThreatModel,
    *,
    dataset: str,
    batch_size: int = 200,
    seed: int = 0,
) -> Check:
    """Attack ``network`` with pictures made for ``others``; arguments as in :func:`probe`."""
    probed = probed_on(network, images, threat, dataset=dataset, depth="full", batch_size=batch_size, seed=seed)
    with in_mode(network, "eval"):
        return _guarded(rules.TRANSFER, lambda probed: transfer(probed, others), probed)


def probe_saved(
    network: nn.Module,
    saved: Iterable[Saved],
    images: Images,
    threat: ThreatModel,
    *,
    dataset: str,
    batch_size: int = 200,
) -> Check:
    """Look at pictures that attacks saved; ``batch_size`` is the evaluation's, others as in :func:`probe`."""
    probed = probed_on(network, images, threat, dataset=dataset, depth="cheap", batch_size=batch_size)
    with in_mode(network, "eval"):
        return _guarded(rules.SAVED, lambda probed: saved_pictures(probed, saved), probed)


def probed_on(
    network: nn.Module,
    images: Images,
    threat: ThreatModel,
    *,
    dataset: str,
    depth: Depth,
    batch_size: int = 200,
    attacks: tuple[str, ...] = (),
    seed: int = 0,
) -> Probed:
    """Lay ``network`` and the first images out for the checks, on the network's device."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    chosen = images.take(torch.arange(min(len(images), IMAGES[depth]), device=images.labels.device)).to(device)
    return Probed(
        network,
        chosen.pixels(),
        chosen.labels,
        chosen.index,
        threat,
        dataset,
        thorough=depth == "full",
        batch_size=batch_size,
        attacks=attacks,
        seed=seed,
    )


def _guarded(rule: Rule, function: Function, probed: Probed) -> Check:
    """Run one check; what the network raises becomes its note, but for a device that is too small."""
    try:
        return function(probed)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return rule.absent(probed.setting, f"{type(error).__name__}: {reason}", failed=True)
