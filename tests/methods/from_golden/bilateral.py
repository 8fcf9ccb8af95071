"""Bilateral adversarial training: targets and labels beside images and loss."""

from dataclasses import replace

import pytest
import torch.nn.functional as F

from attacks import ThreatModel
from methods import catalogue
from methods.base import Batch
from methods.variants.bilateral import adversarial_labels
from tests.golden import Case


def build(case: Case):
    s = case.settings
    return catalogue.get("bilateral")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        target_rule=s["target_rule"],
        label_adversary=s["label_adversary"],
        beta=s["multi"],
        gamma=s["gamma"],
        attack_mode=s["attack_mode"],
    )


def compare(method, case: Case, trace) -> None:
    s, expected = case.settings, case.expected
    untouched = build(replace(case))  # BatchNorm's statistics have moved by now
    clean = untouched.frozen_logits(case.batch[0])
    assert untouched.targets(Batch(*case.batch), clean).tolist() == expected["target_labels"]
    labels = F.one_hot(case.batch[1], clean.shape[1]).to(clean)
    if s["label_adversary"]:
        labels = adversarial_labels(clean, case.batch[1], s["multi"], s["gamma"])
    assert labels.flatten()[:16].tolist() == pytest.approx(expected["y_adv"]["first16"], rel=1e-7, abs=1e-12)
    assert labels[0].tolist() == pytest.approx(expected["y_adv_row0"], rel=1e-7, abs=1e-12)
    assert labels.norm().item() == pytest.approx(expected["y_adv"]["l2_norm"], rel=1e-7)
