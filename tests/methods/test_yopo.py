"""What a faithful implementation of YOPO must show."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import kl_divergence
from methods import YOPO
from methods.base import Batch
from methods.efficient.yopo import along
from methods.recipe import Recipe
from tests.golden import cases
from tests.methods.from_golden.yopo import SKIPPED, build
from tests.methods.tools import EPSILON, batches_seen, gradients, images, loader, network, trace, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)
CASES = [case for case in cases("yopo", "training_step") if case.name not in SKIPPED]


class Start:
    """Draws whose noise is given, in units of the radius."""

    def __init__(self, noise):
        self.noise = noise

    def uniform(self, like, shape=None):
        return self.noise.expand_as(like).to(like)

    normal = uniform


class Kept(YOPO):
    """Remembers the images after each round."""

    def perturb(self, *args):
        attacked = super().perturb(*args)
        vars(self).setdefault("rounds", []).append(attacked)
        return attacked


def method(body=None, noise=None, kind=YOPO, threat=THREAT, **settings):
    made = kind((network() if body is None else body).double(), threat, **settings).train()
    if noise is not None:
        made.draws = Start(noise)
    return made


def batch(middle=False):
    """Images in float64; in the ``middle`` of the range no clip is at work."""
    x, y = images()
    return Batch.of(((0.3 + 0.4 * x if middle else x).double(), y))


def noise_like(x, seed=3):
    return 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype) - 1


def by_hand(body, x, y):
    """The gradient of the mean cross-entropy by each parameter."""
    return torch.autograd.grad(F.cross_entropy(body(x), y), list(body.parameters()))


def split(gradient, body):
    """A flat gradient's part of the first convolution, weight and bias, and the rest."""
    first = sum(p.numel() for p in body[0].parameters())
    return gradient[:first], gradient[first:]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


# The authors' own traces, beyond what every method's golden test compares


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_and_noise_of_every_round_are_the_authors(case, monkeypatch):
    ours, losses, rounds = build(case).double(), [], []
    loss_of, perturb = ours.classification_loss, ours.perturb
    monkeypatch.setattr(ours, "classification_loss", lambda *a: losses.append(loss_of(*a)) or losses[-1])
    monkeypatch.setattr(ours, "perturb", lambda *a: rounds.append(perturb(*a)) or rounds[-1])
    ours.draws = case.draws
    ours.trace_step(case.batch)
    assert [loss.item() for loss in losses] == pytest.approx(case.expected["losses"], rel=1e-7)
    for attacked, eta in zip(rounds, case.expected["eta_after_each_outer"], strict=True):
        moved = attacked - case.batch[0]
        assert moved.sum().item() == pytest.approx(eta["sum"], abs=1e-8)
        assert moved.norm().item() == pytest.approx(eta["l2_norm"], rel=1e-9)


def test_only_cases_of_a_clip_without_a_gradient_on_the_bound_are_skipped():
    assert CASES
    for case in cases("yopo", "training_step"):
        assert (case.name in SKIPPED) == (case.settings.get("clamp_gradient_at_bounds") == 0)


# What a faithful implementation must show


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_steps_the_noise_stays_and_the_rest_has_m_times_the_gradient_there(mode):
    x, y, _ = batch()
    noise = noise_like(x)
    ours = method(noise=noise, m=4, n=0, reduction="sum").train(mode == "train")
    step = trace_of(ours, (x, y))
    assert torch.equal(step.adversarial, x + EPSILON * noise)
    expected = flat(by_hand(network().double().train(mode == "train"), x + EPSILON * noise, y))
    rest = split(gradients(ours, step.loss), ours.network)[1]
    torch.testing.assert_close(rest, 4 * split(expected, ours.network)[1], rtol=1e-9, atol=1e-12)


