"""Black-box figures: pictures made on a surrogate that knows the training images, but not the network.

The surrogate is the mean prediction of networks that were trained naturally, with other seeds and without the network's
own activation or members. It is how GAL's row of Table 1 and EAT's claim were measured, and stands beside the white-box
figures of the ranked checkpoint; no worst case and no ranking holds it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from attacks.objectives import cross_entropy_with
from attacks.passes import counting
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.randomness import uniform
from benchmark.credibility.task import restored, test_images
from benchmark.evaluation import Attack, evaluate
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import Experiment, experiment
from benchmark.fixed_steps import Attacked, Subject, Tell, with_shared_cost
from benchmark.results.evidence import evidence_folder, part_path
from benchmark.settings import resolve
from benchmark.storage import locked, read_yaml
from benchmark.suite import Suite
from benchmark.sweep import Job, finished_parts
from benchmark.tasks import Places, Task, expected_parts, same_measurement
from benchmark.training import CARD, train
from methods.ensemble.members import Ensemble


class Steps(NamedTuple):
    """How many steps, of which length, from a uniform start or from the image itself."""

    number: int
    length: str
    random_start: bool


STEPS = {
    "surrogate_fgsm": Steps(1, "epsilon", random_start=False),  # of eat
    "surrogate_pgd20": Steps(20, "epsilon/4", random_start=True),  # of eat
    "surrogate_pgd30": Steps(30, "epsilon/10", random_start=True),  # of gal
}


def shown(surrogate: nn.Module, name: str, subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Climb the cross-entropy of the true labels on the ``surrogate``; the LAST iterate is what the network is shown.

    Args:
        name: of :data:`STEPS`, which also keys the start.
    """
    steps, threat, start = STEPS[name], subject.threat, x
    if steps.random_start:
        noise = threat.epsilon * uniform(x, index.tolist(), subject.settings.seed, name, 0, "start")
        start = threat.project(x + noise, x)
    length = Pixels.read(steps.length).at(threat.epsilon)
    with counting(surrogate) as passes:
        climb = cross_entropy_with(y)
        found = pgd(surrogate, x, climb, threat, start=start, steps=steps.number, step_size=length)
    return with_shared_cost(found, name, passes)


@dataclass(frozen=True, eq=False)
class SurrogateTraining(Task):
    """Train a network of a surrogate; it is no row of the report."""

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Train it, unless it is there."""
        folder = places.checkpoints / self.experiment.name
        with locked(folder):
            train(self.experiment, folder, data_root=places.data_root, download=places.download, tell=tell)

    def left(self, places: Places, settings: Evaluation) -> list[Path]:
        """List no file of the report."""
        return []


@dataclass(frozen=True, eq=False)
class SurrogateTask(Task):
    """Show the ranked checkpoint of ``experiment`` pictures that were made on ``networks`` together.

    Args:
        images: of the test set.
    """

    attacks: tuple[str, ...] = ("pictures of a surrogate",)
    networks: tuple[Experiment, ...] = ()
    images: int = 0

    def perform(self, places: Places, settings: Evaluation, tell: Tell) -> None:
        """Run what is left; parts that are there stay."""
        one, checkpoint = self.experiment, settings.ranked_checkpoint
        path = places.checkpoints / one.name / f"{checkpoint}.safetensors"
        same_measurement(
            places.report,
            one.name,
            checkpoint,
            settings,
            weights=read_yaml(path.with_name(CARD))["weights"][checkpoint]["sha256"],
            dataset=one.dataset.name,
            norm=one.threat.norm,
            path=path,
        )
        surrogate = Ensemble(restored(other, places, checkpoint) for other in self.networks).eval()
        own: dict[str, Attack] = {name: partial(shown, surrogate, name) for name in settings.surrogate.names}
        evaluate(
            restored(one, places, checkpoint),
            test_images(one, places),
            one.threat,
            replace(settings, attacks=list(own), sweep="none", save_adversarial=False),
            attacks=list(own),
            own=own,
            place=partial(self._place, places, settings),
            tell=tell,
        )

    def left(self, places: Places, settings: Evaluation) -> list[Path]:
        """List the parts still to be made."""
        found: list[Path] = []
        for job in (Job(name, float(radius)) for name in settings.surrogate.names for radius in settings.epsilons):
            folder = self._place(places, settings, job)
            there = finished_parts(folder, settings, job)
            parts = range(expected_parts(settings, job.attack, self.images))
            found += [path for path in (part_path(folder, number) for number in parts) if path not in there]
        return found

    def _place(self, places: Places, settings: Evaluation, job: Job) -> Path:
        return evidence_folder(places.report, self.experiment.name, settings.ranked_checkpoint, job.attack, job.epsilon)


def surrogates(one: Experiment, suite: Suite, data_root: Path | None = None) -> list[Experiment]:
    """List the natural trainings whose mean prediction is the surrogate for ``one``.

    They have the suite's other seeds, and where these are fewer than asked for, the numbers behind its largest.
    """
    like = replace(suite, dataset=one.dataset, network=one.network, own={})
    further = range(max(suite.seeds) + 1, max(suite.seeds) + 1 + suite.evaluation.surrogate.networks)
    others = [seed for seed in suite.seeds if seed != one.seed]
    seeds = others + [*further][: max(0, suite.evaluation.surrogate.networks - len(others))]
    settings = resolve("natural", suite.methods.get("natural") or {}, suite.inner_steps)
    return [experiment(like, "natural", settings, one.fold, seed, None, "natural", data_root) for seed in seeds]


def trainings(experiments: Sequence[Experiment], suite: Suite, places: Places) -> list[SurrogateTraining]:
    """List the networks of surrogates that are not trained yet, each once."""
    told = _told(experiments, suite, places)
    wanted = {other.name: other for one in told for other in surrogates(one, suite, places.data_root)}
    return [SurrogateTraining(other) for other in wanted.values() if not _is_trained(other, places)]


def showings(
    experiments: Sequence[Experiment], suite: Suite, places: Places, tests: Mapping[int, int]
) -> list[SurrogateTask]:
    """List what is left to be shown, to the trained experiments; ``tests`` are the numbers of test images by fold."""
    tasks = []
    for one in _told(experiments, suite, places):
        networks = surrogates(one, suite, places.data_root)
        if all(_is_trained(other, places) for other in networks):
            tasks.append(SurrogateTask(one, networks=tuple(networks), images=tests[one.fold]))
    return [task for task in tasks if task.left(places, suite.evaluation)]


def _told(experiments: Sequence[Experiment], suite: Suite, places: Places) -> list[Experiment]:
    """List the trained experiments that pictures are to be shown to."""
    asked = suite.evaluation.surrogate
    wanted = [one for one in experiments if asked.attacks and one.method_class.card.comparison in asked.classes]
    return [one for one in wanted if _is_trained(one, places)]


def _is_trained(one: Experiment, places: Places) -> bool:
    return (places.checkpoints / one.name / CARD).is_file()
