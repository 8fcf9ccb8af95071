"""Evaluate methods that may reject: a threshold from held-out training images, and an attack on the confidence."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.momentum import momentum_ascent, within_ball
from attacks.objectives import wrong_confidence_with
from attacks.passes import counting
from attacks.randomness import normal, uniform
from benchmark import pictures
from benchmark.data import Images
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment
from benchmark.fixed_steps import Attacked, Subject, with_shared_cost
from benchmark.results.rejection import CONFIDENCE, Threshold, write_threshold
from methods.rejection import TRUE_POSITIVES, Answers, threshold

STEPS, RESTARTS, MOMENTUM, BACKTRACKING = 200, 3, 0.9, 1.5


def may_reject(experiment: Experiment) -> bool:
    """Whether the method is of the class that is judged at a threshold."""
    return experiment.method_class.card.comparison == "F"


def evaluation_of(experiment: Experiment, settings: Evaluation) -> Evaluation:
    """Give an experiment's evaluation: where the method may reject and is attacked, its confidence is attacked too."""
    if not may_reject(experiment) or not settings.attacks or CONFIDENCE in settings.attacks:
        return settings
    return replace(settings, attacks=[*settings.attacks, CONFIDENCE])


def confidence(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Climb the largest probability of a wrong class: 200 steps of epsilon/6, from the image and two random starts.

    With momentum 0.9 and backtracking; per image the most confident of all points. An image that is misread as it
    stands is attacked as well, because it may have been refused; where it would then be read right, it stays as it is.

    Source: Stutz et al., ICML 2020, arXiv:1910.06259, section 4, with fewer steps and restarts.
    """
    network, threat, objective = subject.network, subject.threat, wrong_confidence_with(y)
    numbers, seed = index.tolist(), subject.settings.seed
    best, highest = x, torch.full((len(x),), -torch.inf, device=x.device)
    with counting(network) as passes:
        for restart in range(RESTARTS):
            start = x
            if restart:
                share = (uniform(x[:, 0, 0, 0], numbers, seed, CONFIDENCE, restart, "share") + 1) / 2
                start = within_ball(x, threat, normal(x, numbers, seed, CONFIDENCE, restart, "direction"), share)
            found = momentum_ascent(
                network,
                x,
                objective,
                threat,
                start=start,
                steps=STEPS,
                step_size=threat.epsilon / 6,
                momentum=MOMENTUM,
                backtracking=BACKTRACKING,
            )
            better = found.value > highest
            best = torch.where(better[:, None, None, None], found.images, best)
            highest = torch.where(better, found.value, highest)
        with torch.no_grad():
            answers = torch.stack([network(images).argmax(1) for images in (x, best)])
    spoilt = (answers[0] != y) & (answers[1] == y)
    return with_shared_cost(torch.where(spoilt[:, None, None, None], x, best), CONFIDENCE, passes)


def keep_threshold(path: Path, network: nn.Module, held_out: Images, size: int) -> None:
    """Write the threshold of ``network``, in eval mode, from clean ``held_out`` training images; once.

    Args:
        size: of a batch.
    """
    if path.is_file():
        return
    logits = pictures.ask(network, held_out.pixels(), size)
    highest, predicted = logits.softmax(1).max(1)
    clean = Answers((predicted != held_out.labels.cpu()).numpy(), highest.double().numpy())
    tau, right = threshold(clean), int((~clean.wrong).sum())
    write_threshold(path, Threshold(tau, TRUE_POSITIVES, len(held_out), right, logits.shape[1]))
