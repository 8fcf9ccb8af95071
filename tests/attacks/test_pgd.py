import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import ThreatModel, counting, cross_entropy_with, dlr_with, fgsm, kl_from, margin, margin_with
from attacks.modes import in_mode
from attacks.pgd import pgd
from tests.golden import assert_images, one
from tests.models import curved, images, linear

WIDE = {"low": -99.0, "high": 99.0}  # a range that nothing here reaches


def binary(dtype=torch.float64):
    """Two classes: the margin of class 0 climbs along one fixed direction, ``w_1 - w_0``."""
    network = linear(classes=2, dtype=dtype)
    return network, (network.weight[1] - network.weight[0]).detach().reshape(1, 1, 8, 8)


def zeros(n):
    return torch.zeros(n, dtype=torch.long)


def misclassified(y):
    return lambda logits: logits.argmax(1) != y


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.01, 0.5), st.floats(2.0, 5.0), st.integers(1, 3))
def test_linf_reaches_the_best_corner_of_a_linear_network_from_wherever_it_starts(seed, epsilon, reach, steps):
    network, slope = binary()
    x = images(4, seed=seed, dtype=torch.float64)
    start = x + epsilon * (2 * images(4, seed=seed + 1, dtype=torch.float64) - 1)
    found = pgd(
        network,
        x,
        cross_entropy_with(zeros(4)),
        ThreatModel("linf", epsilon, **WIDE),
        start=start,
        steps=steps,
        step_size=reach * epsilon,
    )
    torch.testing.assert_close(found, x + epsilon * slope.sign(), rtol=0, atol=1e-12)


def test_l2_reaches_the_best_point_of_a_linear_network():
    network, slope = binary()
    x = images(4, dtype=torch.float64)
    threat = ThreatModel("l2", 0.5, **WIDE)
    start = threat.project(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), x)
    found = pgd(network, x, margin_with(zeros(4)), threat, start=start, steps=200, step_size=0.5)
    # Up to the 1e-7 by which an L2 projection stays inside its ball.
    torch.testing.assert_close(found, x + 0.5 * slope / slope.norm(), rtol=0, atol=1e-6)


def test_l1_spends_its_radius_on_the_steepest_pixel_of_a_linear_network():
    network, slope = binary()
    x = images(4, dtype=torch.float64)
    found = pgd(
        network, x, margin_with(zeros(4)), ThreatModel("l1", 0.7, **WIDE), start=x, steps=3, step_size=0.7
    )  # fmt: skip
    steepest = slope.abs() == slope.abs().max()
    torch.testing.assert_close(found, x + 0.7 * slope.sign() * steepest, rtol=0, atol=1e-12)


def test_the_pixel_range_is_kept():
    network, slope = binary()
    x = images(4, dtype=torch.float64).round()  # black and white
    found = pgd(network, x, margin_with(zeros(4)), ThreatModel("linf", 0.3), start=x, steps=2, step_size=0.6)
    torch.testing.assert_close(found, (x + 0.3 * slope.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def test_each_image_has_its_own_radius_and_its_own_step():
    network, slope = binary()
    x = images(4, dtype=torch.float64)
    radius, step = torch.tensor([0.0, 0.1, 0.2, 0.4]), torch.tensor([0.3, 0.02, 0.2, 0.05])
    found = pgd(
        network,
        x,
        margin_with(zeros(4)),
        ThreatModel("linf", 9.0, **WIDE),
        start=x,
        steps=3,
        step_size=step,
        radius=radius,
    )
    went = torch.minimum(3 * step, radius).double().reshape(4, 1, 1, 1)
    torch.testing.assert_close(found, x + went * slope.sign(), rtol=0, atol=1e-7)


def test_no_steps_return_the_start():
    x = images(4)
    start = x.flip(0)
    for keep in ("last", "best"):
        found = pgd(
            curved(), x, margin_with(zeros(4)), ThreatModel(), start=start, steps=0, step_size=0.1, keep=keep
        )  # fmt: skip
        assert torch.equal(found, start)


def test_fgsm_is_one_step_of_length_epsilon_from_the_image_itself():
    network, x, y, threat = curved(), images(), torch.arange(16) % 10, ThreatModel("linf", 0.1)
    x_leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(x_leaf), y), x_leaf)
    torch.testing.assert_close(fgsm(network, x, y, threat), (x + 0.1 * gradient.sign()).clamp(0, 1))
    single = pgd(network, x, cross_entropy_with(y), threat, start=x, steps=1, step_size=0.1)
    assert torch.equal(fgsm(network, x, y, threat), single)


