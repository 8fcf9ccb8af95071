"""Attacks that a network was not trained on: other norms at fixed radii, and pictures made for other networks.

They come after all training, on the ranked checkpoint, and leave verdicts like any attack; no worst case holds them.
Source: section 3.3 of the survey, which asks whether robustness to one attack is robustness to another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from attacks.objectives import cross_entropy_with
from attacks.passes import counting
from attacks.threat import Norm
from attacks.union import pgd_in_any_norm
from benchmark.credibility.task import restored, test_images
from benchmark.evaluation import Attack, evaluate
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment
from benchmark.fixed_steps import Attacked, Subject, Tell, cw20, first_success, pgd20, with_shared_cost
from benchmark.results.evidence import evidence_folder, finished_parts, part_path
from benchmark.results.unseen import ELSEWHERE, TRANSFER
from benchmark.storage import read_yaml
from benchmark.strong_attacks import autoattack_elsewhere
from benchmark.sweep import Job
from benchmark.tasks import Places, Task, expected_parts, same_measurement
from benchmark.training import CARD

L1_STEPS = 50


def pgd50_l1(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Sparse L1 ascent: 50 steps of 2.5 radius / 50 from the image itself; the LAST iterate counts."""
    with counting(subject.network) as passes:
        found = pgd_in_any_norm(
            subject.network,
            x,
            cross_entropy_with(y),
            subject.threat,
            index=index.tolist(),
            names=(subject.settings.seed, "pgd50_l1"),
            steps=L1_STEPS,
            step_size=2.5 * subject.threat.epsilon / L1_STEPS,
        )
    return with_shared_cost(found, "pgd50_l1", passes)


def transferred(source: nn.Module, subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Show pictures that PGD-20 and then CW-20 made for another network, ``source``; the first success counts."""
    other = replace(subject, network=source)
    with counting(source) as passes:
        by_pgd, by_cw = (attack(other, x, y, index).adversarial for attack in (pgd20, cw20))
    return with_shared_cost(first_success(subject.network, by_pgd, by_cw, y), "transfer", passes)


_IN_OTHER_NORMS: dict[str, Attack] = {
    "pgd20_l2": pgd20,
    "pgd50_l1": pgd50_l1,
    "autoattack_l2": autoattack_elsewhere,
    "autoattack_l1": autoattack_elsewhere,
}


@dataclass(frozen=True, eq=False)
class UnseenTask(Task):
    """Attack the ranked checkpoint of ``experiment`` in other norms, and with pictures of ``sources``.

    Args:
        sources: trained experiments of the same seed and fold, none of them this one.
        images: of the test set.
    """

    attacks: tuple[str, ...] = ("unseen attacks",)
    sources: tuple[Experiment, ...] = ()
    images: int = 0

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Run what is left; parts that are there stay."""
        experiment, checkpoint = self.experiment, settings.ranked_checkpoint
        network = restored(experiment, places, checkpoint)
        path = places.checkpoints / experiment.name / f"{checkpoint}.safetensors"
        same_measurement(
            places.report,
            experiment.name,
            checkpoint,
            settings,
            weights=read_yaml(path.with_name(CARD))["weights"][checkpoint]["sha256"],
            dataset=experiment.dataset.name,
            norm=experiment.threat.norm,
            path=path,
        )
        own: dict[str, Attack] = dict(_IN_OTHER_NORMS)
        own |= {f"{TRANSFER}{one.row}": partial(transferred, restored(one, places, checkpoint)) for one in self.sources}
        test = test_images(experiment, places)
        for attack, radii in self._radii(settings).items():
            norm: Norm = ELSEWHERE.get(attack, experiment.threat.norm)  # type: ignore[assignment]
            evaluate(
                network,
                test,
                replace(experiment.threat, norm=norm),
                replace(
                    settings,
                    attacks=[attack],
                    epsilons=radii,
                    ranked_at=radii,
                    row=None,
                    sweep="none",
                    save_adversarial=False,
                ),
                attacks=[attack],
                own=own,
                place=partial(self._place, places, settings),
                tell=tell,
            )

    def left(self, places: Places, settings: Evaluation) -> list[Path]:
        """List the parts still to be made."""
        found: list[Path] = []
        for attack, radii in self._radii(settings).items():
            for radius in radii:
                folder = self._place(places, settings, Job(attack, float(radius)))
                there, parts = finished_parts(folder), expected_parts(settings, attack, self.images)
                found += [path for path in (part_path(folder, number) for number in range(parts)) if path not in there]
        return found

    def _place(self, places: Places, settings: Evaluation, job: Job) -> Path:
        return evidence_folder(places.report, self.experiment.name, settings.ranked_checkpoint, job.attack, job.epsilon)

    def _radii(self, settings: Evaluation) -> dict[str, list[float | str]]:
        """Give each attack's radii; AutoAttack goes to the other norms where the suite has it at all."""
        asked = settings.unseen
        kinds = ["pgd20_l2", "pgd50_l1"]
        kinds += ["autoattack_l2", "autoattack_l1"] if "autoattack" in settings.attacks else []
        by_norm = {"l2": asked.l2, "l1": asked.l1}
        transfers: dict[str, list[float | str]] = {
            f"{TRANSFER}{one.row}": [self.experiment.threat.epsilon] for one in self.sources
        }
        found = {kind: by_norm[ELSEWHERE[kind]] for kind in kinds if by_norm[ELSEWHERE[kind]]}
        return {**found, **transfers}


def unseen_tasks(
    experiments: Sequence[Experiment], places: Places, settings: Evaluation, tests: Mapping[int, int]
) -> list[UnseenTask]:
    """List what is left, of the trained experiments; ``tests`` are the numbers of test images by fold."""
    asked = settings.unseen
    if not (asked.l2 or asked.l1 or asked.transfer_from):
        return []
    trained = [one for one in experiments if (places.checkpoints / one.name / CARD).is_file()]
    tasks = []
    for one in trained:
        beside = [other for other in trained if (other.seed, other.fold) == (one.seed, one.fold) and other is not one]
        sources = [other for other in beside if other.row in asked.transfer_from]
        tasks.append(UnseenTask(one, sources=tuple(sources), images=tests[one.fold]))
    return [task for task in tasks if task.left(places, settings)]
