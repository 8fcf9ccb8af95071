"""GradAlign: what the training code and the README's lines do otherwise than we chose to."""

import pytest
import torch

from attacks import ThreatModel
from methods.efficient.gradalign import GradAlign
from tests.golden import cases


class TrainingCode(GradAlign):
    """Takes FGSM's gradient through max(min(x, 1), 0), which passes half of it at pixels of exactly 0 or 1."""

    def attack_gradient(self, x, objective, *, create_graph):
        found = super().attack_gradient(x, objective, create_graph=create_graph)
        on_bound = (x == 0) | (x == 1)
        return found._replace(gradient=torch.where(on_bound, found.gradient / 2, found.gradient))


def build(case):
    s = case.settings
    kind = TrainingCode if "half_gradient_note" in case.record["inputs"] else GradAlign
    if "forward_order" in case.record["inputs"]:
        # The README's lines forward the adversarial images last. Ours come in the order of the training code, so the
        # statistics are those of its case at the same points.
        twin = next(
            other
            for other in cases("gradalign", "training_step")
            if "half_gradient_note" in other.record["inputs"]
            and (other.settings["epsilon"], other.settings["lambda"]) == (s["epsilon"], s["lambda"])
        )
        case.expected.update({name: twin.expected[name] for name in twin.expected if name.startswith("bn_")})
    return kind(case.network, ThreatModel("linf", s["epsilon"]), lam=s["lambda"], step_size=s["step_size"])


def compare(method, case, trace):
    if case.settings["lambda"] > 0:
        (alignment,) = method._notes["cosine"]
        assert case.settings["lambda"] * (1 - alignment.item()) == pytest.approx(case.expected["reg"], rel=1e-7)