@pytest.mark.parametrize("make", [cross_entropy_with, margin_with, dlr_with, lambda y: kl_from(curved()(images()))])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_best_iterate_is_no_worse_than_the_start_and_the_last(make, norm):
    network, x, y = curved(), images(), torch.arange(16) % 10
    epsilon = {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]
    threat, objective = ThreatModel(norm, epsilon), make(y)
    start = threat.project(x + epsilon * (images(seed=5) - 0.5), x)
    # Steps far too long, so that the last iterate is often not the best.
    common = {"start": start, "steps": 7, "step_size": 2 * epsilon}
    best = pgd(network, x, objective, threat, **common, keep="best")
    last = pgd(network, x, objective, threat, **common, keep="last")
    with torch.no_grad():
        of_best, of_last, of_start = (objective(network(point)) for point in (best, last, start))
    assert (of_best >= of_last - 1e-6).all()
    assert (of_best >= of_start - 1e-6).all()
    assert (threat.distance(best, x) <= epsilon + 1e-5).all()


def test_the_best_iterate_can_be_the_last_one():
    network, slope = binary()
    x = images(4, dtype=torch.float64)
    found = pgd(
        network,
        x,
        margin_with(zeros(4)),
        ThreatModel("linf", 1.0, **WIDE),
        start=x,
        steps=3,
        step_size=0.1,
        keep="best",
    )
    torch.testing.assert_close(found, x + 0.3 * slope.sign(), rtol=0, atol=1e-12)


def steps_until_wrong(network, x, slope, step):
    """How many steps along the slope's sign each image of class 0 needs, by counting."""
    with torch.no_grad():
        return [next(k for k in range(99) if margin(network(row + k * step * slope.sign()), zeros(1)) > 0) for row in x]


def of_class_0(n=6):
    network, slope = binary()
    x = images(40, dtype=torch.float64)
    with torch.no_grad():
        network.bias -= network(x).mean(0)  # so that both classes occur
        return network, slope, x[network(x).argmax(1) == 0][:n]


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_an_image_stops_where_it_was_wrong_before_as_many_steps_as_its_patience(patience):
    network, slope, x = of_class_0()
    y, step, steps = zeros(len(x)), 0.004, 30
    found = pgd(
        network,
        x,
        margin_with(y),
        ThreatModel("linf", 1.0, **WIDE),
        start=x,
        steps=steps,
        step_size=step,
        until=misclassified(y),
        patience=patience,
    )
    needed = steps_until_wrong(network, x, slope, step)
    assert len(set(needed)) > 1
    went = torch.tensor([min(k + patience - 1, steps) for k in needed]).double().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found, x + went * step * slope.sign(), rtol=0, atol=1e-12)


def test_each_image_may_have_its_own_patience_and_none_at_all_means_it_never_moves():
    network, slope, x = of_class_0(4)
    y, step = zeros(4), 0.004
    patience = torch.tensor([0, 1, 2, 3])
    found = pgd(
        network,
        x,
        margin_with(y),
        ThreatModel("linf", 1.0, **WIDE),
        start=x,
        steps=40,
        step_size=step,
        until=misclassified(y),
        patience=patience,
    )
    needed = steps_until_wrong(network, x, slope, step)
    went = [0] + [k + p - 1 for k, p in zip(needed[1:], [1, 2, 3], strict=True)]
    torch.testing.assert_close(
        found, x + torch.tensor(went).double().reshape(-1, 1, 1, 1) * step * slope.sign(), rtol=0, atol=1e-12
    )
    assert patience.tolist() == [0, 1, 2, 3]


def test_counting_any_iterate_fools_whoever_some_iterate_fooled():
    network, x = curved(), images(64)
    y = network(x).argmax(1)
    threat = ThreatModel("linf", 0.03)
    common = {"start": x, "step_size": 0.06}
    ever = torch.zeros(64, dtype=torch.bool)
    with torch.no_grad():
        for steps in range(9):
            iterate = pgd(network, x, cross_entropy_with(y), threat, steps=steps, **common)
            ever |= network(iterate).argmax(1) != y
        any_iterate = pgd(network, x, cross_entropy_with(y), threat, steps=8, until=misclassified(y), **common)
        last = pgd(network, x, cross_entropy_with(y), threat, steps=8, **common)
        fooled, fooled_last = (network(a).argmax(1) != y for a in (any_iterate, last))
    assert torch.equal(fooled, ever)
    assert (fooled >= fooled_last).all()
    assert fooled.any()
    assert not fooled.all()


