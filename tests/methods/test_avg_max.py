"""What a faithful implementation of AVG and MAX must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attacks import BadInput, ThreatModel, counting, margin_with
from attacks.modes import in_mode
from attacks.union import PerNorm
from methods import PGDAT, AvgMax
from methods.base import Batch
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import assert_images, cases
from tests.methods.from_golden import avg_max as from_golden
from tests.methods.tools import batches_seen, build, gradients, images, loader, network, sharpened, trace, trainer

THREAT = ThreatModel("linf", 0.1)
RADII = PerNorm("epsilon", 0.6, 2.0)


def method(body=None, steps=4, threat=THREAT, **settings):
    made = AvgMax(network() if body is None else body, threat, **{"radii": RADII, **settings})
    made.inner = replace(made.inner, steps=steps)
    return made.double().train()


def batch(count=24):
    x, y = images(count)
    return Batch.of((x.double(), y))


def attack(made, of):
    made.draws.begin(epoch=0, step=0)
    return made.perturb(of, margin_with(of.y))


@pytest.mark.parametrize("case", cases("avg_max", "attack"), ids=lambda case: case.name)
def test_each_attack_repeats_the_authors_images(case):
    made = from_golden.build(case).double()
    made.radii = PerNorm(**{case.settings["norm"]: case.settings["epsilon"]})
    made.draws = from_golden.draws(case)
    of = Batch.of(case.batch)
    assert_images(made.perturb(of, margin_with(of.y)), case.expected["x_adv"])


@pytest.mark.parametrize("strategy", ["max", "avg", "alternate"])
def test_of_one_type_all_strategies_are_pgd_training_with_that_attack(strategy):
    of = batch()
    ours = method(strategy=strategy, radii=PerNorm("epsilon"))
    plain = PGDAT(network(), THREAT, inner=Inner(steps=4, step_size=0.0625, start="uniform", mode="eval")).double()
    step = trace(ours, of)
    plain.draws.begin(epoch=0, step=0)
    expected = plain.perturb(of, margin_with(of.y))
    torch.testing.assert_close(step.adversarial, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.loss, F.cross_entropy(plain.train()(expected), of.y))


def test_the_same_attack_twice_gives_max_the_first_and_avg_the_same_loss_in_eval_mode():
    of = batch()
    results = {}
    for strategy in ("avg", "max"):
        made = method(strategy=strategy).eval()
        one = attack(method(radii=PerNorm("epsilon")), of)
        made._attacked = lambda kind, batch, objective, one=one: one
        results[strategy] = trace(made, of).loss
        if strategy == "max":
            assert made._notes["share_linf"][0] == 1  # index 0 on ties
    torch.testing.assert_close(results["avg"], results["max"])


def test_avg_is_the_mean_of_the_single_losses_and_max_is_no_less_than_any_of_them():
    of = batch()
    body = sharpened(network(), 3).double().eval()
    every = attack(method(body=body, strategy="avg"), of).view(3, *of.x.shape)
    singles = [F.cross_entropy(body.eval()(one), of.y) for one in every]
    average = trace(method(body=body, strategy="avg").eval(), of).loss
    worst = trace(method(body=body).eval(), of).loss
    torch.testing.assert_close(average, torch.stack(singles).mean())
    assert worst >= max(singles)
    assert worst >= average


def test_every_type_stays_in_its_own_ball_and_in_the_range_in_the_order_of_the_norms():
    of, made = batch(), method(strategy="avg")
    assert made.types() == ("linf", "l2", "l1")
    every = attack(made, of).view(3, *of.x.shape)
    for (_, ball), found in zip(made.present_balls().items(), every, strict=True):
        assert (ball.distance(found, of.x) <= ball.epsilon * (1 + 1e-9)).all()
        assert (ball.distance(found, of.x) > 0.5 * ball.epsilon).all()
        assert (found.min() >= 0, found.max() <= 1) == (True, True)


def test_starts_have_the_whole_radius_in_their_norm():
    of = Batch.of((torch.full((24, 1, 8, 8), 0.5, dtype=torch.float64), images()[1]))
    every = attack(method(strategy="avg", steps=0), of).view(3, *of.x.shape)
    for (norm, ball), found in zip(method().present_balls().items(), every, strict=True):
        far = ball.distance(found, of.x)
        low = 0.9 if norm == "linf" else 1 - 1e-9
        assert (far >= low * ball.epsilon).all()
        assert (far <= ball.epsilon * (1 + 1e-9)).all()
    quiet = method(strategy="avg", steps=0)
    quiet.inner = replace(quiet.inner, start="none")
    assert torch.equal(attack(quiet, of), of.x.repeat(3, 1, 1, 1))


def test_no_gradient_flows_through_the_images_or_the_choice():
    of, made = batch(), method()
    step = trace(made, of)
    again = made.classification_loss(made(step.adversarial.detach()), of.y)
    torch.testing.assert_close(gradients(made, step.loss), gradients(made, again))
    assert not step.adversarial.requires_grad


@pytest.mark.parametrize(
    ("strategy", "spatial", "cost"),
    [("max", False, (16, 13)), ("avg", False, (15, 15)), ("alternate", False, (5, 5)), ("max", True, (27, 13))],
)
def test_passes_are_those_of_the_specification_and_one_batch_moves_the_statistics(strategy, spatial, cost):
    made = method(strategy=strategy, spatial=spatial)
    with counting(made.network) as passes:
        trace(made, batch()).loss.backward()
    assert (passes.forward / 24, passes.backward / 24) == cost
    assert set(batches_seen(made.network)) == {1}


def test_alternate_takes_the_types_in_turn(monkeypatch):
    of, made = batch(), method(strategy="alternate")
    for position, norm in enumerate(["linf", "l2", "l1", "linf"]):
        monkeypatch.setattr(made, "_position", lambda position=position: position)
        ball = made.present_balls()[norm]
        far = ball.distance(attack(made, of), of.x)
        assert (far <= ball.epsilon * (1 + 1e-9)).all()
        assert far.max() > 0.9 * ball.epsilon


def test_steps_are_two_and_a_half_radii_and_the_percentile_leaves_ten_entries_a_unit():
    for epsilon, radii, steps, lengths, inputs, percentile in (
        (0.15, RADII, 7, (0.0536, 0.214, 0.714), 64, 88.8),
        (8 / 255, PerNorm("epsilon", 0.5, 12), 5, (4 / 255, 0.25, 6), 3072, 98.05),
        (0.3, PerNorm("epsilon", 2.0, 10), 10, (0.075, 0.5, 2.5), 784, 96.8),
    ):
        made = method(threat=ThreatModel("linf", epsilon), radii=radii, steps=steps)
        found = [made.step_size(ball) for ball in made.present_balls().values()]
        assert found == pytest.approx(lengths, rel=2e-3)
        assert made._present_percentile(torch.empty(2, inputs), found[-1]) == pytest.approx(percentile, abs=0.05)


def test_a_percentile_from_a_range_is_drawn_once_per_attack():
    made = method(percentile=99, percentile_min=80)
    drawn = [made._present_percentile(torch.empty(2, 64), 1.0) for _ in range(50)]
    assert (min(drawn) >= 80, max(drawn) <= 99, len(set(drawn))) == (True, True, 50)
    assert method(percentile=95)._present_percentile(torch.empty(2, 64), 1.0) == 95


def test_of_several_repetitions_the_misclassified_one_is_kept_or_else_that_of_the_largest_loss():
    made = method(body=network())
    y = torch.tensor([0, 1])
    made.frozen_logits = lambda x: x[:, 0, 0]  # the images are logits
    sure, wrong = [9.0, 0.0, 0.0], [1.0, 1.1, 1.0]
    attempts = torch.tensor([[sure, [0.0, 3, 0]], [wrong, [0.0, 1, 0]], [[1.0, 0, 0], [0.0, 2, 0]]])[:, :, None, None]
    kept = made._worst_of(attempts, y)
    assert kept[0].flatten().tolist() == pytest.approx(wrong)
    assert kept[1].flatten().tolist() == [0, 1, 0]
    of, once, often = batch(), method(strategy="avg"), method(strategy="avg", restarts=3)
    with in_mode(once.network, "eval"):
        alone, best = (F.cross_entropy(once.network(attack(m, of)), of.y.repeat(3)) for m in (once, often))
    assert best > alone


def test_the_spatial_type_comes_last_and_is_the_worst_of_ten_moves():
    of, made = batch(), method(spatial=True, strategy="avg", max_shift=1)
    assert made.types()[-1] == "spatial"
    found = attack(made, of).view(4, *of.x.shape)[-1]
    assert not torch.equal(found, of.x)
    with in_mode(made.network, "eval"):
        one = F.cross_entropy(made.network(attack(method(spatial=True, strategy="avg", tries=1), of)[-24:]), of.y)
        assert F.cross_entropy(made.network(found), of.y) > one


@pytest.mark.filterwarnings("ignore")
def test_the_first_epoch_may_be_gentler_and_shares_are_remembered():
    made = AvgMax(network(), THREAT, radii=RADII, first_epoch_divisor=3, recipe=Recipe(epochs=2))
    made.inner = replace(made.inner, steps=2)
    largest = []
    made.on_train_batch_start = lambda *_: largest.append(made.present_balls()["linf"].epsilon)
    trainer(2).fit(made, loader(), loader())
    assert (largest[0], largest[-1]) == pytest.approx((0.1 / 3, 0.1))
    assert sum(made.history[-1][f"share_{norm}"] for norm in ("linf", "l2", "l1")) == pytest.approx(1)
    assert {"share_linf", "share_l2", "share_l1"} <= made.remarks().keys()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strategy": "mean"}, "strategy is one of max, avg, alternate"),
        ({"percentile": 100}, "percentile lies between 0 and 100"),
        ({"percentile_min": 80}, "percentile_min lies below percentile"),
        ({"restarts": 0}, "restarts is 1 or more"),
        ({"first_epoch_divisor": 0.5}, "first_epoch_divisor is 1 or more"),
        ({"inner": Inner(patience=2)}, "avg_max takes all steps"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        build("avg_max", network(), **settings)
