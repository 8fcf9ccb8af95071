"""Every method repeats its authors' loss, images and gradients on the toy network, in float64."""

import importlib
import pkgutil
import re

import pytest
import torch

from attacks import counting
from tests.golden import Case, assert_images, cases, first_layer_gradient, gradient_norm
from tests.methods import from_golden

MODULES = {
    found.name: importlib.import_module(f"tests.methods.from_golden.{found.name}")
    for found in pkgutil.iter_modules(from_golden.__path__)
}
CASES = [
    case
    for method, module in MODULES.items()
    for case in cases(method, "training_step")
    if case.name not in getattr(module, "SKIPPED", ())
]


def the_records_optimizer(case: Case) -> torch.optim.Optimizer:
    """SGD as a case words it, such as "SGD lr 0.01 momentum 0.9 weight_decay 5e-4, one step"."""
    words = str(case.settings.get("optimizer") or "SGD lr 0.1 momentum 0.9 weight_decay 5e-4")
    found = {name: float(value) for name, value in re.findall(r"(lr|momentum|weight_decay) ([\d.e-]+)", words)}
    return torch.optim.SGD(case.network.parameters(), **found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.name}")
def test_one_training_step_repeats_the_authors_code(case):
    module = MODULES[case.method]
    method = module.build(case).double()
    method.draws = module.draws(case) if hasattr(module, "draws") else case.draws
    expected = case.expected
    optimizer = the_records_optimizer(case)
    batch_norms = [m for m in case.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    perturb, after_attack = method.perturb, []

    def watched(*args):
        adversarial = perturb(*args)
        after_attack.append(batch_norms[0].running_mean.tolist())
        return adversarial

    method.perturb = watched
    with counting(case.network) as passes:
        trace = method.trace_step(module.batch(case) if hasattr(module, "batch") else case.batch)
    optimizer.zero_grad()
    trace.loss.backward()
    if hasattr(module, "compare"):
        module.compare(method, case, trace)

    if "x_adv" in expected:  # else the module compares several sets of images
        assert_images(trace.adversarial, expected["x_adv"])
    assert trace.loss.item() == pytest.approx(expected["loss"], rel=1e-7)
    assert gradient_norm(case.network) == pytest.approx(expected["grad_norm"], rel=1e-7)
    torch.testing.assert_close(
        first_layer_gradient(case.network),
        torch.tensor(expected["grad_first_layer"], dtype=torch.float64),
        rtol=1e-7,
        atol=1e-9,
    )
    if "first_bn_running_mean_after" in expected:
        torch.testing.assert_close(
            batch_norms[0].running_mean.tolist(), expected["first_bn_running_mean_after"], rtol=1e-7, atol=1e-9
        )
    if "first_bn_running_mean_after_attack" in expected and case.settings.get("attack_mode") == "train":
        torch.testing.assert_close(
            after_attack[-1], expected["first_bn_running_mean_after_attack"], rtol=1e-7, atol=1e-9
        )
    if "bn_num_batches_tracked_after" in expected:
        assert [int(m.num_batches_tracked) for m in batch_norms] == expected["bn_num_batches_tracked_after"]
        assert [m.running_mean.sum().item() for m in batch_norms] == pytest.approx(
            expected["bn_running_mean_sums_after"]
        )
        assert [m.running_var.sum().item() for m in batch_norms] == pytest.approx(expected["bn_running_var_sums_after"])
        if "model_forwards" in expected:
            forwards = expected["model_forwards"]
            assert passes.forward == forwards.get("total", forwards.get("full")) * len(trace.adversarial)
    if "forward_batch_sizes" in expected:
        assert passes.forward == sum(expected["forward_batch_sizes"])
    if "param_l2_after" in expected:
        optimizer.step()
        length = torch.cat([p.flatten() for p in case.network.parameters()]).norm().item()
        assert length == pytest.approx(expected["param_l2_after"], rel=1e-7)
