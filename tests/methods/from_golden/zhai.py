"""PASS with bounds in pixels, and with those of the published code in normalised space."""

import torch

from attacks import ThreatModel
from methods import catalogue
from methods.inner import Inner
from methods.unlabelled import HIDDEN
from tests.golden import Case, Normalised, assert_images


def build(case: Case):
    s, inputs = case.settings, case.record["inputs"]
    normalised = s["space"] == "normalised"
    mean, std = (inputs.get(name) for name in ("mean", "std"))
    scale = max(std) if normalised else 1.0  # of epsilon and step, which a case gives in the space it works in
    inner = Inner(
        steps=s["steps"], step_size=s["step_size"] * scale, start="gaussian", scale="epsilon/4", mode=s["attack_mode"]
    )
    network = Normalised(case.network, mean, std).train(case.network.training) if normalised else case.network
    threat = ThreatModel("linf", s["epsilon"] * scale)
    method = _both_pools()(network, threat, lam=s["lambda_unlabelled"], mean=mean, std=std, inner=inner)
    method.shown_in = (mean, std) if normalised else None
    return method


def draws(case: Case):
    return _RowByRow(case)


class _RowByRow:
    """Hands the stored noise out row by row: to the labelled images first, the rest to the others."""

    def __init__(self, case: Case) -> None:
        self.case, self.given = case, 0

    def normal(self, like, shape=None):
        noise = self.case._batch[2][self.given : self.given + len(like)]
        self.given += len(like)
        return noise.to(like)


def _both_pools():
    class BothPools(catalogue.get("zhai")):  # type: ignore[misc] # loaded when asked for
        """Shows the images of both attacks, labelled first, in the space of the case."""

        def perturb(self, batch, objective):
            made = super().perturb(batch, objective)
            self.__dict__.setdefault("seen", []).append(made)
            return made

        def trace_step(self, batch):
            trace = super().trace_step(batch)
            images = torch.cat(self.seen)
            if self.shown_in is not None:
                mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in self.shown_in)
                images = (images - mean) / std
            return trace._replace(adversarial=images)

    return BothPools


def compare(method, case: Case, trace) -> None:
    expected = case.expected
    x, y, _ = case.batch
    labelled, unlabelled = trace.adversarial.split([int((y != HIDDEN).sum()), int((y == HIDDEN).sum())])
    assert_images(labelled, expected["x_adv_labelled"])
    assert_images(unlabelled, expected["x_adv_unlabelled"])
    assert method.guesses.labels.tolist() == expected["pseudo_labels"]
    first = next(m for m in case.network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert int(first.num_batches_tracked) == expected["first_bn_num_batches_tracked_after"]
    moved = (torch.cat(method.seen) - x).abs().max().item()
    assert abs(moved - expected["max_abs_perturbation_in_pixels"]) < 1e-9
