"""Attacks in stages: who is attacked by what, what an interruption costs, and what is left behind."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import BadInput, ThreatModel
from attacks.apgd import APGD
from attacks.square import Square
from attacks.staged import Stage, attack_in_stages
from attacks.starts import keyed_start
from tests.models import Averaged, Constant, Returning, curved, images, linear

LINF = ThreatModel("linf", 0.05)


def climbing(threat, name="apgd", phases=2, iterations=5):
    attack = APGD(
        threat,
        lambda logits, y, target: F.cross_entropy(logits, y, reduction="none"),
        keyed_start(threat, 0, name),
        iterations=iterations,
    )
    return Stage(name, attack, phases, 3 * iterations)


def asking(threat, queries=40):
    return Stage("square", Square(threat, seed=0, queries=queries), 1, queries)


def scene(n=24, network=None, dtype=torch.float32):
    network = curved().to(dtype) if network is None else network
    x = images(n, dtype=dtype)
    with torch.no_grad():
        y = network(x).argmax(1)
    y[::8] = (y[::8] + 1) % 4  # some are wrong as they stand
    return network, x, y


def brief(threat=LINF):
    return lambda classes: [climbing(threat, "first"), climbing(threat, "second"), asking(threat)]


def same(one, other):
    assert one.by == other.by
    assert one.survivors == other.survivors
    assert torch.equal(one.adversarial, other.adversarial)
    assert torch.equal(one.forward, other.forward)
    assert torch.equal(one.backward, other.backward)


def test_each_stage_attacks_the_survivors_of_those_before_it():
    network, x, y = scene()
    result = attack_in_stages(network, x, y, LINF, brief())
    counts = list(result.survivors.values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(x) - result.by.count("clean") > counts[-1] == result.by.count("") > 0
    wrong = network(result.adversarial).argmax(1) != y
    assert wrong.tolist() == [bool(by) for by in result.by]
    untouched = torch.tensor([by in ("", "clean") for by in result.by])
    assert torch.equal(result.adversarial[untouched], x[untouched])


def test_passes_are_those_that_were_made_for_the_image():
    network, x, y = scene(8, Constant([1.0, 0.0, 0.0, 0.0]).eval())
    result = attack_in_stages(network, x, torch.zeros_like(y), LINF, lambda classes: [climbing(LINF, phases=2)])
    assert set(result.forward.tolist()) == {1 + 2 * 6}  # asked once when clean; a job evaluates its start as well
    assert set(result.backward.tolist()) == {2 * 6}
    assert result.by == [""] * 8


def test_an_ensemble_pays_for_each_of_its_networks():
    network = Averaged([curved().eval(), curved(seed=1).eval()]).eval()
    network, x, y = scene(6, network)
    weak = ThreatModel("linf", 1e-4)
    result = attack_in_stages(network, x, y, weak, lambda classes: [climbing(weak, phases=1)])
    held = torch.tensor([by == "" for by in result.by])
    assert set(result.forward[held].tolist()) == {2 * 7.0}


@settings(max_examples=10, deadline=None)
@given(
    slots=st.integers(1, 30),
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(0.01, 0.5),
    backwards=st.booleans(),
)
def test_what_is_found_depends_neither_on_slots_nor_on_company_and_stays_inside(slots, norm, epsilon, backwards):
    threat = ThreatModel(norm, epsilon)
    network, x, y = scene(12, dtype=torch.float64)
    whole = attack_in_stages(network, x, y, threat, brief(threat), slots=12)
    assert threat.distance(whole.adversarial, x).max() <= epsilon * (1 + 1e-6)
    assert whole.adversarial.min() >= 0
    assert whole.adversarial.max() <= 1
    rows = torch.arange(11, -1, -1) if backwards else torch.arange(3, 12)
    other = attack_in_stages(network, x[rows], y[rows], threat, brief(threat), slots=slots, index=rows)
    assert other.by == [whole.by[row] for row in rows.tolist()]
    torch.testing.assert_close(other.adversarial, whole.adversarial[rows], rtol=0, atol=1e-12)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 7])
def test_an_interrupted_attack_goes_on_at_its_queue_and_ends_the_same(after, monkeypatch):
    monkeypatch.setattr("attacks.tally.KEEP_EVERY", 0.0)  # hand over every outcome
    network, x, y = scene()
    kept: dict = {}
    left = after

    def keep(attack, outcomes):
        nonlocal left
        kept.setdefault(attack, []).extend(outcomes)
        left -= 1
        if left == 0:
            raise Killed

    undisturbed = attack_in_stages(network, x, y, LINF, brief(), slots=5)
    with pytest.raises(Killed):
        attack_in_stages(network, x, y, LINF, brief(), slots=5, keep=keep)
    before = sum(map(len, kept.values()))
    assert before >= after
    left, again = 10**6, attack_in_stages(network, x, y, LINF, brief(), slots=5, finished=dict(kept), keep=keep)
    same(again, undisturbed)
    jobs = [(attack, outcome.job) for attack, outcomes in kept.items() for outcome in outcomes]
    assert len(set(jobs)) == len(jobs)  # none was repeated


def test_the_batch_is_halved_where_memory_is_too_small_and_the_attack_goes_on():
    network, x, y = scene()
    expected = attack_in_stages(network, x, y, LINF, brief(), slots=5)

    class Small(nn.Module):
        def forward(self, points):
            if points.requires_grad and len(points) > 5:
                raise torch.OutOfMemoryError("this is a test")
            return network(points)

    result = attack_in_stages(Small().eval(), x, y, LINF, brief(), slots=20)
    assert result.by == expected.by
    assert any("out of memory with 20 slots, goes on with 10" in line for line in result.log)


def test_memory_too_small_for_a_single_image_ends_the_attack():
    def answer(points):
        if points.requires_grad:
            raise torch.OutOfMemoryError("this is a test")
        return points.flatten(1)[:, :4]

    network, x, y = scene(4, Returning(answer).eval())
    with pytest.raises(torch.OutOfMemoryError):
        attack_in_stages(network, x, y, LINF, brief())


def test_nothing_is_left_behind():
    network, x, y = scene()
    network[0].weight.grad = torch.ones_like(network[0].weight)
    network[0].bias.requires_grad_(False)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    attack_in_stages(network, x, y, LINF, brief())
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert network[0].weight.requires_grad
    assert not network[0].bias.requires_grad
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if name != "0.weight")


def test_it_works_where_lightning_evaluates():
    network, x, y = scene()
    expected = attack_in_stages(network, x, y, LINF, brief())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        same(attack_in_stages(network, x.clone(), y.clone(), LINF, brief()), expected)


def test_what_the_short_search_claims_is_confirmed_in_full_precision():
    network, x, y = scene(40)
    result = attack_in_stages(
        network, x, y, ThreatModel("linf", 0.1), brief(ThreatModel("linf", 0.1)), precision="bf16"
    )
    wrong = network(result.adversarial).argmax(1) != y
    assert wrong.tolist() == [bool(by) for by in result.by]
    assert any(by == "first" for by in result.by)


def test_progress_says_how_many_are_decided_and_ends_with_all(monkeypatch):
    monkeypatch.setattr("attacks.tally.TELL_EVERY", 0.0)
    network, x, y = scene()
    told = []
    result = attack_in_stages(network, x, y, LINF, brief(), slots=5, progress=told.append)
    shares = [one.share for one in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert (told[-1].decided, told[-1].images, told[-1].robust) == (24, 24, result.by.count(""))
    assert told[0].decided < 24
    assert all(one.passes_per_second > 0 for one in told[:3])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda network, x, y: (network.train(), x, y), "call network.eval()"),
        (lambda network, x, y: (network, 2 * x, y), "images lie in"),
        (lambda network, x, y: (network, x, y + 9), "labels lie in 0..9"),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence):
    with pytest.raises(BadInput, match=sentence):
        attack_in_stages(*change(*scene()), LINF, brief())


def test_square_that_helps_after_gradients_is_remarked_on():
    def masked(points):  # no gradient says anything, but a few pixels decide
        score = (points.flatten(1)[:, :32].mean(1, keepdim=True).detach() - 0.5) * 10
        return torch.cat([score + 0 * points.flatten(1).sum(1, keepdim=True), -score, score - 9, score - 9], 1)

    network, x = Returning(masked).eval(), images(16)
    y = network(x).argmax(1)
    threat = ThreatModel("linf", 0.3)
    result = attack_in_stages(network, x, y, threat, brief(threat))
    assert any("gradients may mislead" in line for line in result.log)


def test_a_linear_network_falls_exactly_beyond_its_radius():
    network, x = linear(), 0.3 + 0.4 * images(32)
    y = network(x).argmax(1)
    radius = network.linf_radius(x, y)
    epsilon = radius.median().item() * 1.0001
    threat = ThreatModel("linf", epsilon)
    stage = climbing(threat, phases=1, iterations=50)
    result = attack_in_stages(network, x, y, threat, lambda classes: [stage])
    for by, at in zip(result.by, radius.tolist(), strict=True):
        assert by == "" if at > epsilon else True  # nobody falls inside its radius
