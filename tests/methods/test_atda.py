"""What a faithful implementation of adversarial training with domain adaptation must show."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.modes import in_mode
from attacks.objectives import away_from_prediction
from attacks.pgd import fgsm, pgd
from benchmark import suite
from benchmark.experiment import plan
from methods import ATDA
from methods.efficient.atda import coral, margin_to_centres, mmd, scatter
from methods.inner import Inner
from methods.recipe import Recipe
from tests.methods.tools import (
    EPSILON,
    assert_same,
    batches_seen,
    gradients,
    images,
    loader,
    network,
    statistics,
    trace,
    trainer,
)

THREAT = ThreatModel("linf", EPSILON)


def method(body=None, threat=THREAT, **own):
    return ATDA(network() if body is None else body, threat, **own).train()


def logits(rows=12, classes=4, seed=0):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def noted(ours, name):
    return ours._notes[name][0].item()


def test_without_an_attack_both_domains_are_one():
    x, y = images()
    ours = method(threat=THREAT.at(0.0))
    clean = network().train()(x)
    step = trace(ours, (x, y))
    assert (noted(ours, "mmd"), noted(ours, "coral")) == (0, 0)
    expected = 2 * F.cross_entropy(clean, y) + math.log(2) / 3
    torch.testing.assert_close(step.loss, expected)


def test_without_the_three_terms_it_is_twice_the_baseline_on_the_own_predictions_fgsm_image():
    x, y = images()
    body = network().train()
    with in_mode(body, "batch"):
        attacked = pgd(body, x, away_from_prediction, THREAT, start=x, steps=1, step_size=EPSILON)
    baseline = 0.5 * (F.cross_entropy(body(x), y) + F.cross_entropy(body(attacked), y))
    ours = method(lam=0.0)
    step = trace(ours, (x, y))
    assert torch.equal(step.adversarial, attacked)
    torch.testing.assert_close(step.loss, 2 * baseline)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(2 * baseline, list(body.parameters()))])
    torch.testing.assert_close(gradients(ours, step.loss), expected)
    assert_same(statistics(ours.network), statistics(body))  # moved by x, then by x'


@given(st.integers(0, 100), st.integers(2, 10), st.floats(-5, 5))
def test_equal_centres_give_log_2_for_any_logits(seed, classes, value):
    z, y = logits(9, classes, seed), torch.arange(9) % classes
    centres = torch.full((classes, classes), value, dtype=torch.float64)
    assert margin_to_centres(z, y, centres).item() == pytest.approx(math.log(2))


def test_equal_centres_give_no_gradient():
    z, y = logits().requires_grad_(), torch.arange(12) % 4
    (gradient,) = torch.autograd.grad(margin_to_centres(z, y, torch.zeros(4, 4, dtype=torch.float64)), z)
    assert not gradient.any()


def test_the_margin_term_is_the_sum_over_images_and_wrong_classes_by_hand():
    z, centres, y = logits(6, 3), logits(3, 3, seed=5), [0, 1, 2, 2, 1, 0]
    total = 0.0
    for row, label in zip(z, y, strict=True):
        for j in {0, 1, 2} - {label}:
            total += math.log1p(math.exp((row - centres[label]).abs().sum() - (row - centres[j]).abs().sum()))
    found = margin_to_centres(z, torch.tensor(y), centres)
    assert found.item() == pytest.approx(total / (6 * 2), rel=1e-6)  # 2B rows in the paper are 6 here


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 50))
def test_a_centre_moves_by_alpha_n_of_1_plus_n_towards_equal_logits(count, seed):
    z = logits(1, 5, seed)
    ours = method(alpha=0.1)
    ours.centres = logits(5, 5, seed + 1)
    before = ours.centres.clone()
    ours._move_centres(z.expand(count, -1), torch.full((count,), 2))
    moved = before[2] + 0.1 * count / (1 + count) * (z[0] - before[2])
    torch.testing.assert_close(ours.centres[2], moved)
    others = [0, 1, 3, 4]  # classes that are absent
    assert torch.equal(ours.centres[others], before[others])


def test_a_centre_that_sees_the_same_logits_again_and_again_becomes_them():
    z, y = logits(1, 5), torch.full((4,), 2)
    ours = method()
    for _ in range(250):
        ours._move_centres(z.expand(4, -1), y)
    torch.testing.assert_close(ours.centres[2], z[0])


def test_a_step_moves_the_centres_after_the_loss_by_the_rows_of_both_domains():
    x, y = images()
    ours, seen = method(), []
    ours.network.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    ours.centres = before = torch.arange(9.0).view(3, 3)
    trace(ours, (x, y))
    rows = torch.cat(seen[1:])  # the first forward was the attack's
    labels = torch.cat([y, y])
    torch.testing.assert_close(noted(ours, "margin"), margin_to_centres(rows, labels, before).item())
    for j in range(3):
        mine = rows[labels == j]
        expected = before[j] - 0.1 * (before[j] - mine).sum(0) / (1 + len(mine))
        torch.testing.assert_close(ours.centres[j], expected)


def test_the_rows_of_all_devices_move_the_centres_alike():
    z, y = logits(), torch.tensor([0, 0, 1, 2, 2, 2, 0, 1, 1, 1, 2, 0])
    whole, halves, sums = method(), [method(), method()], []
    parts = [(z[:5], y[:5]), (z[5:], y[5:])]
    whole._move_centres(z, y)
    for half, part in zip(halves, parts, strict=True):
        half._sum_over_ranks = lambda mine: sums.append(mine) or mine
        half._move_centres(*part)
    for half, part in zip(halves, parts, strict=True):
        half.centres, half._sum_over_ranks = None, lambda mine: sums[0] + sums[1]
        half._move_centres(*part)
        torch.testing.assert_close(half.centres, whole.centres)


@settings(deadline=None)
@given(st.integers(0, 100), st.floats(-10, 10))
def test_both_distances_are_symmetric_and_free_of_order_and_coral_of_a_shift(seed, shift):
    u, v = logits(seed=seed), logits(seed=seed + 1000)
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(seed))
    for distance in (mmd, coral):
        torch.testing.assert_close(distance(u, v), distance(v, u))
        torch.testing.assert_close(distance(u[order], v), distance(u, v))
        torch.testing.assert_close(distance(u, v[order]), distance(u, v))
        assert distance(u, u[order]).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(coral(u + shift * torch.arange(4), v), coral(u, v))


def test_two_classes_by_hand():
    u, v = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2)
    assert scatter(u).tolist() == [[2, 0], [0, 0]]
    assert (coral(u, v).item(), mmd(u, v).item()) == (0.5, 0.5)


def test_the_loss_is_the_weighted_sum_of_its_terms_and_the_graph_has_both_domains():
    u, v, y = logits().requires_grad_(), logits(seed=1).requires_grad_(), torch.arange(12) % 4
    ours = method(lam=0.7)
    ours.centres = logits(4, 4, seed=2)
    loss = ours.adaptation_loss(u, v, y)
    parts = [noted(ours, name) for name in ("clean_loss", "adversarial_loss", "coral", "mmd", "margin")]
    assert loss.item() == pytest.approx(parts[0] + parts[1] + 0.7 * sum(parts[2:]))
    assert noted(ours, "coral") == pytest.approx((scatter(u) - scatter(v)).abs().sum().item() / 16)
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, [u, v]))


@pytest.mark.filterwarnings("ignore")
def test_centres_have_no_gradient_and_are_kept_with_the_checkpoint(tmp_path):
    def fit(resume=None, epochs=3):
        ours = method(recipe=Recipe(learning_rate=0.02, schedule="constant"))
        run = trainer(epochs)
        run.fit(ours, loader(), ckpt_path=resume, weights_only=True)
        return run, ours

    run, half = fit(epochs=2)
    run.save_checkpoint(tmp_path / "half.ckpt")
    kept = torch.load(tmp_path / "half.ckpt", weights_only=True)["atda"]["centres"]
    assert torch.equal(kept, half.centres)
    assert not half.centres.requires_grad
    assert half.centres.grad_fn is None
    assert torch.equal(fit(tmp_path / "half.ckpt")[1].centres, fit()[1].centres)
    assert "centres" not in half.state_dict()  # DDP's broadcast of buffers passes it by


def test_for_what_is_right_the_attack_is_fgsm_on_the_true_label():
    x, _ = images()
    ours = method()
    with in_mode(ours.network, "batch"), torch.no_grad():
        y = ours.network(x).argmax(1)
    with in_mode(ours.network, "batch"):
        expected = fgsm(ours.network, x, y, THREAT)
    other = (y + 1) % 3
    assert torch.equal(trace(ours, (x, other)).adversarial, expected)  # whatever the labels say


def test_npgd_starts_in_the_ball_and_climbs_the_true_labels():
    x, y = images()
    inner = Inner(steps=3, step_size="epsilon/4", start="uniform", mode="batch")
    ours = method(attack="npgd", inner=inner)
    with in_mode(ours.network, "batch"):
        start = inner.begin(x, THREAT, ours.draws)
        expected = pgd(ours.network, x, cross_entropy_with(y), THREAT, start=start, steps=3, step_size=EPSILON / 4)
    with counting(ours.network) as passes:
        assert torch.equal(trace(ours, (x, y)).adversarial, expected)
    assert passes.forward == 5 * len(x)


def test_the_attack_uses_batch_statistics_and_leaves_none_behind():
    x, y = images()
    ours = method()
    before = statistics(ours.network)
    ours.perturb(type("Batch", (), {"x": x, "y": y}), away_from_prediction)
    assert_same(statistics(ours.network), before)
    modes = []
    ours.network.register_forward_pre_hook(lambda body, _: modes.append(body.training))
    trace(ours, (x, y))
    assert modes == [True, True, True]
    assert batches_seen(ours.network) == [2, 2]


def test_masks_of_the_networks_dropout_differ_between_the_three_forwards():
    x, y = images()
    ours, masks = method(network(dropout=0.5)), []
    dropout = next(m for m in ours.network.modules() if isinstance(m, torch.nn.Dropout))
    dropout.register_forward_hook(lambda m, inputs, output: masks.append((output == 0) & (inputs[0] != 0)))
    trace(ours, (x, y))
    assert len(masks) == 3
    assert not any(torch.equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


# The common track


@pytest.mark.parametrize(
    ("own", "rows", "factor"),
    [
        ({}, 24, 1.0),
        ({"coral_batch_size": 32}, 64, 31 / 63),
        ({"coral_batch_size": 32}, 128, 31 / 127),
        ({"coral_batch_size": 32}, 32, 1.0),
        ({"coral_divide_by_n_minus_1": True}, 24, 1 / 23),
    ],
)
def test_the_scatter_matrices_are_scaled_as_the_settings_say(own, rows, factor):
    u, v, y = logits(rows), logits(rows, seed=1), torch.arange(rows) % 4
    ours = method(**own)
    ours.adaptation_loss(u, v, y)
    assert noted(ours, "coral") == pytest.approx(factor * coral(u, v).item())
    if own.get("coral_divide_by_n_minus_1"):
        covariances = (torch.cov(u.T) - torch.cov(v.T)).abs().mean()
        assert noted(ours, "coral") == pytest.approx(covariances.item())


@pytest.mark.parametrize("own", [{}, {"coral_batch_size": 32}, {"coral_divide_by_n_minus_1": True}])
def test_of_one_row_there_is_no_scatter(own):
    ours = method(**own)
    loss = ours.adaptation_loss(logits(1), logits(1, seed=1), torch.tensor([2]))
    assert noted(ours, "coral") == 0
    assert math.isfinite(loss.item())


def test_in_the_common_suite_the_loss_is_halved_and_coral_weighs_what_it_does_at_32_rows():
    (of,) = plan(suite.load("digits-common", {"methods": {"atda": suite.load("digits-common").methods["atda"]}}))
    ours = of.build_method(of.build_network()).train()
    assert ours._coral_factor(64) == pytest.approx(0.49, abs=0.005)
    assert ours._coral_factor(128) == pytest.approx(0.24, abs=0.005)
    assert (ours.lam, ours.alpha, ours.attack, ours.inner.steps) == (pytest.approx(1 / 3), 0.1, "fgsm", 7)
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    step = trace(ours, (x, y))
    assert (step.adversarial - x).abs().max().item() == pytest.approx(0.15, abs=1e-6)
    parts = [noted(ours, name) for name in ("clean_loss", "adversarial_loss", "coral", "mmd", "margin")]
    assert step.loss.item() == pytest.approx((parts[0] + parts[1]) / 2 + sum(parts[2:]) / 6, rel=1e-5)


def test_the_row_shows_the_terms_of_the_last_epoch_and_whether_coral_dominates():
    ours = method()
    assert ours.remarks() == {}
    line = {"clean_loss": 0.3, "adversarial_loss": 0.6, "coral": 0.8, "mmd": 0.1, "margin": 0.2}
    ours.history = [dict.fromkeys(line, 9.0), line]
    assert ours.remarks() == line
    ours.history.append(line | {"coral": 0.91})
    assert ours.remarks()["mark"] == "regulariser dominates"


@pytest.mark.parametrize(
    "wrong",
    [
        {"attack": "pgd"},
        {"lam": -1.0},
        {"alpha": 1.5},
        {"loss_scale": 0.0},
        {"coral_batch_size": 1},
        {"coral_divide_by_n_minus_1": True, "coral_batch_size": 32},
    ],
)
def test_a_silly_setting_is_refused_by_name(wrong):
    (name, *_) = wrong
    with pytest.raises(BadInput, match=f"^{name} "):
        method(**wrong)
