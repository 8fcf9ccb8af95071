"""Every method of the catalogue, killed in the middle of an epoch and begun again, ends with the same bytes.

The one that is killed is watched, so that the curves are seen to be whole, too, and to change nothing.
"""

import multiprocessing
import os
import signal

import pytest

from benchmark import suite
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import plan
from benchmark.references import with_teachers
from benchmark.results.curves import read_curves
from benchmark.storage import read_yaml, sha256
from benchmark.tasks import Places, Task, perform
from benchmark.training import CARD, RESUME
from methods import catalogue
from methods.base import AdversarialTraining

SMALL = {
    "recipe.batch_size": 32,
    "dataset.train_images": 96,
    "dataset.validation_images": 20,
    "dataset.labels": 40,
    "inner_steps": 2,
}


def in_a_process_of_its_own(task, places, *, die_at=None):
    """Perform ``task`` and give the exit code; at the beginning of ``die_at``, epoch and step, it dies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark.tasks", "methods.base"])
    process = context.Process(target=_work, args=(task, places, die_at))
    process.start()
    process.join()
    return process.exitcode


def _work(task, places, die_at):
    import torch

    torch.set_num_threads(1)
    step = AdversarialTraining.training_step

    def dying(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, batch_idx)

    AdversarialTraining.training_step = dying
    perform(task, places, Evaluation(), lambda *news: None)


@pytest.mark.parametrize("name", catalogue.names())
def test_a_training_killed_in_mid_epoch_ends_with_the_weights_of_an_undisturbed_one_and_a_whole_curve(name, tmp_path):
    epochs = 8 if name == "free_at" else 3  # of which a quarter passes over the data
    own = {"source_floor": 0} if name == "eat" else None  # so few images are no training of its sources
    changes = SMALL | {"recipe.epochs": epochs, "recipe.average": "ema", "methods": {name: own}}
    (of,) = plan(suite.load("quickstart", changes))
    (watched,) = plan(suite.load("quickstart", changes | {"curves": {"images": 8}}))
    whole, broken = (Places(tmp_path / kind, tmp_path / f"{kind}-report") for kind in ("whole", "broken"))
    for places in (whole, broken):
        for teacher in with_teachers([of])[:-1]:
            assert in_a_process_of_its_own(Task(teacher), places) == 0
    assert in_a_process_of_its_own(Task(of), whole) == 0
    assert in_a_process_of_its_own(Task(watched), broken, die_at=(1, 1)) == -signal.SIGKILL
    assert (broken.checkpoints / of.name / RESUME).is_file()
    assert in_a_process_of_its_own(Task(watched), broken) == 0
    for file in ("last", "best"):
        names = [places.checkpoints / of.name / f"{file}.safetensors" for places in (whole, broken)]
        assert sha256(names[0]) == sha256(names[1])
    history = [read_yaml(places.checkpoints / of.name / CARD)["history"] for places in (whole, broken)]
    assert history[0] == history[1]
    curve, _ = read_curves(tmp_path / "broken-report")
    epochs = [line["epoch"] for line in history[0] for _ in range(4)]
    late = catalogue.get(name).settled is not AdversarialTraining.settled  # measured once it trains what it will keep
    assert curve.epoch.tolist() == (epochs[-len(curve) :] if late else epochs)
