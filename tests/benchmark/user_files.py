"""Files as a user would write them, and the words that run them quickly."""

from pathlib import Path

QUICK = [
    *("recipe.epochs=1", "inner_steps=1", "dataset.train_images=200", "dataset.validation_images=20"),
    *(
        "evaluation.attacks=[pgd20]",
        "evaluation.images=20",
        "evaluation.epsilons=[0.15]",
        "evaluation.ranked_at=[0.15]",
    ),
]
METHOD = """from attacks.objectives import cross_entropy_with
from methods.base import AdversarialTraining


class Mine(AdversarialTraining):
    def training_loss(self, batch):
        return self.classification_loss(self(batch.x), batch.y)
"""
DATA = """import numpy as np


def my_data():
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (300, 6, 6), dtype=np.uint8), np.arange(300) % 4
    return {"train": (images[:240], labels[:240]), "test": (images[240:], labels[240:])}
"""
NETWORK = """from torch import nn


def build(classes, channels, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))
"""


def write(text, name="my.py"):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def run(*words):
    return ["run", "digits-common", *words, "--output", "report", "--set", *QUICK]
