"""Every method repeats its authors' loss, images and gradients on the toy network, in float64."""

import importlib
import pkgutil
import re

import pytest
import torch

from attacks import ThreatModel, counting
from methods import catalogue
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import Case, assert_images, cases, first_layer_gradient, gradient_norm
from tests.methods import from_golden


def pgd_at(case: Case):
    s = case.settings
    l2 = s.get("constraint") == "2" or s.get("norm") == "l_2"
    noise = case.record["start"]["noise"]
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="none" if noise == "none" else "uniform" if not l2 else "sphere" if "constraint" in s else "ball",
        mode=s["attack_mode"],
        keep="best" if s.get("use_best") else "last",
        scored=case.method != "pgd_at",
        patience=(s.get("early_stop_pgd_max", 1) if s.get("early_stop") or s.get("early_stop_pgd") else None),
    )
    recipe = Recipe(label_smoothing=s.get("label_smoothing", 0.0))
    threat = ThreatModel("l2" if l2 else "linf", s["epsilon"])
    return catalogue.get("pgd_at")(case.network, threat, inner=inner, recipe=recipe)


def gaussian_start(case: Case, **settings):
    s = case.settings
    inner = Inner(
        steps=s["steps"], step_size=s["step_size"], start="gaussian", scale=1e-3, boxed=False, mode=s["attack_mode"]
    )
    threat = ThreatModel(s["distance"].replace("_", "").replace("linf", "linf"), s["epsilon"])
    return catalogue.get(case.method)(case.network, threat, beta=s["beta"], inner=inner, **settings)


def trades(case: Case):
    return gaussian_start(case, exact_forwards=True)


def fast_at(case: Case):
    s = case.settings
    return catalogue.get("fast_at")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        step_size=s["step_size"],
        start="zero" if case.record["start"]["noise"] == "none" else "uniform",
        form="mnist" if "mnist" in case.name else "cifar",
    )


def adp(case: Case):
    s = case.settings
    attack = {"steps": s["steps"], "step_size": s["step_size"], "mode": s["attack_mode"]} if s["plus_adv"] else {}
    return catalogue.get("adp")(
        case.network,
        ThreatModel("linf", s["epsilon"] or 0.0),
        alpha=s["alpha"],
        beta=s["beta"],
        plus_adv="pt" if s["plus_adv"] else "none",
        inner=Inner(start="uniform", boxed=case.record["start"]["clipped_to_box"], **attack),
    )


def fat(case: Case):
    s, gaussian = case.settings, case.record["start"]["noise"] == "normal"
    inner = Inner(
        steps=s["steps"],
        step_size=s["step_size"],
        start="gaussian" if gaussian else "uniform",
        scale=1e-3 if gaussian else "epsilon",
        boxed=case.record["start"]["clipped_to_box"],
        mode=s["attack_mode"],
    )
    loss = {"loss": "trades", "beta": s["beta"]} if s["outer_loss"].startswith("TRADES") else {"loss": "ce"}
    threat = ThreatModel("linf", s["epsilon"])
    return catalogue.get("fat")(case.network, threat, tau=s["tau"], omega=s["omega"], inner=inner, **loss)


def avmixup(case: Case):
    s = case.settings
    inner = Inner(steps=s["steps"], step_size=s["step_size"], start="uniform", mode="batch")  # "untouched", they say
    own = {name: s[name] for name in ("gamma", "lambda1", "lambda2")}
    return catalogue.get("avmixup")(case.network, ThreatModel("linf", s["epsilon"]), inner=inner, **own)


def iaat(case: Case):
    s = case.settings
    method = catalogue.get("iaat")(
        case.network,
        ThreatModel("linf", s["epsilon"]),
        inner=Inner(
            steps=s["steps"], step_size=s["attack_lr_floor"], start="uniform", boxed=False, mode=s["attack_mode"]
        ),
        gamma=s["gamma"],
        beta=s["beta"],
        warmup=max(0, s["warmup"] - s["epoch"]),  # without a trainer the epoch is 0
    )
    before = torch.tensor(case.record["inputs"]["eps_memory_before"], dtype=torch.float64)
    method.radii.store(torch.arange(len(before)), before)
    return method


def rst(case: Case):
    if case.settings["adversarial"]:
        return gaussian_start(case, entropy_weight=case.settings["entropy_weight"])
    threat = ThreatModel("l2", case.settings["epsilon"])
    return catalogue.get("rst")(case.network, threat, beta=case.settings["beta"], sigma="epsilon")


BUILDERS = {
    "pgd_at": pgd_at,
    "robust_overfitting": pgd_at,
    "bag_of_tricks": pgd_at,
    "trades": trades,
    "mart": gaussian_start,
    "adp": adp,
    "fast_at": fast_at,
    "fat": fat,
    "avmixup": avmixup,
    "iaat": iaat,
    "rst": rst,
}
MODULES = {
    found.name: importlib.import_module(f"tests.methods.from_golden.{found.name}")
    for found in pkgutil.iter_modules(from_golden.__path__)
}
BUILDERS |= {name: module.build for name, module in MODULES.items()}
SKIPPED = {"attack_only_eval"}  # of iaat: it has a test of its own
CASES = [
    case
    for method in BUILDERS
    for case in cases(method, "training_step")
    if case.name not in SKIPPED | set(getattr(MODULES.get(method), "SKIPPED", ()))
]


def the_records_optimizer(case: Case) -> torch.optim.Optimizer:
    """SGD as a case words it, such as "SGD lr 0.01 momentum 0.9 weight_decay 5e-4, one step"."""
    words = str(case.settings.get("optimizer") or "SGD lr 0.1 momentum 0.9 weight_decay 5e-4")
    found = {name: float(value) for name, value in re.findall(r"(lr|momentum|weight_decay) ([\d.e-]+)", words)}
    return torch.optim.SGD(case.network.parameters(), **found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.name}")
def test_one_training_step_repeats_the_authors_code(case):
    method = BUILDERS[case.method](case).double()
    module = MODULES.get(case.method)
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
        trace = method.trace_step(case.batch)
    optimizer.zero_grad()
    trace.loss.backward()
    if hasattr(module, "compare"):
        module.compare(method, case, trace)

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
