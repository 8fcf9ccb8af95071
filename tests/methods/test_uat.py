"""What a faithful implementation of unsupervised adversarial training must show, in its three variants."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from attacks import BadInput, ThreatModel, counting, kl_divergence
from attacks.objectives import cross_entropy_with
from methods import PGDAT, UAT
from methods.base import Batch
from methods.unlabelled import HIDDEN, predicted_labels
from tests.methods.tools import batches_seen, gradients, images, network, statistics, trace

THREAT = ThreatModel("linf", 0.1)
HALF = slice(12, 24)  # of 24 images the unlabelled ones
every_variant = pytest.mark.parametrize("variant", ["pp", "ft", "ot"])


def method(variant="pp", body=None, threat=THREAT, steps=3, **settings):
    made = UAT(network() if body is None else body, threat, variant=variant, **settings).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def batch(dtype=torch.float32):
    x, y = images()
    hidden = y.clone()
    hidden[HALF] = HIDDEN
    return Batch(x.to(dtype), hidden, torch.arange(24) + 100), y


def taught(made, labels):
    """Let a method learn the labels of the unlabelled images."""
    made.learn_from(torch.arange(24)[HALF] + 100, labels[HALF])
    return made


# What a faithful implementation must show


def test_without_lam_uat_pp_has_the_loss_and_the_gradient_of_uat_ft():
    given, y = batch()
    pp, ft = (taught(method(variant, lam=0.0), y.flip(0)) for variant in ("pp", "ft"))
    step, expected = trace(pp, given), trace(ft, given)
    assert torch.equal(step.adversarial, expected.adversarial)
    assert step.loss == expected.loss
    torch.testing.assert_close(gradients(pp, step.loss), gradients(ft, expected.loss), rtol=0, atol=0)
    assert trace(taught(method("pp"), y.flip(0)), given).loss > expected.loss


def test_taught_the_true_labels_uat_ft_is_pgd_training_on_all_images():
    given, y = batch()
    ours, pgd = taught(method("ft"), y), PGDAT(network(), THREAT, inner=method().inner).train()
    step, expected = trace(ours, given), trace(pgd, given._replace(y=y))
    assert torch.equal(step.adversarial, expected.adversarial)
    assert step.loss == expected.loss
    torch.testing.assert_close(gradients(ours, step.loss), gradients(pgd, expected.loss), rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["pp", "ot"])
def test_no_gradient_flows_through_the_clean_prediction(variant):
    given, y = batch(torch.float64)
    ours = taught(method(variant, network().double()), y)
    step = trace(ours, given)
    smoothed = given.x if variant == "pp" else given.x[HALF]
    stored = ours.network(smoothed).detach()  # as numbers, whatever made them

    def loss(clean):
        supervised = (step.adversarial, y) if variant == "pp" else (given.x[:12], y[:12])
        divergence = kl_divergence(clean, ours.network(step.adversarial)).mean()
        return F.cross_entropy(ours.network(supervised[0]), supervised[1]) + ours.lam * divergence

    constant, flowing = loss(stored), loss(ours.network(smoothed))
    assert step.loss.item() == pytest.approx(constant.item(), rel=1e-9)
    ours_gradient = gradients(ours, step.loss)
    torch.testing.assert_close(ours_gradient, gradients(ours, constant), rtol=1e-9, atol=1e-12)
    assert (ours_gradient - gradients(ours, flowing)).norm() > 0.01 * ours_gradient.norm()


def test_without_a_radius_uat_ot_has_the_gradient_of_the_supervised_term_alone():
    given, y = batch(torch.float64)
    ours = method("ot", network().double(), THREAT.at(0.0))
    step = trace(ours, given)
    supervised = F.cross_entropy(ours.network(given.x[:12]), y[:12])
    assert step.loss.item() == pytest.approx(supervised.item(), rel=1e-12)
    assert ours._notes["smoothness"][0].item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(ours, supervised), rtol=1e-9, atol=1e-12)


def test_uat_ot_needs_no_labels_of_unlabelled_images():
    given, y = batch()
    without = trace(method("ot"), given)
    told = trace(taught(method("ot"), y), given)
    assert torch.equal(without.adversarial, told.adversarial)
    assert torch.equal(without.loss, told.loss)
    assert [UAT.needs_teacher({"variant": variant}) for variant in ("pp", "ft", "ot")] == [True, True, False]
    assert UAT.needs_teacher({})


def test_a_teacher_is_no_part_of_the_student_and_is_left_as_it_was():
    given, _ = batch()
    teacher = network(seed=5).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    ours = method()
    ours.learn_from(given.index, predicted_labels(teacher, given.x))
    trace(ours, given).loss.backward()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert len(list(ours.parameters())) == len(list(network().parameters()))


@pytest.mark.parametrize(("variant", "forwards"), [("pp", 2), ("ft", 1), ("ot", 3)])
def test_statistics_stand_still_in_the_attack_and_move_once_per_training_forward(variant, forwards):
    given, y = batch()
    ours, by_hand, modes = taught(method(variant), y), network().train(), []
    before = statistics(ours.network)
    ours.perturb(given._replace(y=y), cross_entropy_with(y))
    assert all(torch.equal(before[name], value) for name, value in statistics(ours.network).items())
    ours.network.register_forward_pre_hook(lambda body, inputs: modes.append(body.training))
    step = trace(ours, given)
    assert sum(modes) == forwards
    assert batches_seen(ours.network) == [forwards, forwards]
    seen = {"pp": (step.adversarial, given.x), "ft": (step.adversarial,)}
    for inputs in seen.get(variant, (given.x[:12], given.x[HALF], step.adversarial)):
        by_hand(inputs)
    assert all(torch.equal(value, statistics(by_hand)[name]) for name, value in statistics(ours.network).items())


@every_variant
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_stay_in_ball_and_range(variant, norm):
    given, y = batch()
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 0.5)
    step = trace(taught(method(variant, threat=threat), y), given)
    origin = given.x[HALF] if variant == "ot" else given.x
    assert threat.distance(step.adversarial, origin).max() <= threat.epsilon + 1e-6
    assert step.adversarial.min() >= 0
    assert step.adversarial.max() <= 1


# The common track's rules


def test_a_third_of_a_batch_is_labelled():
    assert [method().labelled_rows(size, 200, 1197) for size in (128, 64, 192)] == [43, 21, 64]
    assert method(labelled_share=0.5).labelled_rows(128, 200, 1197) == 64


def test_the_weight_is_3_of_uat_pp_and_5_of_uat_ot_unless_it_is_given():
    assert [method(variant).lam for variant in ("pp", "ot")] == [3, 5]
    assert method("ot", lam=2.0).lam == 2


def test_the_step_is_a_quarter_of_epsilon_and_the_start_uniform_in_the_ball():
    inner = UAT(network(), THREAT).inner
    assert (inner.step_size, inner.start, inner.scale, inner.boxed, inner.mode) == (
        *("epsilon/4", "uniform", "epsilon"),
        True,
        "eval",
    )
    x = torch.full((24, 1, 8, 8), 0.5)
    noise = inner.begin(x, THREAT.at(0.15), method().draws) - x
    assert noise.abs().max() <= 0.15 + 1e-6
    assert noise.std().item() == pytest.approx(0.15 / 3**0.5, rel=0.05)


def test_passes_are_those_of_the_specification():
    given, y = batch()
    found = {}
    for variant in ("pp", "ft", "ot"):
        ours = taught(method(variant), y)
        with counting(ours.network) as passes:
            trace(ours, given).loss.backward()
        found[variant] = passes.forward / 24, passes.backward / 24
    assert found == {"pp": (5, 4), "ft": (4, 4), "ot": (0.5 + (3 + 3) / 2, 0.5 + (3 + 1) / 2)}  # half are unlabelled


# What else there is


def test_a_divergence_attack_of_its_own_finds_more_divergence_at_twice_the_cost():
    given, y = batch()
    found = {}
    for kl_attack in (False, True):
        ours = taught(method(kl_attack=kl_attack, body=network(seed=3), steps=7), y)
        with counting(ours.network) as passes:
            trace(ours, given).loss.backward()
        found[kl_attack] = ours._notes["smoothness"][0].item(), passes.forward / 24
    assert found[True][0] > found[False][0]
    assert (found[False][1], found[True][1]) == (9, 9 + 1 + 7 + 1)


def test_where_every_label_is_known_uat_ot_smooths_the_labelled_images():
    x, y = images()
    ours = method("ot", network().double())
    step = trace(ours, (x.double(), y))
    clean, attacked = ours.network(x.double()), ours.network(step.adversarial)
    expected = F.cross_entropy(clean, y) + 5 * kl_divergence(clean, attacked).mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-9)


@every_variant
def test_a_batch_without_labels_is_no_error(variant):
    given, y = batch()
    ours = method(variant)
    ours.learn_from(given.index, y)
    loss = trace(ours, given._replace(y=torch.full_like(y, HIDDEN))).loss
    loss.backward()
    assert loss.isfinite()


@every_variant
def test_in_mixed_precision_every_parameter_has_a_gradient(variant):
    given, y = batch()
    ours = taught(method(variant, kl_attack=variant == "pp"), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = trace(ours, given).loss
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in ours.parameters())


def test_an_image_that_no_teacher_has_labelled_is_named():
    given, _ = batch()
    with pytest.raises(BadInput, match=r"UAT needs a pseudo-label .* image 112 has none: give them with learn_from"):
        trace(method("ft"), given)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"variant": "xx"}, "variant is one of pp, ft, ot, but found 'xx'"),
        ({"lam": -1.0}, "lam is 0 or more, but found -1"),
        ({"labelled_share": 1.5}, "labelled_share lies between 0 and 1, but found 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(**settings)
