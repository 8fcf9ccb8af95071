"""The alarm for catastrophic overfitting: networks and histories made by hand that collapse, and sound ones."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import ThreatModel, counting
from methods import catalogue
from methods.alarm import FGSM, PGD10, catastrophic_overfitting, label_leaking, right_under_fgsm
from methods.base import AdversarialTraining, Batch, Card
from methods.origins.pgd_at import PGDAT
from methods.recipe import Recipe
from methods.selection import held_out_verdicts
from tests.methods.tools import images, network

EPSILON = 0.1


class OnePixel(nn.Module):
    """Right on grey images of one pixel, label 0; ``overfitted``: wrong within the ball, right again on its edge.

    With an honest margin, linear in the pixel, no step within the ball does any harm.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.overfitted = False

    def forward(self, x):
        moved = (x.flatten(1).sum(1) - 0.5) / EPSILON
        margin = torch.cos(2 * math.pi * moved - 0.3) if self.overfitted else 2 + moved
        return torch.stack([self.scale * margin, torch.zeros_like(margin)], 1)


def grey(count=64):
    return torch.full((count, 1, 1, 1), 0.5), torch.zeros(count, dtype=torch.long), torch.arange(count)


class Collapsing(AdversarialTraining):
    """Trains nothing; its network is the overfitted one in the epochs of ``collapsed``."""

    card = Card(key="collapsing", category="efficient", citation="")
    single_step = True

    def __init__(self, collapsed, **common):
        super().__init__(OnePixel(), ThreatModel("linf", EPSILON), **common)
        self.when = collapsed

    def on_epoch(self, epoch):
        self.network.overfitted = epoch in self.when

    def training_loss(self, batch):
        return self.classification_loss(self(batch.x), batch.y)


def history(method, epochs=4):
    data = DataLoader(TensorDataset(*grey(16)), batch_size=16)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.Trainer(max_epochs=epochs, enable_model_summary=False, inference_mode=False, **quiet).fit(method, data, data)
    return method.history


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_overfits_catastrophically_is_marked_from_its_first_epoch_and_a_sound_one_is_not():
    collapsed, sound = (history(Collapsing(when, recipe=Recipe(epochs=4))) for when in ((2, 3), ()))
    assert [line[FGSM] for line in collapsed] == [1, 1, 1, 1]  # one step shows nothing
    assert [line[PGD10] > 0.5 for line in collapsed] == [True, True, False, False]
    assert catastrophic_overfitting(collapsed) == 2
    assert [line[PGD10] for line in sound] == [1, 1, 1, 1]
    assert catastrophic_overfitting(sound) is None


def test_fgsm_sees_nothing_of_a_network_that_falls_to_pgd():
    x, y, index = grey()
    overfitted = OnePixel().eval()
    overfitted.overfitted = True
    threat = ThreatModel("linf", EPSILON)
    assert right_under_fgsm(overfitted, x, y, threat).all()
    right = held_out_verdicts(overfitted, x, y, index, threat, seed=0)
    assert right.clean.all()
    assert right.pgd.float().mean() < 0.1


def curve(*pgd10):
    return [{"epoch": epoch, PGD10: value, FGSM: 0.5, "held_out_clean": 0.8} for epoch, value in enumerate(pgd10)]


@pytest.mark.parametrize(
    ("pgd10", "epoch"),
    [
        ((), None),
        ((0.0, 0.0), None),
        ((0.1, 0.4, 0.5), None),
        ((0.6, 0.3), None),  # half of the maximum is not below half of it
        ((0.6, 0.29), 1),
        ((0.2, 0.6, 0.5, 0.25, 0.0), 3),  # against the maximum so far, not the epoch before
        ((0.6, 0.0, 0.6), 1),  # and a recovery takes nothing back
        ((0.6, math.nan, 0.1), 2),
    ],
)
def test_the_first_epoch_below_half_of_the_maximum_so_far_is_the_collapse(pgd10, epoch):
    assert catastrophic_overfitting(curve(*pgd10)) == epoch


def test_a_history_without_the_alarm_or_with_gaps_is_sound():
    assert catastrophic_overfitting([{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}]) is None
    assert catastrophic_overfitting([*curve(0.6), {"epoch": 1, "loss": 0.5}]) is None
    assert label_leaking([{"epoch": 0, "loss": 1.0, "held_out_clean": 0.1}]) == []


def test_fgsm_above_clean_accuracy_is_label_leaking():
    lines = curve(0.6, 0.6, 0.6)
    lines[1][FGSM], lines[2][FGSM] = 0.8, 0.81
    assert label_leaking(lines) == [2]


def test_the_alarm_costs_an_fgsm_and_shares_pgd_with_the_selection():
    x, y = images(6)
    batch = Batch(x, y, torch.arange(6))
    fast_at, pgd_at = (catalogue.get(name)(network(), ThreatModel("linf", 0.1)) for name in ("fast_at", "pgd_at"))
    with counting(fast_at.network) as watched:
        *selection, fgsm, pgd10 = fast_at.held_out_counts(batch).tolist()
    with counting(pgd_at.network) as plain:
        assert pgd_at.held_out_counts(batch).tolist() == selection
    assert (watched.forward - plain.forward, watched.backward - plain.backward) == (2 * 6, 6)
    clean, _, robust = held_out_verdicts(fast_at.network.eval(), *batch, fast_at.threat, seed=0)
    assert [robust.sum(), clean.sum(), 6] == selection
    assert 0 <= robust.sum() <= pgd10 <= 6
    assert 0 <= fgsm <= 6


def test_single_step_methods_are_watched_and_others_are_not():
    assert catalogue.get("fast_at").single_step
    assert not PGDAT.single_step
    assert not AdversarialTraining.single_step