def test_without_steps_the_first_layer_has_its_ordinary_gradient_where_nothing_is_clipped():
    x, y, _ = batch(middle=True)
    noise = noise_like(x)
    ours = method(noise=noise, m=1, n=0)
    found = gradients(ours, trace_of(ours, (x, y)).loss)
    expected = flat(by_hand(network().double().train(), x + EPSILON * noise, y))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_first_step_follows_the_sign_of_the_true_input_gradient():
    x, y, _ = batch(middle=True)
    noise = 0.3 * noise_like(x)
    ours = method(noise=noise, m=1, n=1, step_size="epsilon/2")
    attacked = trace_of(ours, (x, y)).adversarial
    start = (x + EPSILON * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network().double().train()(start), y), start)
    torch.testing.assert_close(attacked, (start + EPSILON / 2 * gradient.sign()).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [1, 3])
def test_with_a_convolution_in_front_and_no_clip_n_steps_are_one_of_n_times_the_length(m):
    x, y, _ = batch(middle=True)
    noise = torch.zeros(1)
    many, one = (
        method(noise=noise.double(), m=m, n=n, step_size=f"{size} epsilon")
        for n, size in ((4, 0.05), (1, 0.2))  # never as far as the ball
    )
    left, right = trace_of(many, (x, y)), trace_of(one, (x, y))
    torch.testing.assert_close(left.adversarial, right.adversarial, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(many, left.loss), gradients(one, right.loss), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("m", [1, 3])
def test_each_minibatch_costs_m_full_passes_each_way_whatever_n(m, n):
    x, y, _ = batch()
    ours = method(m=m, n=n)
    with counting(ours.network) as passes:
        step = trace_of(ours, (x, y))
        assert (passes.forward, passes.backward) == (m * len(x), m * len(x))
        step.loss.backward()  # carries what is known already
    assert (passes.forward, passes.backward) == (m * len(x), m * len(x))
    assert set(batches_seen(ours.network)) == {m}


def test_the_first_layer_alone_runs_m_times_n_plus_one_more():
    x, y, _ = batch()
    runs = []
    ours = method(m=4, n=3)
    trace_of(ours, (x, y))  # looks for the first layer
    ours.network[0].register_forward_hook(lambda *_: runs.append(1))
    trace_of(ours, (x, y))
    assert len(runs) == 4 + 4 * (3 + 1)


@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_after_every_step_the_noise_lies_in_the_ball_and_the_image_in_the_range(loss):
    x, y, _ = batch()
    for n in (1, 2, 3):
        ours = method(kind=Kept, m=3, n=n, step_size="epsilon", loss=loss)
        trace_of(ours, (x, y))
        assert len(ours.rounds) == 3
        for attacked in ours.rounds:
            assert (attacked - x).abs().max() <= EPSILON + 1e-12
            assert attacked.min() >= 0
            assert attacked.max() <= 1


def test_with_one_round_the_rests_gradient_does_not_depend_on_n():
    x, y, _ = batch()
    found = []
    for n in (0, 1, 5):
        ours = method(noise=noise_like(x), m=1, n=n)
        found.append(split(gradients(ours, trace_of(ours, (x, y)).loss), ours.network))
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][1], found[2][1])
    assert not torch.equal(found[1][0], found[2][0])


def test_a_pixel_that_a_step_has_boxed_comes_back_when_its_gradient_turns():
    body = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 3))
    ours = method(body, m=1, n=1, step_size="epsilon")
    ours.trace_step(batch())
    x = torch.full((2, 1, 8, 8), 0.95, dtype=torch.float64)
    up = along(torch.ones_like(x) * body[0].weight.sign().item())
    boxed = ours.perturb(Batch.of((x, torch.tensor([0, 1]))), up, x)
    assert (boxed == 1).all()
    down = along(-torch.ones_like(x) * body[0].weight.sign().item())
    again = ours.perturb(Batch.of((x, torch.tensor([0, 1]))), down, boxed)
    torch.testing.assert_close(again, torch.full_like(x, 1 - EPSILON))


