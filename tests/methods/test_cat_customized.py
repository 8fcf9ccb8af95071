"""Customized adversarial training: what its specification says a faithful implementation must show."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel
from methods.base import Batch
from methods.inner import Inner
from methods.recipe import Recipe
from tests.golden import cases
from tests.methods.from_golden.cat_customized import build as golden
from tests.methods.tools import EPSILON, build, gradients, images, loader, network, statistics, trace, trainer

ETA = 0.02


def batch_of(count=24):
    x, y = images(count)
    return Batch(x, y, torch.arange(count))


def customized(body=None, radius=None, threat=None, **changes):
    """All 24 images with one radius, which grows by 0.02 at a visit, unless told otherwise."""
    method = build("cat_customized", body or network(), threat, **({"eta": ETA, "steps": 3} | changes)).train()
    if radius is not None:
        method.radii.store(torch.arange(24), torch.full((24,), radius, dtype=torch.float64))
    return method


def answering(method, monkeypatch, right, y):
    """Script which attacked images are right."""
    given_ = torch.where(torch.as_tensor(right), y, (y + 1) % 3)
    monkeypatch.setattr(method, "frozen_logits", lambda _: F.one_hot(given_, 3).float())


@pytest.mark.parametrize("loss", ["ce", "mix"])
def test_without_growth_it_is_natural_training(loss):
    batch = batch_of()
    method, natural = customized(eta=0.0, loss=loss), build("natural", network()).train()
    step, plain = trace(method, batch), trace(natural, batch)
    assert torch.equal(step.adversarial, batch.x)
    assert step.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    torch.testing.assert_close(gradients(method, step.loss), gradients(natural, plain.loss))
    assert method.radii.written().tolist() == [0.0] * 24


def test_with_hard_labels_and_frozen_full_radii_it_is_pgd_training_without_a_random_start():
    batch = batch_of()
    method = customized(radius=EPSILON, eta=0.0, c=0.0)
    pgd_at = build("pgd_at", network(), inner=Inner(steps=3, step_size="epsilon/4", start="none")).train()
    step, plain = trace(method, batch), trace(pgd_at, batch)
    assert torch.equal(step.adversarial, plain.adversarial)
    assert step.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)


def test_a_radius_grows_for_as_long_as_the_image_holds_and_no_further_than_the_largest(monkeypatch):
    method, batch = customized(radius=0.01, eta=0.03), batch_of()
    answering(method, monkeypatch, [True] * 12 + [False] * 12, batch.y)
    seen = []
    for step in range(5):
        trace(method, batch, step)
        seen.append(method.radii.of(batch.index).tolist())
    torch.testing.assert_close([radii[0] for radii in seen], [0.04, 0.07, EPSILON, EPSILON, EPSILON])
    assert all(radii[12:] == [0.01] * 12 for radii in seen)


@settings(deadline=None, max_examples=60)
@given(
    known=st.lists(st.floats(0, EPSILON), min_size=4, max_size=4),
    right=st.lists(st.booleans(), min_size=4, max_size=4),
    eta=st.floats(0, 2 * EPSILON),
    rule=st.sampled_from(["paper", "authors_code"]),
)
def test_no_radius_leaves_the_interval_up_to_the_largest(known, right, eta, rule):
    batch = batch_of(4)
    method = customized(eta=eta, radius_rule=rule, steps=0)
    method.radii.store(batch.index, torch.tensor(known, dtype=torch.float64))
    with pytest.MonkeyPatch.context() as monkeypatch:
        answering(method, monkeypatch, right, batch.y)
        trace(method, batch)
    after = method.radii.of(batch.index)
    assert after.min() >= 0
    assert after.max() <= EPSILON


@pytest.mark.parametrize("case", cases("cat_customized", "training_step"), ids=lambda case: case.name)
def test_the_papers_rule_is_the_mirror_of_the_authors_on_the_outcomes_that_they_recorded(case, monkeypatch):
    expected, before = case.expected, torch.tensor(case.record["inputs"]["eps_before"], dtype=torch.float64)
    x, y, index = case.batch
    right = torch.tensor(expected["still_correct_after_attack_eval_mode"])
    enlarged = torch.tensor(expected["eps_in_attack"], dtype=torch.float64)
    chosen = {}
    for rule in ("paper", "authors_code"):
        method = golden(case, rule)
        monkeypatch.setattr(method, "frozen_logits", lambda _: F.one_hot(torch.where(right, y, (y + 1) % 10), 10))
        chosen[rule] = method.choose_radius(Batch(x, y, index), x, before, enlarged)
    torch.testing.assert_close(chosen["authors_code"].tolist(), expected["eps_after"], rtol=1e-9, atol=1e-12)
    # Where the cap cut the enlargement short, the file takes the whole eta back; the image had the largest radius.
    whole = before + case.settings["eta"] <= case.settings["eps_cap"]
    derived = torch.tensor(expected["eps_after_by_paper_rule"], dtype=torch.float64)
    torch.testing.assert_close(chosen["paper"][whole], derived[whole], rtol=1e-9, atol=1e-12)
    assert torch.equal(chosen["paper"][~whole], torch.where(right, enlarged, before)[~whole])
    mirrored = torch.where(right, before, enlarged)
    torch.testing.assert_close(chosen["authors_code"][whole], mirrored[whole], rtol=1e-9, atol=1e-12)


def test_soft_labels_are_distributions_whose_mean_shares_the_noise_among_all_classes():
    method = customized(c=2.0)
    count, classes = 20_000, 3
    y = torch.arange(count) % classes
    radius = torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)[torch.arange(count) // classes % 3]
    labels = method.soft_labels(Batch(torch.zeros(count, 1, dtype=torch.float64), y, y), radius, classes)
    assert labels.min() >= 0
    torch.testing.assert_close(labels.sum(1), torch.ones(count, dtype=torch.float64))
    for size in (0.0, 0.1, 0.2):
        for label in range(classes):
            of = (radius == size) & (y == label)
            expected = (1 - 2 * size) * F.one_hot(torch.tensor(label), classes) + 2 * size / classes
            torch.testing.assert_close(labels[of].mean(0), expected.double(), rtol=0, atol=0.01)


def spied_labels(method, monkeypatch):
    """The radii by which labels are softened, draw by draw."""
    seen, original = [], method.soft_labels
    monkeypatch.setattr(
        method, "soft_labels", lambda batch, radius, k: seen.append(radius) or original(batch, radius, k)
    )
    return seen


@pytest.mark.parametrize(("form", "first"), [("paper", 0.05), ("authors_code", 0.05 + ETA)])
def test_labels_are_drawn_once_for_the_attack_and_afresh_for_the_loss(form, first, monkeypatch):
    method, batch = customized(radius=0.05, attack_loss=form), batch_of()
    seen = spied_labels(method, monkeypatch)
    trace(method, batch)
    assert len(seen) == 2
    assert seen[0].tolist() == pytest.approx([first] * 24)
    assert torch.equal(seen[1], method.radii.of(batch.index))
    drawn = [method.soft_labels(batch, torch.full((24,), 0.05), 3) for _ in range(2)]
    assert not torch.equal(*drawn)


def test_the_margin_stops_pulling_once_the_true_logit_leads_by_kappa():
    method = customized(loss="mix", c=0.0, kappa=2.0)
    logits = torch.tensor([[5.0, 3.0, 0.0], [5.0, 3.5, 0.0], [0.0, 9.0, 0.0]], requires_grad=True)
    y, radius = torch.zeros(3, dtype=torch.int64), torch.full((3,), 0.1, dtype=torch.float64)
    hard = F.one_hot(y, 3).float()
    cross_entropy = F.cross_entropy(logits, hard, reduction="none")
    extra = method.loss_per_image(logits, y, hard, radius) - cross_entropy
    assert extra.tolist() == pytest.approx([0.0, 0.05, 1.1], rel=1e-5)  # from where it is flat, as the authors write it
    (slope,) = torch.autograd.grad(extra.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 0.0], [-0.1, 0.1, 0.0], [-0.1, 0.1, 0.0]]))


def test_the_authors_attack_stops_pulling_where_another_class_leads_by_kappa():
    batch = Batch(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    radius = torch.full((2,), 0.1, dtype=torch.float64)
    slopes = {}
    for form in ("paper", "authors_code"):
        method = customized(loss="mix", c=0.0, kappa=2.0, attack_loss=form)
        logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], requires_grad=True)
        pull = method.objective(batch, radius, radius)(logits) - F.cross_entropy(logits, batch.y, reduction="none")
        slopes[form] = torch.autograd.grad(pull.sum(), logits)[0].abs().sum(1).tolist()
    assert slopes["paper"] == pytest.approx([0.0, 0.2], abs=1e-6)
    assert slopes["authors_code"] == pytest.approx([0.2, 0.0], abs=1e-6)


def test_the_sum_of_the_margins_weighs_them_by_the_size_of_the_batch():
    batch, losses = batch_of(), {}
    for name, changes in (("ce", {}), ("mean", {"loss": "mix"}), ("sum", {"loss": "mix", "margin_reduction": "sum"})):
        method = customized(radius=0.05, eta=0.0, steps=0, **changes).double()
        losses[name] = trace(method, (batch.x.double(), batch.y, batch.index)).loss.item()
    assert losses["sum"] - losses["ce"] == pytest.approx(24 * (losses["mean"] - losses["ce"]), rel=1e-9)
    assert losses["mean"] > losses["ce"]


@pytest.mark.parametrize("loss", ["ce", "mix"])
def test_given_the_labels_the_attack_is_deterministic_and_leaves_the_statistics_alone(loss, monkeypatch):
    body, batch = network(), batch_of()
    method = customized(body, radius=0.05, loss=loss)
    labels = method.soft_labels(batch, torch.full((24,), 0.05), 3)
    monkeypatch.setattr(method, "soft_labels", lambda *_: labels)
    before = statistics(body)
    radius = torch.full((24,), 0.07, dtype=torch.float64)
    attacked = []
    for step in range(2):
        method.draws.begin(epoch=0, step=step)
        attacked.append(method.perturb(batch, method.objective(batch, radius, radius), radius))
        method.choose_radius(batch, attacked[-1], radius, radius)
    assert torch.equal(*attacked)
    assert all(torch.equal(value, before[name]) for name, value in statistics(body).items())


@pytest.mark.parametrize(("radius", "reach"), [(0.05, 0.05 + ETA), (0.09, EPSILON), (EPSILON, EPSILON)])
def test_the_attack_reaches_the_enlarged_radius_but_never_beyond_the_largest(radius, reach):
    batch = batch_of()
    adversarial = trace(customized(radius=radius, steps=10), batch).adversarial
    moved = (adversarial - batch.x).abs().flatten(1).amax(1)
    torch.testing.assert_close(moved, torch.full((24,), reach), rtol=0, atol=1e-6)


def test_the_largest_radius_follows_the_ramp_and_c_its_end():
    recipe = Recipe(epochs=4, epsilon_ramp=1.0, learning_rate=0.0)
    method = customized(eta="epsilon", recipe=recipe)
    method.frozen_logits = lambda images: F.one_hot(batch_of().y[:12], 3).float()
    trainer(4).fit(method, loader(12, batch_size=12, indexed=True))
    assert [line["radius"] for line in method.history] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert [line["at_full_radius"] for line in method.history] == [1.0] * 4
    assert method.c == pytest.approx(3.14)


@pytest.mark.parametrize(
    ("epsilon", "epochs", "c", "eta"),
    [(0.15, 30, 2.09, 0.024), (8 / 255, 10, 10.0, 2.4 / 255), (0.3, 10, 1.05, 0.09), (8 / 255, 80, 10.0, 0.005)],
)
def test_noise_and_growth_follow_epsilon_and_the_length_of_the_training(epsilon, epochs, c, eta):
    method = build("cat_customized", network(), ThreatModel("linf", epsilon), recipe=Recipe(epochs=epochs))
    assert method.c == pytest.approx(c, abs=0.01)
    assert method.eta == pytest.approx(eta, rel=0.01)


def test_the_row_tells_the_radii_and_the_share_of_full_ones():
    method = customized()
    assert method.remarks() == {}
    method.radii.store(torch.arange(10, 14), torch.tensor([0.0, 0.06, EPSILON, EPSILON], dtype=torch.float64))
    told = method.remarks()
    assert (told["radius_mean"], told["radius_max"], told["at_full_radius"]) == pytest.approx((0.065, EPSILON, 0.5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c": 5.1}, r"lies between 0 and 0\.5, but found 0\.51: lower c"),
        ({"c": -1.0}, r"lies between 0 and 0\.5, but found -0\.1"),
        ({"kappa": -1.0}, r"kappa is 0 or more, but found -1\.0"),
        ({"loss": "cw"}, "loss is ce or mix, but found 'cw'"),
        ({"radius_rule": "code"}, "radius_rule is paper or authors_code, but found 'code'"),
        ({"attack_loss": "code"}, "attack_loss is paper or authors_code, but found 'code'"),
        ({"margin_reduction": "max"}, "margin_reduction is mean or sum, but found 'max'"),
        ({"inner": Inner(start="uniform")}, r"leave inner\.start none, but found uniform"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, words):
    with pytest.raises(BadInput, match=words):
        build("cat_customized", network(), **changes)
