"""AutoAttack through the official package. One run in full, against closed forms; the rest with few queries."""

import random
import re
import sys

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

from attacks import BadInput, ThreatModel, official
from attacks.official import STAGES, autoattack
from tests.models import Averaged, Constant, Returning, curved, images, linear

LINF = ThreatModel("linf", 0.05)


class Brief(pyautoattack.AutoAttack):
    """The official attacks with few iterations and queries: everything but the strength."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.apgd.n_iter_orig = self.apgd_targeted.n_iter_orig = 10
        self.square.n_queries = 30


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", Brief)


def scene(n=24, network=None):
    network = curved() if network is None else network
    x = images(n)
    with torch.no_grad():
        y = network(x).argmax(1)
    y[::8] = (y[::8] + 1) % 4  # some are wrong as they stand
    return network, x, y


@pytest.fixture(scope="module")
def linear_run():
    """A linear network on middling grey images, attacked in full; its robust images are known in closed form."""
    network, x = linear(), 0.3 + 0.4 * images(32)
    y = network(x).argmax(1)
    y[::8] = (y[::8] + 1) % 10
    radius = network.linf_radius(x, y)
    ordered = radius.sort().values
    # An epsilon in the widest gap of the middle half: no image lies so near its boundary that rounding decides.
    gap = (ordered[9:25] - ordered[8:24]).argmax() + 8
    epsilon = ((ordered[gap] + ordered[gap + 1]) / 2).item()
    said = []
    result = autoattack(
        network, x, y, ThreatModel("linf", epsilon), seed=0, batch_size=20, progress=lambda *told: said.append(told)
    )
    return network, x, y, epsilon, radius, result, said


def test_on_a_linear_network_exactly_the_images_beyond_epsilon_survive(linear_run):
    _, x, _, epsilon, radius, result, _ = linear_run
    assert x.min() > epsilon  # the range does not help anybody, so the closed form holds
    assert x.max() < 1 - epsilon
    assert [by == "" for by in result.by] == (radius > epsilon).tolist()
    assert 0 < result.by.count("") < len(result.by)


def test_survivors_never_rise_and_agree_with_who_fooled_whom(linear_run):
    *_, result, _ = linear_run
    assert list(result.survivors) == ["clean", *STAGES]
    left = len(result.by)
    for stage, survivors in result.survivors.items():
        left -= result.by.count(stage)
        assert survivors == left
    assert result.by.count("clean") == 4


def test_adversarial_images_lie_in_ball_and_range_and_fool_and_the_others_are_unmoved(linear_run):
    network, x, y, epsilon, _, result, _ = linear_run
    fooled = torch.tensor([by not in ("", "clean") for by in result.by])
    assert fooled.any()
    assert (network(result.adversarial).argmax(1) != y)[fooled].all()
    assert torch.equal(result.adversarial[~fooled], x[~fooled])
    assert (result.adversarial - x).abs().max() <= epsilon + 1e-6
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert not result.adversarial.requires_grad


def test_the_passes_of_survivors_are_those_of_the_four_attacks(linear_run):
    *_, result, _ = linear_run
    held = torch.tensor([by == "" for by in result.by])
    wrong = torch.tensor([by == "clean" for by in result.by])
    # 1 clean + 102 APGD-CE + about 9 * 102 APGD-T + about 9 * 205 FAB-T + about 5,000 Square; 1,910 backwards.
    # Images that drop out on the way make the shared figure a little smaller.
    assert ((result.forward[held] > 5500) & (result.forward[held] < 7900)).all()
    assert ((result.backward[held] > 1300) & (result.backward[held] <= 1910)).all()
    assert result.forward[wrong].tolist() == [1.0] * 4
    assert result.backward[wrong].tolist() == [0.0] * 4


def test_progress_is_told_after_every_batch_of_every_attack(linear_run):
    *_, result, said = linear_run
    assert [stage for stage, _ in said if stage == "apgd-ce"] == ["apgd-ce"] * 2  # 28 images in batches of 20
    assert {stage: left for stage, left in said} == {stage: result.survivors[stage] for stage in STAGES}  # noqa: C416


def test_the_log_holds_what_the_package_said(linear_run):
    *_, result, _ = linear_run
    share = result.survivors["square"] / len(result.by)
    assert f"DEBUG: robust accuracy: {share:.2%}" in result.log
    assert any("initial accuracy: 87.50%" in line for line in result.log)


def test_on_a_constant_network_everything_of_its_class_survives(brief):
    y = torch.tensor([2, 2, 2, 0, 2, 1])
    result = autoattack(Constant([0.0, 1.0, 5.0, 2.0, 3.0]).eval(), images(6), y, LINF, seed=0)
    assert result.by == ["", "", "", "clean", "", "clean"]
    assert torch.equal(result.adversarial, images(6))
    assert any("points with zero gradient" in line for line in result.log)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_is_the_package_called_directly_with_the_same_seed(brief, norm):
    network, x, y = scene()
    epsilon = {"linf": 0.03, "l2": 0.15, "l1": 1.0}[norm]
    result = autoattack(network, x, y, ThreatModel(norm, epsilon), seed=5, batch_size=9)
    direct = Brief(network, norm=official._NORMS[norm], eps=epsilon, seed=5)
    direct.logger.disabled = True
    try:
        adversarial, predicted = direct.run_standard_evaluation(x, y, batch_size=9)
    finally:
        direct.logger.disabled = False
    assert torch.equal(result.adversarial, adversarial)
    assert [by == "" for by in result.by] == (predicted == y).tolist()
    assert 0 < result.by.count("") < result.survivors["clean"]
    assert (ThreatModel(norm, epsilon).distance(adversarial, x) <= epsilon * 1.0001).all()


def test_one_seed_gives_one_result_and_another_seed_another(brief):
    network, x, y = scene()
    threat = ThreatModel("linf", 0.04)
    first, again, other = (autoattack(network, x, y, threat, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.adversarial, again.adversarial)
    assert first.by == again.by
    assert torch.equal(first.forward, again.forward)
    assert not torch.equal(first.adversarial, other.adversarial)


def test_of_an_ensemble_every_member_is_paid_for(brief):
    network, x, y = scene(network=Averaged(curved(seed=seed) for seed in range(3)).eval())
    result = autoattack(network, x, y, LINF, seed=0)
    wrong = torch.tensor([by == "clean" for by in result.by])
    assert (result.forward[wrong] == 3).all()
    assert result.forward[~wrong].min() >= 3 * (1 + 5)  # the clean image and five steps
    assert result.forward.sum().item() % 3 == pytest.approx(0, abs=1e-2)


def test_nothing_of_the_callers_is_changed(brief):
    network, x, y = scene()
    network[0].bias.requires_grad_(False)
    network[5].weight.grad = torch.ones_like(network[5].weight)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    x_before, y_before = x.clone(), y.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - the state that others may depend on

    result = autoattack(network, x, y, LINF, seed=0)

    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002 - the state that others may depend on
    assert random.getstate() == states[2]
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert torch.equal(network[5].weight.grad, torch.ones_like(network[5].weight))
    assert all(p.grad is None for p in network.parameters() if p is not network[5].weight)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not network._forward_hooks
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert result.adversarial.data_ptr() != x.data_ptr()


def test_even_a_network_that_fails_on_the_way_gets_everything_back(brief):
    network, x, y = scene()
    calls = []

    def fail(module, inputs):
        calls.append(1)
        torch.rand(1)
        if len(calls) > 20:
            raise RuntimeError("out of memory")

    network.register_forward_pre_hook(fail)
    before, trace = torch.get_rng_state(), sys.gettrace()
    with pytest.raises(RuntimeError, match="out of memory"):
        autoattack(network, x, y, LINF, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.gettrace() is trace
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network._forward_hooks


def test_a_debugger_or_coverage_tool_keeps_its_trace_function(brief):
    network, x, y = scene(4)

    def trace(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        autoattack(network, x, y, LINF, seed=0)
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is trace


def test_probabilities_in_place_of_logits_leave_the_packages_warning_in_the_log(brief):
    network, x, y = scene(4)
    warned = autoattack(nn.Sequential(network, nn.Softmax(1)).eval(), x, y, LINF, seed=0)
    calm = autoattack(network, x, y, LINF, seed=0)
    words = "WARNING: it seems that the output is a probability distribution"
    assert any(line.startswith(words) for line in warned.log)
    assert not any("WARNING" in line and "probability" in line for line in calm.log)


def test_random_outputs_leave_the_packages_warning_in_the_log(brief):
    network, x, y = scene(4)
    noisy = Returning(lambda images: network(images) + 0.1 * torch.rand(len(images), 10)).eval()
    before = torch.get_rng_state()
    result = autoattack(noisy, x, y, LINF, seed=0)
    assert any(line.startswith("WARNING: it seems to be a randomized defense") for line in result.log)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_takes_gradients_itself_is_warned_about_and_the_next_one_is_not(brief):
    network, x, y = scene(4)

    def purified(images):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(network(leaf).sum(), leaf)
        return network(images - 1e-4 * slope)

    dynamic = autoattack(Returning(purified).eval(), x, y, LINF, seed=0)
    plain = autoattack(network, x, y, LINF, seed=0)
    words = "WARNING: it seems to be a dynamic defense"
    assert any(line.startswith(words) for line in dynamic.log)
    assert not any(line.startswith(words) for line in plain.log)


def test_nothing_is_printed(brief, capfd):
    network, x, y = scene(4)
    autoattack(network, x, y, LINF, seed=0)
    assert capfd.readouterr() == ("", "")


def test_five_classes_are_attacked_with_the_four_targets_there_are(brief):
    network, x, y = scene(12, curved(classes=5))
    result = autoattack(network, x, y, ThreatModel("linf", 0.1), seed=0)
    assert not any("more target classes" in line for line in result.log)
    assert list(result.survivors) == ["clean", *STAGES]


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_than_four_classes_are_refused_in_one_sentence(classes):
    sentence = f"AutoAttack standard needs at least 4 classes (targeted DLR), but found {classes}"
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        autoattack(curved(classes=classes), images(3), torch.zeros(3, dtype=torch.long), LINF, seed=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"threat": ThreatModel("linf", 0.1, low=-1.0, high=1.0)},
            "AutoAttack works on pixels in [0, 1], but the threat has [-1, 1]",
        ),
        (
            {"x": images(4).double()},
            "AutoAttack works in torch.float32, but the images are torch.float64: use x.float()",
        ),
        (
            {"network": curved().train()},
            "the network is attacked as it will be used, but found it in train mode: call network.eval()",
        ),
        ({"y": torch.full((4,), 10)}, "labels lie in 0..9 (the network has 10 classes), but found 10..10"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_sentence(change, sentence):
    given = {"network": curved(), "x": images(4), "y": torch.zeros(4, dtype=torch.long), "threat": LINF} | change
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        autoattack(**given, seed=0)


def test_nan_logits_of_a_later_batch_are_refused_too():
    network = curved()
    spoiled = Returning(lambda x: torch.where(x[:, :1, 0, 0] == 0, torch.nan, network(x))).eval()
    x = images(9)
    x[8, 0, 0, 0] = 0
    with pytest.raises(BadInput, match=r"^logits are finite numbers, but found NaN or infinity for 1 of 1 images$"):
        autoattack(spoiled, x, torch.zeros(9, dtype=torch.long), LINF, seed=0, batch_size=4)


def test_images_stored_channels_last_are_attacked_like_any_others(brief):
    network = curved(channels=3)
    x = images(8, channels=3)
    y = network(x).argmax(1)
    stored = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as a picture file is laid out
    assert not stored.is_contiguous()
    expected, found = (autoattack(network, given, y, LINF, seed=0) for given in (x, stored))
    assert torch.equal(found.adversarial, expected.adversarial)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off_the_attack_is_the_same(brief, context):
    network, x, y = scene(8)
    expected = autoattack(network, x, y, LINF, seed=0)
    with context():
        found = autoattack(network, x * 1, y * 1, LINF, seed=0)
    assert torch.equal(found.adversarial, expected.adversarial)
    assert found.by == expected.by


def test_a_single_image_and_images_that_are_all_wrong_are_no_special_cases(brief):
    network, x, y = scene(4)
    one = autoattack(network, x[1:2], y[1:2], ThreatModel("linf", 0.5), seed=0)
    assert (len(one.by), one.adversarial.shape) == (1, (1, 1, 8, 8))
    wrong = autoattack(network, x, (network(x).argmax(1) + 1) % 10, LINF, seed=0)
    assert wrong.by == ["clean"] * 4
    assert set(wrong.survivors.values()) == {0}


def test_the_engine_tells_its_version():
    assert re.fullmatch(r"official \d+\.\d+.*", official.version())
