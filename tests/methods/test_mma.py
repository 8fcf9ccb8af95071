"""Max-margin adversarial training: what its specification says a faithful implementation must show."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import margin, soft_margin, soft_margin_with
from methods.base import Batch
from methods.inner import Inner
from methods.recipe import Recipe
from tests.methods.tools import (
    EPSILON,
    batches_seen,
    build,
    gradients,
    images,
    loader,
    network,
    sharpened,
    trace,
    trainer,
)

K = 3


def batch_of(count=24):
    x, y = images(count)
    return Batch(x.double(), y, torch.arange(count))


def sure_network():
    """A network that is sure of what it says, whatever it says."""
    return sharpened(network(), 100)


def max_margin(body=None, threat=None, **settings):
    return build("mma", body or sure_network(), threat, **({"steps": K} | settings)).double().train()


def labelled(body, batch, right):
    """The batch with labels that the network, in train mode, is sure of where ``right``, and of another elsewhere."""
    state = {name: value.clone() for name, value in body.state_dict().items()}
    with torch.no_grad():
        logits = body.double().train()(batch.x)
    body.load_state_dict(state)
    batch = batch._replace(y=torch.where(torch.as_tensor(right), logits.argmax(1), logits.argmin(1)))
    assert torch.equal(soft_margin(logits, batch.y) < 0, torch.as_tensor(right).expand(len(batch.y)))
    return batch


HALF = torch.arange(24) % 2 == 0


def test_images_that_reach_a_tiny_d_max_have_no_loss_and_the_divisor_stays_the_batch():
    body = sure_network()
    batch = labelled(body, batch_of(), HALF)
    method = max_margin(body, d_max=1e-6, e_min=1e-6, c=0.0)
    step = trace(method, batch)
    assert (method.found[HALF] > 1e-6).all()
    torch.testing.assert_close(step.adversarial[~HALF], batch.x[~HALF])
    mixed = F.cross_entropy(method(step.adversarial), batch.y, reduction="none")
    assert step.loss.item() == pytest.approx(mixed[~HALF].sum().item() / 24, rel=1e-9)


def test_without_an_image_that_is_surely_right_it_is_natural_training():
    body = sure_network()
    batch = labelled(body, batch_of(), False)
    method, natural = max_margin(body), build("natural", sure_network()).double().train()
    with counting(body) as passes:
        step = trace(method, batch)
        step.loss.backward()
    plain = trace(natural, batch)
    assert torch.equal(step.adversarial, batch.x)
    assert step.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    found = torch.cat([parameter.grad.flatten() for parameter in body.parameters()])
    torch.testing.assert_close(found, gradients(natural, plain.loss), rtol=1e-9, atol=1e-12)
    assert (passes.forward, passes.backward) == (48, 48)


def test_c_one_is_natural_training():
    body = sure_network()
    batch = labelled(body, batch_of(), HALF)
    method, natural = max_margin(body, c=1.0), build("natural", sure_network()).double().train()
    step, plain = trace(method, batch), trace(natural, batch)
    assert step.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    torch.testing.assert_close(gradients(method, step.loss), gradients(natural, plain.loss), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("c", [0.0, 0.25])
def test_the_gradient_is_that_of_both_losses_each_with_constant_boundary_images(c):
    body = sure_network()
    batch = labelled(body, batch_of(), HALF)
    method = max_margin(body, c=c, d_max=0.2)
    step = trace(method, batch)
    combined = gradients(method, step.loss)
    counts = (method.found < 0.2).double()
    assert 0 < counts[HALF].sum() < 12
    clean = gradients(method, F.cross_entropy(method(batch.x), batch.y))
    pushed = F.cross_entropy(method(step.adversarial.clone()), batch.y, reduction="none")
    expected = (1 - c) * gradients(method, (counts * pushed).sum() / 24) + c * clean
    torch.testing.assert_close(combined, expected, rtol=1e-9, atol=1e-12)
    assert not step.adversarial.requires_grad
    assert not method.found.requires_grad


def linear(norm, seed):
    """Two classes, a plane between them, and grey images that no step leads out of the range."""
    generator = torch.Generator().manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        body[1].weight.copy_(torch.randn(2, 64, generator=generator, dtype=torch.float64))
        body[1].bias.copy_(torch.randn(2, generator=generator, dtype=torch.float64))
        x = 0.5 + 0.02 * torch.randn(16, 1, 8, 8, generator=generator, dtype=torch.float64)
        logits = body(x)
        w = body[1].weight[1] - body[1].weight[0]
        length = w.abs().sum() if norm == "linf" else w.norm()
        distance = (logits[:, 1] - logits[:, 0]).abs() / length
    return body, Batch(x, logits.argmax(1), torch.arange(16)), distance


@pytest.mark.parametrize("seed", range(5))
def test_of_a_plane_the_margin_is_the_distance_to_it(seed):
    body, batch, distance = linear("linf", seed)
    method = max_margin(body, ThreatModel("linf", EPSILON), steps=10)
    trace(method, batch)
    resolution = method.e_max / 2**10
    torch.testing.assert_close(method.found, distance.clamp(max=method.e_max), rtol=0, atol=resolution)
    held_out = method.measure_held_out(batch).squeeze(1)
    torch.testing.assert_close(held_out, distance.clamp(max=method.e_max), rtol=0, atol=resolution)


def test_in_l2_the_margin_is_hardly_more_than_the_distance():
    body, batch, distance = linear("l2", 0)
    method = max_margin(body, ThreatModel("l2", 0.5), steps=20)
    trace(method, batch)
    near = distance < method.d_max / 2
    assert near.any()
    ratio = method.found[near] / distance[near]
    assert ratio.min() > 0.99
    assert ratio.max() < 1.1


def test_after_the_search_the_soft_margin_changes_sign_within_the_last_interval():
    body = sure_network()
    body.double().eval()
    batch = batch_of()
    with torch.no_grad():
        batch = batch._replace(y=body(batch.x).argmax(1))
    method = max_margin(body).eval()
    radius = torch.full((24,), 0.2, dtype=torch.float64)
    direction = method._direction(batch, soft_margin_with(batch.y), radius, method.draws.uniform(batch.x))
    found = method._search(batch.x, batch.y, direction, radius)
    width = method.e_max / 2**10

    def at(distance):
        with torch.no_grad():
            return soft_margin(body((batch.x + distance[:, None, None, None] * direction).clamp(0, 1)), batch.y)

    inside = (found > width) & (found < method.e_max - width)
    assert inside.sum() >= 8
    assert (at(found - width)[inside] < 0).all()
    assert (at(found + width)[inside] >= 0).all()
    steepest = (at(found + width) - at(found - width))[inside].abs()
    assert (at(found)[inside].abs() <= steepest).all()


def test_wrong_images_have_margin_zero_and_start_from_e_min_next_time(monkeypatch):
    body = sure_network()
    batch = labelled(body, batch_of(), HALF)
    method, radii = max_margin(body), []
    method.margins.store(batch.index, torch.full((24,), 0.2, dtype=torch.float64))
    climb = Inner.climb
    monkeypatch.setattr(
        Inner,
        "climb",
        lambda self, *args, radius, **more: radii.append(radius) or climb(self, *args, radius=radius, **more),
    )
    trace(method, batch)
    assert radii[0].tolist() == pytest.approx([0.2] * 12)
    assert method.margins.of(batch.index)[~HALF].tolist() == [0.0] * 12
    found = method.margins.of(batch.index)[HALF]
    assert (found > 0).all()
    method.perturb(batch, soft_margin_with(batch.y))
    expected = torch.where(HALF, method.margins.of(batch.index), 0).clamp(min=method.e_min)
    torch.testing.assert_close(radii[1], expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("search_mode", ["train", "eval"])
def test_no_margin_exceeds_e_max_and_no_image_moves_further_than_its_margin(norm, search_mode):
    body = sure_network()
    batch = labelled(body, batch_of(), HALF)
    threat = ThreatModel(norm, EPSILON if norm == "linf" else 0.5)
    method = max_margin(body, threat, search_mode=search_mode)
    for step in range(3):
        adversarial = trace(method, batch, step).adversarial
        assert method.e_max == pytest.approx(1.05 * method.d_max)
        assert (method.found <= method.e_max).all()
        assert (threat.distance(adversarial, batch.x) <= method.found + 1e-9).all()


def test_boundary_images_may_lie_outside_the_range_but_the_search_looks_inside(monkeypatch):
    body, batch, _ = linear("linf", 0)
    batch = batch._replace(x=(batch.x + 0.48).clamp(0, 1))
    with torch.no_grad():
        batch = batch._replace(y=body(batch.x).argmax(1))
    method = max_margin(body, steps=10)
    method.margins.store(batch.index, torch.full((16,), 0.001, dtype=torch.float64))
    seen = []
    handle = body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    adversarial = trace(method, batch).adversarial
    handle.remove()
    assert adversarial.max() > 1
    assert all(points.max() <= 1 for points in seen[:-1])
    assert torch.equal(seen[-1], adversarial)


@pytest.mark.parametrize(
    ("settings", "count", "updates"),
    [({}, 24, 13), ({"search_mode": "eval"}, 24, 2), ({}, 8, 13), ({}, 7, 2), ({"search_floor": 3}, 7, 13)],
)
def test_the_search_moves_the_statistics_unless_it_is_in_eval_mode_or_has_few_images(settings, count, updates):
    body = sure_network()
    batch = labelled(body, batch_of(count), True)
    with counting(body) as passes:
        trace(max_margin(body, **settings), batch).loss.backward()
    assert set(batches_seen(body)) == {updates}
    assert (passes.forward, passes.backward) == (count * (2 + K + 11), count * (2 + K))


def test_passes_grow_with_the_share_of_images_that_are_surely_right():
    body = sure_network()
    batch = labelled(body, batch_of(), HALF)
    with counting(body) as passes:
        trace(max_margin(body), batch).loss.backward()
    assert (passes.forward, passes.backward) == (24 * 2 + 12 * (K + 11), 24 * 2 + 12 * K)
    with counting(body) as passes:
        trace(max_margin(body, c=0.0), batch).loss.backward()
    assert (passes.forward, passes.backward) == (24 * 2 + 12 * (K + 11), 24 + 12 * K)  # OMMA has no clean gradient


def test_statistics_that_devices_share_are_left_out_of_the_search():
    body = nn.SyncBatchNorm.convert_sync_batchnorm(network()).double()
    method = max_margin(body)
    batch = batch_of()
    ones = torch.full((24,), 0.1, dtype=torch.float64)
    before = body[1].num_batches_tracked.clone()
    method._search(batch.x, batch.y, torch.zeros_like(batch.x), ones)  # in train mode it would wait for other devices
    assert body[1].num_batches_tracked == before
    assert body[1].training


def test_each_image_takes_steps_in_proportion_to_its_own_radius(monkeypatch):
    seen = {}
    monkeypatch.setattr(Inner, "climb", lambda self, network, x, *_, **given: seen.update(given) or x)
    method = max_margin(steps=10)
    batch = batch_of(3)
    method.margins.store(batch.index, torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64))
    method.perturb(batch, soft_margin_with(batch.y))
    assert seen["radius"].tolist() == pytest.approx([method.e_min, 0.2, 0.4])
    assert seen["step_size"].tolist() == pytest.approx([0.25 * method.e_min, 0.05, 0.1])
    reach = (seen["start"] - batch.x).abs().flatten(1).amax(1)
    assert (reach <= seen["radius"] + 1e-12).all()
    assert (reach > 0.9 * seen["radius"]).all()


@pytest.mark.parametrize(
    ("norm", "epsilon", "d_max", "e_min"),
    [
        ("linf", 0.15, 0.45, 0.024),
        ("linf", 8 / 255, 32 / 255, 0.005),
        ("linf", 0.3, 0.45, 0.048),
        ("l2", 0.5, 2.0, 0.5),
    ],
)
def test_the_constants_follow_epsilon(norm, epsilon, d_max, e_min):
    method = build("mma", network(), ThreatModel(norm, epsilon))
    assert method.d_max == pytest.approx(d_max)
    assert method.e_max == pytest.approx(1.05 * d_max)
    assert method.e_min == pytest.approx(e_min, abs=2e-4)
    assert method.c == 1 / 3


def test_history_tells_shares_and_margins_and_the_row_those_of_the_end():
    recipe = Recipe(epochs=8, learning_rate=0.1, schedule="constant")
    method = build("mma", sharpened(network(), 20), recipe=recipe, steps=2)
    assert method.remarks() == {"d_max": 4 * EPSILON}
    trainer(2).fit(method, loader(batch_size=12, indexed=True), loader(seed=2, indexed=True))
    last = method.history[-1]
    assert {"surely_right", "margin", "dropped", "held_out_margin"} <= last.keys()
    assert 0 < last["surely_right"] < 1
    assert 0 < last["held_out_margin"] < method.e_max
    told = method.remarks()
    assert told["margin_mean"] == pytest.approx(method.margins.written().mean().item())
    assert (told["surely_right"], told["dropped"]) == (last["surely_right"], last["dropped"])
    assert (last["surely_right"] < 0.3) == ("mark" in told)


@pytest.mark.parametrize(("share", "marked"), [(0.29, True), (0.3, False), (0.99, False)])
def test_a_training_that_was_mostly_clean_is_marked(share, marked):
    method = build("mma", network())
    method.history = [{"epoch": 0, "surely_right": 0.0}, {"epoch": 1, "surely_right": share}]
    assert (method.remarks().get("mark") == "mostly clean training") == marked


def test_the_soft_margin_is_below_zero_exactly_where_the_true_class_has_more_than_half():
    logits = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(200) % 5
    right = logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    soft = soft_margin(logits, y)
    torch.testing.assert_close(soft, ((1 - right) / right).log())
    assert torch.equal(soft < 0, right > 0.5)
    assert (soft >= margin(logits, y)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c": 1.5}, r"c lies between 0 and 1, but found 1\.5"),
        ({"search_mode": "batch"}, "search_mode is train or eval, but found 'batch'"),
        ({"e_min": 0.5}, r"e_min lies above 0 and is at most e_max, 0\.42, but found 0\.5"),
        ({"halvings": 0}, "halvings is above 0, but found 0"),
        ({"inner": Inner(step_size="2/255")}, r"leave inner\.start, \.scale, \.boxed and \.step_size alone, but found"),
        ({"inner": Inner(start="none")}, "leave inner.start"),
        ({"inner": Inner(mode="train")}, "mma attacks in eval mode"),
        ({"threat": ThreatModel("l1", 1.0)}, r"in linf or l2, but found threat\.norm l1"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, words):
    with pytest.raises(BadInput, match=words):
        build("mma", network(), **changes)