def test_no_pass_is_spent_once_every_image_has_stopped():
    network, x = curved(), images(8)
    y = (network(x).argmax(1) + 1) % 10  # wrong as they stand
    with counting(network) as passes:
        found = pgd(
            network,
            x,
            margin_with(y),
            ThreatModel(),
            start=x,
            steps=10,
            step_size=0.1,
            until=misclassified(y),
        )
    assert torch.equal(found, x)
    assert passes.forward == 8


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("patience", [1, 3])
def test_images_that_have_stopped_go_through_the_network_no_more_and_nothing_else_changes(keep, patience):
    network, x = curved().double(), images(24, dtype=torch.float64)
    y = network(x).argmax(1)
    y[:5] = (y[:5] + 1) % 10  # wrong as they stand
    sizes = {True: [], False: []}

    def attack(whole_batch):
        handle = network.register_forward_hook(lambda _, inputs, __: sizes[whole_batch].append(len(inputs[0])))
        found = pgd(
            network,
            x,
            lambda logits: margin(logits, y) + logits.mean(),  # one image's value depends on the others' logits
            ThreatModel("linf", 0.05),
            start=x,
            steps=8,
            step_size=0.005,
            until=misclassified(y),
            patience=patience,
            keep=keep,
            whole_batch=whole_batch,
        )
        handle.remove()
        return found

    torch.testing.assert_close(attack(False), attack(True), rtol=0, atol=1e-12)
    steps = sizes[False][:8]
    assert steps[:patience] == [24] * patience
    assert steps[patience] == 24 - 5
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 19
    assert set(sizes[True]) == {24}


@pytest.mark.parametrize("part", ["whole", "one layer"])
def test_where_batch_statistics_count_the_whole_batch_goes_through_the_network_in_every_step(part):
    network, x = curved(), images()
    (network if part == "whole" else network[1]).train()
    with counting(network) as passes:
        pgd(
            network,
            x,
            margin_with(torch.arange(16) % 10),
            ThreatModel("linf", 0.05),
            start=x,
            steps=3,
            step_size=0.01,
            until=lambda logits: torch.arange(16) > 0,
        )
    assert (passes.forward, passes.backward) == (48, 48)


def test_jitter_is_added_to_the_step_of_those_who_take_it_before_the_projection():
    network, slope, x = of_class_0(4)
    step, asked = 0.01, []
    noise = 0.02 * torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8).expand_as(x)

    def jitter(moving):
        asked.append(moving.tolist())
        return noise

    common = {"start": x, "step_size": step, "until": lambda _: torch.tensor([True, False, True, False])}
    threat = ThreatModel("linf", 0.025, **WIDE)
    found = pgd(network, x, margin_with(zeros(4)), threat, steps=2, patience=2, jitter=jitter, **common)
    move = step * slope.sign() + noise[:1]
    once, twice = move.clamp(-0.025, 0.025), (move.clamp(-0.025, 0.025) + move).clamp(-0.025, 0.025)
    torch.testing.assert_close(found, x + torch.cat([once, twice, once, twice]), rtol=0, atol=1e-12)
    assert asked == [[True, True, True, True], [False, True, False, True]]


@pytest.mark.parametrize("make", [cross_entropy_with, margin_with, dlr_with], ids=["ce", "margin", "dlr"])
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off_the_attack_is_the_same(context, keep, make):
    network, threat = curved(), ThreatModel("linf", 0.1)

    def attack():
        x, y = images() * 1, torch.arange(16) % 10  # made here: in inference mode they are inference tensors
        return pgd(network, x, make(y), threat, start=x, steps=3, step_size=0.05, keep=keep)

    expected = attack()
    with context():
        found = attack()
        assert torch.is_grad_enabled() is False
    assert torch.equal(found, expected)
    assert not found.is_inference()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_attack_leaves_no_trace(keep):
    network, x, y = curved(dropout=0.5), images(), torch.arange(16) % 10
    network[0].bias.requires_grad_(False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    random, x_before, start = torch.get_rng_state(), x.clone(), x + 0.01
    start_before = start.clone()
    found = pgd(network, x, cross_entropy_with(y), ThreatModel(), start=start, steps=3, step_size=0.01, keep=keep)
    assert not found.requires_grad
    assert found.grad_fn is None
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, x_before)
    assert torch.equal(start, start_before)
    assert not x.requires_grad
    assert not start.requires_grad


@pytest.mark.parametrize("keep", ["last", "best"])
def test_images_that_want_a_gradient_themselves_get_none_from_the_attack(keep):
    network, x, y = curved(), images().requires_grad_(), torch.arange(16) % 10
    found = pgd(network, x, cross_entropy_with(y), ThreatModel(), start=x, steps=2, step_size=0.01, keep=keep)
    assert not found.requires_grad
    assert x.grad is None
    assert x.requires_grad


