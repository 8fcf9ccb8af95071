"""What a faithful implementation of adversarial vertex mixup must show."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel, counting
from attacks.objectives import cross_entropy_with
from methods import PGDAT, AVMixup
from methods.base import Batch
from methods.draws import Draws
from methods.recipe import Recipe
from methods.variants.avmixup import phi
from tests.golden import cases
from tests.methods.from_golden.avmixup import build as golden_avmixup
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

pytestmark = pytest.mark.filterwarnings("ignore")
THREAT = ThreatModel("linf", EPSILON)


class Weighed(Draws):
    """Draws as ever, but for the mixing weights, which a test gives."""

    def __init__(self, weight, seed=0):
        super().__init__(seed)
        self.weight = weight

    def beta(self, a, b, like, shape=None):
        return torch.as_tensor(self.weight).to(like).reshape(-1, 1, 1, 1).expand(shape)


def method(body=None, threat=THREAT, steps=3, weight=None, **settings_):
    made = AVMixup(network() if body is None else body, threat, **settings_).train()
    made.inner = replace(made.inner, steps=steps)
    if weight is not None:
        made.draws = Weighed(weight)
    return made


def weights_of(count=24):
    return torch.rand(count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("case", cases("avmixup", "training_step"), ids=lambda case: case.name)
def test_labels_are_mixed_as_in_the_authors_code(case):
    ours, (x, y, _) = golden_avmixup(case).double(), case.batch
    weight = case.draws.beta(1.0, 1.0, x, shape=(len(x), 1, 1, 1))
    assert weight.flatten().tolist() == pytest.approx(case.record["inputs"]["mix_weight_values"], rel=1e-12)
    labels, expected = ours.mixed_labels(y, weight, x.new_empty(len(x), 10)), case.expected["y_mixed"]
    assert labels.flatten()[:16].tolist() == pytest.approx(expected["first16"], abs=1e-12)
    assert (labels.sum().item(), labels.norm().item()) == pytest.approx((expected["sum"], expected["l2_norm"]))


def test_at_the_vertex_without_stretch_and_smoothing_it_is_pgd_training():
    x, y = images()
    batch = (x.double(), y)
    ours = method(network().double(), weight=0.0, gamma=1.0, lambda1=1.0, lambda2=1.0)
    pgd_at = PGDAT(network().double(), THREAT, inner=ours.inner).train()
    step, expected = trace(ours, batch), trace(pgd_at, batch)
    torch.testing.assert_close(step.adversarial, expected.adversarial, rtol=0, atol=1e-15)
    torch.testing.assert_close(step.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(pgd_at, expected.loss), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lambda1", [1.0, 0.5])
def test_at_the_clean_end_it_is_training_on_clean_images_with_their_own_smoothing(lambda1):
    x, y = images()
    ours, by_hand = method(weight=1.0, lambda1=lambda1), network().train()
    step = trace(ours, (x, y))
    assert torch.equal(step.adversarial, x)
    expected = F.cross_entropy(by_hand(x), phi(y, lambda1, torch.empty(1, 3)))
    torch.testing.assert_close(step.loss, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_with_ten_classes_the_true_one_has_a_tenth_and_nine_tenths_of_the_weight(seed, weight):
    y = torch.randint(10, (9,), generator=torch.Generator().manual_seed(seed))
    weights = torch.full((9, 1, 1, 1), weight, dtype=torch.float64)
    labels = method().mixed_labels(y, weights, torch.empty(9, 10).double())
    torch.testing.assert_close(labels.sum(1), torch.ones(9).double())
    true = F.one_hot(y, 10).bool()
    assert labels[true].tolist() == pytest.approx([0.1 + 0.9 * weight] * 9)
    assert labels[~true].tolist() == pytest.approx([0.1 * (1 - weight)] * 81, abs=1e-12)


def test_lambda_is_the_mass_of_the_true_class_whatever_the_number_of_classes():
    y = torch.tensor([3, 0])
    assert torch.equal(phi(y, 1.0, torch.empty(2, 10)), F.one_hot(y, 10).float())
    torch.testing.assert_close(phi(y, 0.1, torch.empty(2, 10)), torch.full((2, 10), 0.1))  # uniform
    many = phi(y, 0.1, torch.empty(2, 200))
    assert many[0, 3].item() == pytest.approx(0.1)
    assert many[0, 4].item() == pytest.approx(0.9 / 199)
    assert many.sum(1).tolist() == pytest.approx([1, 1])


def test_image_and_label_share_one_weight_each():
    x, y = images()
    x, weight = x.double(), weights_of()
    ours, vertices = (method(network().double(), weight=share) for share in (weight, 0.0))
    mixed, vertex = trace(ours, (x, y)).adversarial, trace(vertices, (x, y)).adversarial
    moved = (vertex - x).abs() > 1e-9
    share = ((mixed - x) / (vertex - x)).masked_fill(~moved, torch.nan)
    for row in range(len(x)):
        found = share[row][moved[row]]
        torch.testing.assert_close(found, (1 - weight[row]).expand_as(found), rtol=1e-9, atol=1e-9)
    true = ours.mixed_labels(y, weight, x.new_empty(len(x), 10)).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(true, 0.1 + 0.9 * weight)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0, 0.5), st.sampled_from(["linf", "l2"]))
def test_the_vertex_lies_within_gamma_epsilon_and_everything_in_the_pixel_range(seed, gamma, epsilon, norm):
    batch = images(9, seed)
    threat = ThreatModel(norm, epsilon)
    for weight in (0.0, torch.linspace(0, 1, 9)):
        mixed = trace(method(threat=threat, gamma=gamma, weight=weight), batch).adversarial
        assert threat.distance(mixed, batch[0]).max() <= gamma * epsilon + 1e-5
        assert mixed.min() >= 0
        assert mixed.max() <= 1


def test_the_vertex_is_twice_as_far_as_the_adversarial_image_and_leaves_the_ball():
    x, y = torch.full((24, 1, 8, 8), 0.5), images()[1]
    near, far = (trace(method(gamma=gamma, weight=0.0), (x, y)).adversarial - x for gamma in (1.0, 2.0))
    torch.testing.assert_close(far, 2 * near)
    assert far.abs().max().item() == pytest.approx(2 * EPSILON)


def test_running_statistics_move_once_a_step_on_the_mixed_images():
    batch = images()
    ours, by_hand = method(steps=4), network().train()
    step = trace(ours, batch)
    assert batches_seen(ours.network) == [1, 1]
    by_hand(step.adversarial)
    assert_same(statistics(ours.network), statistics(by_hand))


def test_the_attack_climbs_with_batch_statistics():
    batch = images()
    ours, other = (method(weight=0.0, gamma=1.0) for _ in range(2))
    other.inner = replace(other.inner, mode="train")
    found, train = trace(ours, batch).adversarial, trace(other, batch).adversarial
    assert torch.equal(found, train)  # the same images as in train mode,
    assert batches_seen(other.network) == [4, 4]  # whose attack leaves its mark
    other = method(weight=0.0, gamma=1.0)
    other.inner = replace(other.inner, mode="eval")
    assert not torch.equal(found, trace(other, batch).adversarial)


def test_ten_steps_cost_eleven_passes_each_way():
    x, y = images()
    ours = method(steps=10)
    with counting(ours.network) as passes:
        trace(ours, (x, y)).loss.backward()
    assert (passes.forward, passes.backward) == (11 * len(x), 11 * len(x))


def test_every_image_has_a_weight_of_its_own_drawn_for_the_step():
    class Spy(Draws):
        def beta(self, a, b, like, shape=None):
            drawn.append((a, b, super().beta(a, b, like, shape)))
            return drawn[-1][2]

    drawn = []
    ours = method(steps=0, alpha=0.7)
    ours.draws = Spy(0)
    for step in (0, 1, 0):
        trace(ours, images(), step=step)
    assert [(a, b, w.shape) for a, b, w in drawn] == [(0.7, 0.7, (24, 1, 1, 1))] * 3
    assert len(drawn[0][2].unique()) == 24
    assert not torch.equal(drawn[0][2], drawn[1][2])
    assert torch.equal(drawn[0][2], drawn[2][2])


def test_the_attack_sees_hard_labels_whatever_the_soft_ones_are():
    batch = images()
    one, other = (method(weight=0.3, lambda1=mass, lambda2=1 - mass) for mass in (1.0, 0.6))
    one, other = trace(one, batch), trace(other, batch)
    assert torch.equal(one.adversarial, other.adversarial)
    assert one.loss != other.loss


def test_the_vertex_follows_a_ramp_of_epsilon_and_history_tells_the_largest_radius():
    ours = method(steps=1, recipe=Recipe(epsilon_ramp=0.5))
    trainer(4).fit(ours, loader(batch_size=24))
    assert [line["largest_radius"] for line in ours.history] == pytest.approx([EPSILON, *[2 * EPSILON] * 3])
    assert ours.remarks() == {"largest_radius": pytest.approx(2 * EPSILON)}


def test_perturb_without_a_weight_gives_the_vertex():
    x, y = images()
    ours, vertices = method(), method(weight=0.0)
    expected = trace(vertices, (x, y)).adversarial
    assert torch.equal(ours.perturb(Batch.of((x, y)), cross_entropy_with(y)), expected)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"gamma": -1.0}, "gamma is 0 or more, but found -1.0"),
        ({"alpha": 0.0}, "alpha is above 0, but found 0.0"),
        ({"lambda1": 1.5}, "lambda1 is the mass of the true class, between 0 and 1, but found 1.5"),
        ({"lambda2": -0.1}, "lambda2 is the mass of the true class, between 0 and 1, but found -0.1"),
    ],
)
def test_a_silly_setting_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        AVMixup(network(), THREAT, **changed)
