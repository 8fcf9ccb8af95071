"""What a faithful implementation of multi steepest descent must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attacks import BadInput, ThreatModel, counting, cross_entropy_with
from attacks.modes import in_mode
from attacks.pgd import pgd
from attacks.union import PerNorm
from methods import MSD
from methods.base import Batch
from methods.recipe import Recipe
from tests.methods.tools import build, images, loader, network, sharpened, trace, trainer
from tests.models import curved
from tests.models import images as random_images

THREAT = ThreatModel("linf", 0.1)
RADII = PerNorm("epsilon", 0.6, 2.0)
DIGITS = ThreatModel("linf", 0.15)


def method(body=None, threat=THREAT, steps=5, mode="eval", **settings):
    made = MSD(network() if body is None else body, threat, **{"radii": RADII, **settings})
    made.inner = replace(made.inner, steps=steps, mode=mode)
    return made.double()


def batch(count=24):
    x, y = images(count)
    return Batch.of((x.double(), y))


def attack(made, of):
    made.draws.begin(epoch=0, step=0)
    return made.perturb(of, cross_entropy_with(of.y))


def losses(made, x, y):
    with torch.no_grad(), in_mode(made.network, "eval"):
        return F.cross_entropy(made.network(x), y, reduction="none")


@pytest.mark.parametrize("form", ["cifar", "mnist"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_image_lies_in_at_least_one_of_the_balls_and_in_the_range_but_not_in_all(form, mode):
    of = batch()
    found = attack(method(form=form, mode=mode, steps=8), of)
    inside = {n: b.distance(found, of.x) <= b.epsilon * (1 + 1e-9) for n, b in RADII.balls(THREAT).items()}
    assert torch.stack(list(inside.values())).any(0).all()
    assert not torch.stack(list(inside.values())).all(0).all()
    assert (found.min() >= 0, found.max() <= 1) == (True, True)


def test_with_linf_alone_it_is_pgd_from_the_image_itself_that_returns_the_best_iterate():
    of = batch()
    made = method(radii=PerNorm("epsilon"))
    with in_mode(made.network, "eval"):
        expected = pgd(
            made.network, of.x, cross_entropy_with(of.y), THREAT, start=of.x, steps=5, step_size=0.05, keep="best"
        )  # fmt: skip
    torch.testing.assert_close(attack(made, of), expected, rtol=0, atol=1e-12)
    last = method(radii=PerNorm("epsilon"))
    last.inner = replace(last.inner, keep="last")
    with in_mode(last.network, "eval"):
        expected = pgd(last.network, of.x, cross_entropy_with(of.y), THREAT, start=of.x, steps=5, step_size=0.05)
    torch.testing.assert_close(attack(last, of), expected, rtol=0, atol=1e-12)


def test_one_step_is_the_best_of_three_single_steps():
    of = batch()
    found = attack(method(steps=1, k_min=4, k_max=4), of)
    alone = torch.stack(
        [
            attack(method(steps=1, k_min=4, k_max=4, radii=PerNorm(**{norm: getattr(RADII, norm)})), of)
            for norm in ("l1", "l2", "linf")
        ]
    )
    every = torch.stack([losses(method(), candidate, of.y) for candidate in alone])
    for image, (row, values) in enumerate(zip(found, every.T, strict=True)):
        assert torch.equal(row, alone[values.argmax(), image])


def test_no_chosen_point_of_the_way_has_a_higher_loss_than_the_one_returned():
    of, chosen = batch(), []
    made = method(body=sharpened(network(), 30), steps=8, step_sizes=PerNorm("2 epsilon", "2 epsilon", "epsilon"))
    worst = made._worst

    def watched(*args):
        chosen.append(worst(*args))
        return chosen[-1]

    made._worst = watched
    values = losses(made, attack(made, of), of.y)
    along = torch.stack([value for _, value, _ in chosen])
    torch.testing.assert_close(values, along.amax(0), rtol=1e-9, atol=1e-9)
    assert (along.diff(dim=0) < 0).any()  # it goes on from a chosen candidate even where its loss is lower


def test_in_eval_mode_an_image_is_attacked_the_same_alone():
    of, made = batch(), method(k_min=3, k_max=3)
    whole = attack(made, of)
    for image in (0, 5, 17):
        rows = slice(image, image + 1)
        torch.testing.assert_close(attack(made, Batch(of.x[rows], of.y[rows], of.index[rows])), whole[rows])


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_costs_four_forwards_and_a_backward_and_training_one_of_each(steps):
    made, (x, y) = method(steps=steps, mode="train").train(), images()
    with counting(made.network) as passes:
        trace(made, (x.double(), y)).loss.backward()
    assert (passes.forward, passes.backward) == (24 * (4 * steps + 1), 24 * (steps + 1))


def test_of_candidates_with_equal_loss_the_later_one_is_chosen():
    of = batch()
    flat = network().double()
    torch.nn.init.zeros_(flat[-1].weight)
    for form, last in (("cifar", "linf"), ("mnist", "l2")):
        made = method(body=flat, form=form, steps=1)
        attack(made, of)
        assert made._notes[f"share_{last}"][0] == 1


@pytest.mark.parametrize(
    ("threat", "radii", "steps", "expected"),
    [
        (DIGITS, RADII, 7, (0.0536, 0.214, 0.714)),
        (ThreatModel("linf", 8 / 255), PerNorm("epsilon", 0.5, 12), 5, (4 / 255, 0.25, 6)),
        (ThreatModel("linf", 8 / 255), PerNorm("epsilon", 0.5, 12), 10, (2 / 255, 0.125, 3)),
        (ThreatModel("linf", 0.03), PerNorm("epsilon", 0.3, 12), 50, (0.003, 0.05, 1)),
    ],
)
def test_steps_are_the_published_ones_or_those_that_cross_the_ball(threat, radii, steps, expected):
    made = method(threat=threat, radii=radii, steps=steps)
    lengths = [made.step_size(ball) for ball in made.present_balls().values()]
    assert lengths == pytest.approx(expected, rel=2e-3)


def test_a_ramp_goes_for_all_three_radii_and_their_steps(monkeypatch):
    made = MSD(network(), DIGITS, radii=RADII, recipe=Recipe(epsilon_ramp=0.5))
    monkeypatch.setattr(made, "present_threat", lambda: DIGITS.at(0.05))
    balls = made.present_balls()
    assert [ball.epsilon for ball in balls.values()] == pytest.approx([0.05, 0.2, 2 / 3])
    assert made.step_size(balls["l1"]) == pytest.approx(2 / 3 / 12)


def test_the_number_of_pixels_is_drawn_at_every_step_and_is_the_same_on_all_ranks():
    made = method()
    drawn = []
    for moment in ({"rank": 0}, {"rank": 1}, {"rank": 0}):
        made.draws.begin(epoch=2, step=3, **moment)
        made.draws.normal(torch.empty(3))
        drawn.append([made._pixels(5 / 7) for _ in range(40)])
    assert drawn[0] == drawn[1] == drawn[2]
    assert {*drawn[0]} <= {*range(4, 15)}
    assert len({*drawn[0]}) > 5
    made.draws.begin(epoch=2, step=4)
    assert [made._pixels(5 / 7) for _ in range(40)] != drawn[0]


def test_the_random_start_of_the_variant_is_drawn_and_the_default_has_none():
    of = batch()
    made, other = method(steps=0), method(steps=0)
    other.inner = replace(other.inner, start="uniform", keep="last")
    assert torch.equal(attack(made, of), of.x)
    moved = attack(other, of) - of.x
    assert 0.09 < moved.abs().max() <= 0.1 + 1e-12


@pytest.mark.filterwarnings("ignore")
def test_shares_of_the_norms_are_logged_and_a_single_one_is_marked():
    made = MSD(network(), THREAT, radii=RADII, recipe=Recipe(epochs=2))
    made.inner = replace(made.inner, steps=2)
    trainer(2).fit(made, loader(), loader())
    shares = [made.history[-1][f"share_{norm}"] for norm in ("linf", "l2", "l1")]
    assert sum(shares) == pytest.approx(1)
    made.history = [{"share_linf": 0.97, "share_l2": 0.02, "share_l1": 0.01}]
    assert made.remarks()["mark"] == "acts as single-norm training"
    made.history = [{"share_linf": 0.9, "share_l2": 0.05, "share_l1": 0.05}]
    assert made.remarks() == made.history[0]
    made.history = [{"share_linf": 1.0}]  # asked for one norm alone
    assert "mark" not in made.remarks()


def test_the_best_epoch_is_chosen_by_the_union_of_the_norms():
    made, x = method(body=curved(), radii=PerNorm(0.02, 0.5, 6.0)), random_images(dtype=torch.float64)
    of = Batch.of((x, made.network.eval()(x).argmax(1)))
    with in_mode(made.network, "eval"):
        right = made.held_out_right(made.network, of)
        alone = {}
        for norm in ("linf", "l2", "l1"):
            one = method(body=made.network, radii=PerNorm(**{norm: getattr(made.radii, norm)}))
            alone[norm] = one.held_out_right(made.network, of).robust
    assert torch.equal(right.robust, torch.stack(list(alone.values())).all(0))
    assert right.robust.sum() < alone["linf"].sum()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"form": "svhn"}, "form is cifar or mnist"),
        ({"k_min": 3}, "k_min and k_max go together"),
        ({"k_min": 5, "k_max": 4}, "k_min is 1 or more and at most k_max"),
        ({"radii": PerNorm()}, "at least one norm"),
        ({"step_sizes": PerNorm(l2="far")}, "step_sizes.l2"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        build("msd", network(), **settings)