def test_where_the_noise_left_the_range_the_first_step_does_not_move_it():
    body = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 3))
    ours = method(body, n=1, step_size="epsilon/2")
    ours.trace_step(batch())
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    down = along(-torch.ones_like(x) * body[0].weight.sign().item())
    item = Batch.of((x, torch.tensor([0])))
    assert (ours.perturb(item, down, x + EPSILON / 3) == 1).all()  # the clip alone brings it back
    torch.testing.assert_close(ours.perturb(item, down, x), x - EPSILON / 2)


# Settings


def test_both_adds_what_the_full_pass_gives_the_first_layer_and_nothing_else():
    x, y, _ = batch(middle=True)
    noise = noise_like(x)
    intended, both = (method(noise=noise, m=1, n=2, first_layer_grad=kind) for kind in ("intended", "both"))
    without, with_it = (split(gradients(o, trace_of(o, (x, y)).loss), o.network) for o in (intended, both))
    assert torch.equal(without[1], with_it[1])
    full = flat(by_hand(network().double().train(), x + EPSILON * noise, y))
    torch.testing.assert_close(with_it[0] - without[0], split(full, both.network)[0], rtol=1e-8, atol=1e-11)


def test_the_mean_is_the_sum_divided_by_m_and_the_loss_is_that_of_the_last_pass_in_both():
    x, y, _ = batch()
    mean, total = (method(reduction=kind) for kind in ("mean", "sum"))
    left, right = trace_of(mean, (x, y)), trace_of(total, (x, y))
    assert left.loss.item() == right.loss.item()
    torch.testing.assert_close(5 * gradients(mean, left.loss), gradients(total, right.loss))


def test_on_the_digits_sigma_is_a_quarter_of_the_radius_and_the_start_fills_it():
    x = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    y = torch.tensor([0, 1])
    threat = ThreatModel("linf", 0.15)
    noise = torch.ones(1).double()
    start = trace_of(method(noise=noise, threat=threat, m=1, n=0), (x, y)).adversarial
    torch.testing.assert_close(start, x + 0.15)
    step = trace_of(method(noise=0 * noise, threat=threat, m=1, n=1), (x, y)).adversarial
    assert (step - x).abs().unique().tolist() == pytest.approx([0.0375])
    assert (YOPO(network(), threat).m, YOPO(network(), threat).n) == (5, 3)


def test_label_smoothing_of_the_recipe_is_in_every_pass():
    x, y, _ = batch(middle=True)
    noise = noise_like(x)
    ours = method(noise=noise, m=1, n=0, recipe=Recipe(label_smoothing=0.2))
    step = trace_of(ours, (x, y))
    expected = ours.recipe.cross_entropy(network().double().train()(x + EPSILON * noise), y).mean()
    assert step.loss.item() == pytest.approx(expected.item())