def test_the_network_is_attacked_in_the_mode_it_is_in():
    network, x, y = curved(), images(), torch.arange(16) % 10
    seen = []
    network.register_forward_hook(lambda module, *_: seen.append(module.training))
    with in_mode(network, "train"):
        pgd(network, x, cross_entropy_with(y), ThreatModel(), start=x, steps=2, step_size=0.01)
    assert seen == [True, True]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_an_image_is_attacked_alike_in_any_batch_and_order(norm, keep):
    # In float64, for kernels round differently with the batch's shape.
    network, x, y = curved().double(), images(dtype=torch.float64), torch.arange(16) % 10
    start, radius = x + 0.01 * images(seed=9, dtype=torch.float64), torch.linspace(0.01, 0.2, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    def attack(rows):
        return pgd(
            network,
            x[rows],
            cross_entropy_with(y[rows]),
            ThreatModel(norm, 0.1),
            start=start[rows],
            steps=4,
            step_size=0.03,
            radius=radius[rows],
            keep=keep,
            until=misclassified(y[rows]),
            patience=2,
        )

    together = attack(torch.arange(16))
    torch.testing.assert_close(attack(order), together[order], rtol=0, atol=1e-9)
    for row in range(0, 16, 5):
        torch.testing.assert_close(attack(torch.tensor([row])), together[row : row + 1], rtol=0, atol=1e-9)


def test_pgd20_repeats_the_evaluation_script_of_trades():
    case = one("pgd_at", "evaluation_pgd20_trades_script")
    s, network = case.settings, case.network.eval()
    x, y, _ = case.batch
    noise = s["epsilon"] * case.draws.uniform(x)
    with counting(network) as passes:
        adversarial = pgd(
            network,
            x,
            cross_entropy_with(y),
            ThreatModel("linf", s["epsilon"]),
            start=x + noise,  # the script clips to the range after its first step only
            steps=s["steps"],
            step_size=s["step_size"],
        )
        with torch.no_grad():
            errors = [int((network(a).argmax(1) != y).sum()) for a in (x, adversarial)]
    assert_images(adversarial, case.expected["x_adv"])
    assert errors == [case.expected["errors_clean"], case.expected["errors_adversarial"]]
    assert passes.forward == case.expected["model_forwards"]["eval"] * len(x)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_an_image_whose_point_and_gradient_say_so_stops_and_goes_through_the_network_no_more(keep):
    network, x, y = curved().double(), images(24, dtype=torch.float64), torch.arange(24) % 10
    sizes, asked = {True: [], False: []}, []
    rank = torch.arange(24)

    def attack(whole_batch):
        calls = iter(range(99))
        handle = network.register_forward_hook(lambda _, inputs, __: sizes[whole_batch].append(len(inputs[0])))

        def stationary(point, gradient):
            assert point.shape == gradient.shape == x.shape
            asked.append(gradient)
            return rank == next(calls)  # image k once, before its step k, and it never moves again

        common = {"start": x, "steps": 5, "step_size": 0.01, "keep": keep, "whole_batch": whole_batch}
        found = pgd(network, x, cross_entropy_with(y), ThreatModel("linf", 0.1), stationary=stationary, **common)
        handle.remove()
        return found

    dropped, whole = attack(False), attack(True)
    torch.testing.assert_close(dropped, whole, rtol=0, atol=1e-12)
    assert torch.equal(dropped[0], x[0])
    common = {"start": x, "step_size": 0.01}
    if keep == "last":
        for steps in range(1, 5):
            shorter = pgd(network, x, cross_entropy_with(y), ThreatModel("linf", 0.1), steps=steps, **common)
            torch.testing.assert_close(dropped[steps], shorter[steps], rtol=0, atol=1e-12)
    assert sizes[False][:5] == [24, 23, 22, 21, 20]
    assert torch.equal(asked[4][0], asked[0][0])  # what stopped it is what the rule sees again
    assert set(sizes[True]) == {24}


def test_no_step_is_taken_once_every_image_is_stationary():
    network, x, y = curved(), images(8), torch.arange(8)
    with counting(network) as passes:
        found = pgd(
            network,
            x,
            cross_entropy_with(y),
            ThreatModel(),
            start=x,
            steps=10,
            step_size=0.1,
            stationary=lambda point, gradient: torch.ones(8, dtype=torch.bool),
        )
    assert torch.equal(found, x)
    assert (passes.forward, passes.backward) == (8, 8)
