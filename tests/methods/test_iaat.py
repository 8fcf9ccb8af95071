"""Instance adaptive adversarial training: what its specification says a faithful implementation must show."""

import pytest
import torch

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import cross_entropy_with
from methods import catalogue
from methods.base import Batch
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import assert_images, cases, first_layer_gradient, gradient_norm, one
from tests.methods.from_golden.iaat import build as golden_iaat
from tests.methods.tools import EPSILON, build, images, loader, network, toy, trace, trainer

STEPS = 10


def batch_of(count=24):
    x, y = images(count)
    return Batch(x, y, torch.arange(count))


def all_right(body, x):
    """Labels that the network gives in train mode, without moving its statistics."""
    state = {name: value.clone() for name, value in body.state_dict().items()}
    with torch.no_grad():
        y = body(x).argmax(1)
    body.load_state_dict(state)
    return y


def adaptive(body=None, **settings):
    """Past its warm-up, with a gamma of 0.02 and the whole new radius at once, unless told otherwise."""
    return build(
        "iaat", body or network(), **({"gamma": 0.02, "beta": 1.0, "warmup": 0, "steps": 3} | settings)
    ).train()


@pytest.mark.parametrize("case", cases("iaat", "training_step")[:-1], ids=lambda case: case.name)
def test_radii_and_statistics_are_the_authors(case):
    method = golden_iaat(case).double()
    method.draws = case.draws
    batch = Batch.of(case.batch)
    mean = next(m for m in case.network.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean
    radius = method.choose_radius(batch)
    torch.testing.assert_close(radius.tolist(), case.expected["eps_selected"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mean.tolist(), case.expected["first_bn_running_mean_after_select"], rtol=1e-7, atol=1e-9)
    again = one("iaat", case.name)
    method = golden_iaat(again).double()
    method.draws = again.draws
    method.trace_step(again.batch)
    torch.testing.assert_close(
        method.radii.of(batch.index).tolist(), case.expected["eps_memory_after"], rtol=1e-9, atol=1e-12
    )


def test_an_attack_in_eval_mode_with_given_radii_and_steps_repeats_the_authors():
    case = one("iaat", "attack_only_eval")
    s = case.settings
    method = catalogue.get("iaat")(
        case.network, ThreatModel("linf", 8 / 255), inner=Inner(steps=s["steps"], step_size=2 / 255, boxed=False)
    ).double()
    method.draws = case.draws
    batch = Batch.of(case.batch)
    radius = torch.tensor(s["epsilon"], dtype=torch.float64)
    case.network.eval()
    attacked = method.perturb(batch, cross_entropy_with(batch.y), radius)
    assert_images(attacked, case.expected["x_adv"])
    case.network.train()
    loss = method.classification_loss(method(attacked), batch.y)
    loss.backward()
    assert loss.item() == pytest.approx(case.expected["loss"], rel=1e-7)
    assert gradient_norm(case.network) == pytest.approx(case.expected["grad_norm"], rel=1e-7)
    torch.testing.assert_close(
        first_layer_gradient(case.network),
        torch.tensor(case.expected["grad_first_layer"], dtype=torch.float64),
        rtol=1e-7,
        atol=1e-9,
    )


def test_a_warm_up_without_end_on_images_that_are_right_is_pgd_at():
    traces = []
    for key, settings in (("iaat", {"warmup": 30}), ("pgd_at", {})):
        model, x, _, draws = toy()
        y = all_right(model, x)
        inner = Inner(steps=STEPS, step_size=2 / 255, start="uniform", boxed=False, mode="train")
        method = build(key, model, ThreatModel("linf", 8 / 255), inner=inner, **settings).double()
        method.draws = draws
        traces.append(method.trace_step((x, y, torch.arange(len(y)))))
    assert torch.equal(traces[0].adversarial, traces[1].adversarial)
    assert traces[0].loss.item() == pytest.approx(traces[1].loss.item(), abs=1e-12)


def test_in_the_warm_up_images_that_are_wrong_have_radius_zero_and_the_others_all_of_epsilon():
    batch = batch_of()
    method = build("iaat", network(), warmup=1, steps=1).train()
    adversarial = trace(method, batch).adversarial
    radius = method.radii.of(batch.index)
    assert set(radius.tolist()) == {0.0, EPSILON}
    assert torch.equal(adversarial[radius == 0], batch.x[radius == 0])


def outcomes(monkeypatch, method, right, here, there):
    """Script whether images hold: clean, at their radius, at the next one."""
    answers = iter([torch.tensor(mask) for mask in (right, here, there)])
    monkeypatch.setattr(method, "_holds", lambda *_: next(answers))


def test_the_candidate_follows_the_authors_truth_table(monkeypatch):
    method = adaptive()
    x, y = images(8)
    batch = Batch(x, y, torch.arange(8))
    known = torch.tensor([0.05] * 7 + [0.01], dtype=torch.float64)
    method.radii.store(batch.index, known)
    right = [True] * 4 + [False] * 3 + [True]
    here = [True, True, False, False, True, True, False, False]
    there = [True, False, True, False, True, False, False, False]
    outcomes(monkeypatch, method, right, here, there)
    chosen = method.choose_radius(batch)
    # Whoever holds further on moves on even if it falls here; nobody goes below 0; a wrong clean image has none.
    torch.testing.assert_close(chosen.tolist(), [0.07, 0.05, 0.07, 0.03, 0.0, 0.0, 0.0, 0.0])


def test_an_image_that_is_wrong_loses_a_share_beta_of_its_radius_and_no_more(monkeypatch):
    method = adaptive(beta=0.1)
    x, y = images(2)
    batch = Batch(x, y, torch.arange(2))
    method.radii.store(batch.index, torch.tensor([0.05, 0.05]))
    outcomes(monkeypatch, method, [False, True], [True, True], [True, True])
    torch.testing.assert_close(method.choose_radius(batch).tolist(), [0.045, 0.052], rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"gamma": 0.0}])
