"""The inner maximisation as a value: starts, steps, iterates, early stop, precision."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attacks import BadInput, ThreatModel, cross_entropy_with
from methods.draws import Draws
from methods.inner import Inner
from tests.methods.tools import EPSILON, batches_seen, images, network

THREAT = ThreatModel("linf", EPSILON)


def attack(inner, body=None, threat=THREAT, count=24):
    x, y = images(count)
    body = (network() if body is None else body).train()
    return inner.maximise(body, x, y, cross_entropy_with(y), threat, Draws(0))


def begin(start, threat=THREAT, **settings):
    x = torch.full((500, 1, 8, 8), 0.5, dtype=torch.float64)
    return Inner(start=start, **settings).begin(x, threat, Draws(0)) - x


def test_a_uniform_start_fills_the_ball():
    noise = begin("uniform")
    assert noise.abs().max() <= EPSILON
    assert noise.abs().max() > 0.99 * EPSILON
    assert noise.std().item() == pytest.approx(EPSILON / 3**0.5, rel=0.02)


def test_a_gaussian_start_has_a_scale_of_its_own_and_does_not_follow_epsilon():
    for epsilon in (0.01, 0.3):
        assert begin("gaussian", THREAT.at(epsilon), scale=1e-3).std().item() == pytest.approx(1e-3, rel=0.02)


def test_a_start_on_the_sphere_has_the_length_epsilon_and_one_in_the_ball_any_length_up_to_it():
    threat = ThreatModel("l2", 0.5)
    sphere, ball = (begin(start, threat).flatten(1).norm(dim=1) for start in ("sphere", "ball"))
    torch.testing.assert_close(sphere, torch.full_like(sphere, 0.5))
    assert ball.max() <= 0.5
    assert ball.mean().item() == pytest.approx(0.25, rel=0.1)  # the length is uniform, not the point


def test_a_boxed_start_lies_in_the_pixel_range_and_an_unboxed_one_need_not():
    x, _ = images()
    boxed, free = (Inner(boxed=boxed).begin(x, THREAT, Draws(0)) for boxed in (True, False))
    assert boxed.min() >= 0
    assert boxed.max() <= 1
    assert free.min() < 0
    torch.testing.assert_close(boxed, free.clamp(0, 1), rtol=0, atol=0)


def test_without_a_start_the_image_itself_is_the_first_iterate():
    x, _ = images()
    assert torch.equal(Inner(start="none").begin(x, THREAT, Draws(0)), x)


def test_the_best_iterate_is_never_worse_than_start_or_last_image_by_image():
    body = network().eval()
    _, y = images()

    def loss(adversarial):
        return F.cross_entropy(body.eval()(adversarial), y, reduction="none")

    inner = Inner(steps=8, step_size="2 epsilon", keep="best")  # steps long enough to leap past the maximum
    best = loss(attack(inner, body))
    assert (best >= loss(attack(replace(inner, steps=0), body)) - 1e-6).all()
    assert (best >= loss(attack(replace(inner, keep="last"), body)) - 1e-6).all()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_images_lie_in_the_range_even_where_the_start_is_what_comes_back(keep):
    for steps in (0, 1):
        adversarial = attack(Inner(steps=steps, boxed=False, keep=keep))
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_patience_beyond_the_steps_changes_nothing():
    inner = Inner(steps=5)
    assert torch.equal(attack(inner), attack(replace(inner, patience=6)))


def test_with_patience_one_an_image_stays_where_it_was_first_misclassified():
    body, (_, y) = network().eval(), images()
    iterates = [attack(Inner(steps=steps), body) for steps in range(6)]
    frozen = attack(Inner(steps=5, patience=1), body)
    for row in range(len(y)):
        wrong = [bool(body.eval()(iterate[row : row + 1]).argmax(1) != y[row]) for iterate in iterates[:5]]
        stop = wrong.index(True) if any(wrong) else 5
        torch.testing.assert_close(frozen[row], iterates[stop][row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mode", "seen"), [("eval", 0), ("train", 4)])
def test_the_mode_decides_whether_running_statistics_move(mode, seen):
    body = network()
    attack(Inner(steps=4, mode=mode), body)
    assert batches_seen(body) == [seen, seen]


def test_a_relative_step_follows_epsilon_and_an_absolute_one_does_not():
    for epsilon in (0.02, 0.1):
        threat = THREAT.at(epsilon)
        relative = attack(Inner(steps=1, step_size="epsilon/4", start="none"), threat=threat)
        absolute = attack(Inner(steps=1, step_size=0.004, start="none"), threat=threat)
        x, _ = images()
        assert (relative - x).abs().max().item() == pytest.approx(epsilon / 4, rel=1e-4)
        assert (absolute - x).abs().max().item() == pytest.approx(0.004, rel=1e-3)


@pytest.mark.parametrize("full", [True, False])
def test_full_precision_keeps_mixed_precision_out_of_the_attack(full):
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            seen.append(self.body(x))
            return seen[-1]

    with torch.autocast("cpu", torch.bfloat16):
        attack(Inner(steps=1, full_precision=full), Spy())
    assert seen[0].dtype == (torch.float32 if full else torch.bfloat16)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": -1}, r"inner\.steps is 0 or more, but found -1"),
        ({"step_size": "2 eps"}, r"inner\.step_size"),
        ({"step_size": "epsilon over 4"}, r"inner\.step_size is written like 8/255, epsilon/4"),
        ({"scale": -0.001}, r"inner\.scale"),
        ({"start": "gausian"}, r"inner\.start is one of none, uniform, gaussian, sphere, ball, but found 'gausian'"),
        ({"mode": "training"}, r"inner\.mode is one of eval, train, batch, but found 'training'"),
        ({"keep": "worst"}, r"inner\.keep is one of last, best, but found 'worst'"),
    ],
)
def test_a_silly_setting_is_refused_by_name(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        Inner(**settings)