def test_noise_follows_a_ramp_of_the_radius():
    reached = []

    class Measured(YOPO):
        def perturb(self, *args):
            attacked = super().perturb(*args)
            reached.append((attacked - args[0].x).abs().max().item())
            return attacked

    ours = Measured(network(), THREAT, m=1, recipe=Recipe(epsilon_ramp=0.5))
    trainer(4).fit(ours, loader(batch_size=12))
    ramp = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert reached == pytest.approx([EPSILON * share for share in ramp], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"m": 0}, "m is a whole number, 1 or more, but found 0"),
        ({"n": -1}, "n is a whole number, 0 or more, but found -1"),
        ({"n": 1.5}, "n is a whole number, 0 or more, but found 1.5"),
        ({"loss": "mart"}, "loss is ce or trades, but found 'mart'"),
        ({"first_layer_grad": "none"}, "first_layer_grad is intended or both, but found 'none'"),
        ({"reduction": "max"}, "reduction is mean or sum, but found 'max'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        YOPO(network(), THREAT, **settings)


def test_a_network_without_a_first_layer_is_told_so():
    with pytest.raises(BadInput, match="the first layer is a convolution or linear layer"):
        YOPO(nn.Sequential(nn.Flatten(), nn.Softmax(1)), THREAT).trace_step(batch())


# TRADES' loss


def test_trades_takes_one_step_on_its_loss_at_images_that_the_rounds_made_in_eval_mode():
    x, y, _ = batch()
    noise = noise_like(x)
    ours = method(noise=noise, loss="trades", m=2, n=5, step_size="0.007/0.031 epsilon", beta=1.5)
    with counting(ours.network) as passes:
        step = trace_of(ours, (x, y))
        step.loss.backward()
    assert (passes.forward, passes.backward) == ((1 + 2 + 2) * len(x), (2 + 2) * len(x))
    assert set(batches_seen(ours.network)) == {2}
    body = network().double().train()
    clean, adversarial = body(x), body(step.adversarial)
    expected = F.cross_entropy(clean, y) + 1.5 * kl_divergence(clean, adversarial).mean()
    assert step.loss.item() == pytest.approx(expected.item())
    expected.backward()
    found = flat([p.grad for p in ours.network.parameters()])
    torch.testing.assert_close(found, flat([p.grad for p in body.parameters()]), rtol=1e-9, atol=1e-12)


def test_trades_starts_from_its_small_gaussian_noise_and_first_steps_along_the_divergences_gradient():
    x, y, _ = batch(middle=True)
    noise = noise_like(x)
    ours = method(noise=noise, loss="trades", m=1, n=1)
    attacked = trace_of(ours, (x, y)).adversarial
    start = (x + EPSILON * 0.001 / 0.031 * noise).requires_grad_()
    body = network().double().eval()
    (gradient,) = torch.autograd.grad(kl_divergence(body(x).detach(), body(start)).sum(), start)
    torch.testing.assert_close(attacked, (start + EPSILON / 4 * gradient.sign()).detach(), rtol=0, atol=1e-12)


# In training


def test_history_and_remarks_tell_the_share_of_the_first_layer():
    ours = YOPO(network(), THREAT)
    assert ours.remarks() == {}
    trainer(1).fit(ours, loader())
    first, second, last = 64 * 4 * 9, 16 * 6 * 4 * 9, 96 * 3  # multiplications per image
    share = first / (first + second + last)
    assert ours.history[0]["first_layer_share"] == pytest.approx(share)
    assert ours.remarks() == pytest.approx({"first_layer_share": share, "first_layer_passes": 20 * share})


def test_of_the_digits_network_the_first_layer_is_some_four_hundredths():
    from benchmark.architectures import build as build_network

    ours = YOPO(build_network("digits_cnn", classes=10, channels=1, size=8), THREAT)
    ours._find_first_layer(torch.rand(2, 1, 8, 8))
    assert ours._share == pytest.approx(0.04, abs=0.005)
    assert 20 * ours._share == pytest.approx(0.8, abs=0.1)  # with the five full passes 5.8


@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_training_in_mixed_precision_works(loss):
    ours = YOPO(network(), THREAT, loss=loss, recipe=Recipe(learning_rate=0.05, schedule="constant"))
    trainer(6, precision="bf16-mixed").fit(ours, loader())
    assert ours.history[-1]["loss"] < ours.history[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in ours.network.parameters())


def test_gradients_in_half_precision_are_those_of_single():
    found = []
    for half in (True, False):
        x, y = images()
        ours = YOPO(network(), THREAT, m=1, n=0).train()
        ours.draws = Start(noise_like(x))
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss = ours.trace_step((x, y)).loss
        found.append(gradients(ours, loss))
    assert (found[0] - found[1]).norm() < 0.01 * found[1].norm()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_layer_that_works_in_place_behind_the_first_changes_nothing(in_place):
    def body():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=in_place), nn.Flatten(), nn.Linear(4 * 64, 3)
        )

    x, y, _ = batch(middle=True)
    noise = noise_like(x)
    ours = method(body(), noise=noise, m=1, n=0)
    found = gradients(ours, trace_of(ours, (x, y)).loss)
    torch.testing.assert_close(found, flat(by_hand(body().double(), x + EPSILON * noise, y)))


def trace_of(made, item):
    return made.trace_step(item) if isinstance(made.draws, Start) else trace(made, item)