def test_beta_zero_freezes_the_radii_and_so_does_gamma_zero_where_all_is_right(settings, monkeypatch):
    method = adaptive(**settings)
    batch = batch_of()
    known = torch.linspace(0, 0.1, 24, dtype=torch.float64)
    method.radii.store(batch.index, known)
    if "gamma" in settings:
        monkeypatch.setattr(method, "_holds", lambda batch, _: torch.ones(len(batch.y), dtype=torch.bool))
    torch.testing.assert_close(method.choose_radius(batch), known)


def test_steps_have_the_floor_up_to_ten_255ths_and_a_fifth_of_the_radius_beyond():
    body, batch = network(), batch_of(4)
    method = build("iaat", body, ThreatModel("linf", 8 / 255), inner=Inner(steps=10, step_size=2 / 255, boxed=False))
    seen = {}
    original = Inner.climb

    def spy(self, *args, step_size, **settings):
        seen["steps"] = step_size
        return original(self, *args, step_size=step_size, **settings)

    Inner.climb, radius = spy, torch.tensor([0.0, 8 / 255, 10 / 255, 20 / 255])
    try:
        method.perturb(batch, cross_entropy_with(batch.y), radius)
    finally:
        Inner.climb = original
    torch.testing.assert_close(seen["steps"].tolist(), [2 / 255, 2 / 255, 2 / 255, 4 / 255], rtol=1e-6, atol=0)


def test_images_outside_the_batch_keep_their_radius_and_twins_have_radii_of_their_own():
    x, y = images(6)
    x[1], y[1] = x[0], y[0]
    method = adaptive(beta=0.5)
    start = torch.tensor([0.0, 0.08, 0.05, 0.05, 0.05, 0.05], dtype=torch.float64)
    method.radii.store(torch.arange(6), start)
    trace(method, (x[:4], y[:4], torch.arange(4)))
    after = method.radii.of(torch.arange(6))
    assert after[4:].tolist() == [0.05, 0.05]
    assert after[0] != after[1]


@pytest.mark.parametrize(("warmup", "forward", "backward"), [(0, 34, 31), (1, 12, 11)])
def test_passes_are_those_of_the_paper_with_ten_steps(warmup, forward, backward):
    body, batch = network(), batch_of()
    method = build("iaat", body, warmup=warmup).train()
    with counting(body) as passes:
        trace(method, batch).loss.backward()
    assert (passes.forward / 24, passes.backward / 24) == (forward, backward)


def test_every_image_stays_within_its_own_radius_and_the_range():
    batch = batch_of()
    method = adaptive(beta=0.5)
    method.radii.store(batch.index, torch.linspace(0, 0.3, 24))
    adversarial = trace(method, batch).adversarial
    moved = (adversarial - batch.x).abs().flatten(1).amax(1)
    assert (moved <= method.radii.of(batch.index) + 1e-6).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_radii_may_be_capped(monkeypatch):
    method = adaptive(largest="epsilon", gamma=0.5)
    batch = batch_of()
    monkeypatch.setattr(method, "_holds", lambda batch, _: torch.ones(len(batch.y), dtype=torch.bool))
    assert method.choose_radius(batch).max() == EPSILON


@pytest.mark.parametrize(("epochs", "warmup", "beta"), [(110, 10, 0.1), (30, 3, 10 / 27), (10, 1, 0.5), (1, 1, 0.5)])
def test_warm_up_and_beta_follow_the_length_of_the_training(epochs, warmup, beta):
    method = build("iaat", network(), recipe=Recipe(epochs=epochs))
    assert (method.warmup, method.beta) == (warmup, pytest.approx(beta))


def test_a_resumed_training_remembers_every_radius(tmp_path):
    def method():
        return build("iaat", network(), warmup=1, steps=2, recipe=Recipe(epochs=3, learning_rate=0.05))

    whole = method()
    trainer(3).fit(whole, loader(indexed=True))
    broken = method()
    first = trainer(2)
    first.fit(broken, loader(indexed=True))
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed = method()
    trainer(3).fit(resumed, loader(indexed=True), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert resumed.radii.table[:24].tolist() != [0.0] * 24
    assert torch.equal(broken.radii.known, resumed.radii.known)


def test_the_row_tells_with_which_radii_the_network_was_trained():
    method = adaptive()
    assert method.remarks() == {}
    method.radii.store(torch.arange(10, 21), torch.linspace(0, 0.1, 11))  # images 0 to 9 belong to other splits
    told = method.remarks()
    expected = {"radius_mean": 0.05, "radius_p10": 0.01, "radius_p90": 0.09, "radius_max": 0.1}
    assert told == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("changed", [{"start": "none"}, {"scale": 0.01}, {"boxed": True}])
def test_a_start_of_another_kind_is_refused_and_not_ignored(changed):
    inner = Inner(**({"start": "uniform", "boxed": False, "mode": "train"} | changed))
    with pytest.raises(BadInput, match="iaat starts each image uniformly in its own ball"):
        build("iaat", network(), inner=inner)


def test_a_beta_outside_its_range_is_refused():
    with pytest.raises(BadInput, match="beta lies between 0 and 1, but found"):
        build("iaat", network(), beta=1.5)
