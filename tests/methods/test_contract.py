"""What every method of the catalogue keeps, whatever it is: whoever is listed there is tested here."""

import copy

import pytest
import torch
from torch import nn

from attacks import BadInput, ThreatModel, counting
from attacks.passes import networks_in
from methods import catalogue
from methods.base import Batch
from methods.draws import Draws
from tests.methods.tools import EPSILON, batches_seen, build, images, network, statistics, toy, trace

K = 3  # inner steps, where a method leaves their number open

# Images through the network per training image, and BatchNorm updates per step: each specification's last section.
FORWARD_BACKWARD_UPDATES = {
    "natural": (1, 1, 1),
    "fgsm_at": (3, 3, 2),
    "kurakin": (1.5, 1.5, 1),
    "pgd_at": (K + 1, K + 1, 1),
    "alp": (1 + K + 2, K + 2, 1),  # one forward of twice the images
    "trades": (K + 1 + 2, K + 2, 2),
    "mart": (K + 2, K + 2, 2),
    "llr": (K + 3, K + 4, 1),
    "tla": (1 + K + 1 + 4, K + 4, 4),  # the batch itself is the pool
    "eat": (3, 3, 3),  # on itself: without sources
    "adp": (3, 3, 1),  # one forward and backward of each member
    "gal": (3, 6, 1),  # as above, and an input gradient of each
    "dverge": (3 * (K + 1) + 6, 3 * K + 6, K + 3),  # seed 0 deals the deeper layer
    "fast_at": (2, 2, 2),
    "gradalign": (3, 4, 3),
    "fgsmr": (3, 5, 3),
    "cat_curriculum": (2.5, 2.5, 7),  # in lesson K: four groups of 0 to 3 steps
    "dynamic_at": (K + 2, K + 2, 1),  # where no image stops early
    "single_step_checkpoints": (2, 2, 1),
    "sads": (2, 2, 1),
    "sat_r": (4, 4, 1),
    "atda": (3, 3, 2),
    "fat": (K + 1, K + 1, 1),
    "avmixup": (K + 1, K + 1, 1),
    "feature_scatter": (3, 2, 1),
    "smooth_at": (K + 1, K + 1, 1),
    "adv_interp": (3, 2, 1),
    "iaat": (K + 2, K + 1, K + 2),  # in its warm-up
    "mma": (2, 2, 2),  # before any image is surely right; its own test has what follows
    "cat_customized": (K + 2, K + 1, 1),
    "free_at": (4, 4, 4),  # replays
    "uat": (K + 2, K + 1, 2),
    "rst": (K + 1 + 2, K + 2, 2),
    "ss_rotation": (5 * (K + 1), 5 * (K + 1), K + 1),  # upright, and at each of four turns
    "pretraining": (K + 1, K + 1, K + 1),
    "ssdrl": (1 + K + 1, K + 1, 1),
    "zhai": (K + 1, K + 1, K + 1),  # where every label is known
    "yopo": (5, 5, 5),  # m
    "adt": (5 * K + 1, 5 * K + 1, 1),  # five samples a step
    "bilateral": (3, 2, 1),
    "hypersphere": (K + 1, K + 1, 1),
    "msd": (4 * K + 1, K + 1, 4 * K + 1),  # three candidates a step
    "avg_max": (3 * K + 3 + 1, 3 * K + 1, 1),  # the last three choose the worst
    "l1_penalty": (K + 1, K + 1, 1),
    "ccat": (K + 1.5, K / 2 + 1, 1),  # on half of the batch
    "rlfat": (K + 2, K + 2, K + 2),  # the attack moves the statistics, too
}
ON_CLEAN_IMAGES = ("natural", "adp", "gal", "cat_curriculum")  # as they come by default
EXACT = {  # settings with which the passes do not depend on the images
    "eat": {"sources": []},
    "fat": {"tau": K},
    "cat_curriculum": {"first_lesson": K},
    "dynamic_at": {"c_max": 0.0},
    "single_step_checkpoints": {"checkpoints": 1},
}
PLAIN = {"gal": {"noise": 0}}  # settings without which a method's images lie outside the pixel range
REACH = {  # how many epsilons away a method's images may lie, where that is more than one
    "avmixup": 2,
    "mma": 4.2,
    "sat_r": 1 + 1 / 30,
    "ssdrl": torch.inf,  # it pays for the way
    "msd": 1 / EPSILON,  # anywhere in the range: in L1 a pixel may go all the way
    "avg_max": 1 / EPSILON,
}
SETS = {  # the images that a method's images are made of, where they are not the batch's once
    "sat_r": lambda x: torch.cat([x, x]),
    "ss_rotation": lambda x: torch.cat([x, *(torch.rot90(x, turn, (2, 3)) for turn in range(4))]),
}
ATTACKED = {"ccat": slice(12, None)}  # the rows that a method makes images of, where those are not all
CLEAN_BEHIND = {"tla": 2}  # clean forwards behind the adversarial one, where they are more than one
every_method = pytest.mark.parametrize("name", catalogue.names())
INTERLEAVED = {
    "free_at"
}  # they move the weights within a step, so gradients that lie there already are theirs to clear
LINF_ONLY = {"adt", "dverge", "free_at", "gradalign", "fgsmr", "yopo", "msd", "avg_max"}  # they say so
WITHOUT_DRAWS = {
    *("natural", "fgsm_at", "adp", "gal", "free_at", "gradalign", "fgsmr"),
    "cat_curriculum",  # in its first lesson
    "mma",  # at first: no image is sure enough to be attacked
    "cat_customized",  # at first: no radius that softens a label
    *("sads", "atda"),  # none for their images
    "eat",  # but for the source, one of a few: its own test has that
    "ssdrl",
    "msd",  # where no image takes a step in L1
    "ccat",  # where it draws the images themselves as the start
}


def methods_but(left_out):
    return pytest.mark.parametrize("name", [name for name in catalogue.names() if name not in left_out])


@pytest.fixture
def batch():
    x, y = images()
    return x, y, torch.arange(len(y))


@every_method
def test_passes_and_running_statistics_are_those_of_the_specification(name, batch):
    method = build(name, network(), steps=K, **EXACT.get(name, {})).train()
    forward, backward, updates = FORWARD_BACKWARD_UPDATES[name]
    with counting(method.network) as passes:
        trace(method, batch).loss.backward()
    assert (passes.forward, passes.backward) == (forward * len(batch[0]), backward * len(batch[0]))
    assert set(batches_seen(method.network)) == {updates}


@every_method
@pytest.mark.parametrize("entry", ["train", "eval", "mixed"])
def test_every_part_is_in_the_mode_it_was_in(name, batch, entry):
    method = build(name, network(dropout=0.2), steps=K).train(entry != "eval")
    if entry == "mixed":
        next(m for m in method.modules() if isinstance(m, nn.BatchNorm2d)).eval()  # frozen for good, as in fine-tuning
    before = [module.training for module in method.modules()]
    trace(method, batch)
    assert [module.training for module in method.modules()] == before


@every_method
def test_no_gradient_is_left_behind_before_backward_and_every_parameter_has_one_after(name, batch):
    method = build(name, network(), steps=K).train()
    step = trace(method, batch)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in method.network.parameters())
    assert step.loss.ndim == 0
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())


@methods_but(INTERLEAVED)
def test_gradients_that_are_already_there_stay_out_of_the_step(name, batch):
    method, fresh = (build(name, network(), steps=K).train() for _ in range(2))
    for parameter in method.network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    step = trace(method, batch)
    assert torch.equal(step.loss, trace(fresh, batch).loss)
    assert all((parameter.grad == 7).all() for parameter in method.network.parameters())


@every_method
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adversarial_images_carry_no_graph_and_lie_in_ball_and_box(name, batch, norm, dtype):
    x, y, index = batch
    threat = ThreatModel(norm, EPSILON if norm == "linf" else 0.5)
    if norm == "l2" and name in LINF_ONLY:
        with pytest.raises(BadInput, match=name):
            build(name, network(), threat)
        return
    method = build(name, network(), threat, steps=K).to(dtype).train()
    step = trace(method, (x.to(dtype), y, index))
    adversarial = step.adversarial
    assert not adversarial.requires_grad
    assert adversarial.grad_fn is None
    origin = SETS.get(name, lambda images: images)(x.to(dtype))[ATTACKED.get(name, slice(None))]
    assert (adversarial.dtype, adversarial.shape, step.loss.dtype) == (dtype, origin.shape, dtype)
    assert threat.distance(adversarial, origin).max() <= REACH.get(name, 1) * threat.epsilon + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@every_method
def test_in_mixed_precision_every_parameter_has_a_finite_gradient(name, batch):
    method = build(name, network(), steps=K).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = trace(method, batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in method.network.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in method.network.parameters())


@every_method
def test_the_batch_handed_in_is_not_written_to(name, batch):
    method = build(name, network(), steps=K).train()
    before = [item.clone() for item in batch]
    trace(method, batch)
    assert all(torch.equal(left, right) for left, right in zip(before, batch, strict=True))


@every_method
def test_the_same_seed_and_moment_give_the_same_trace_bit_for_bit(name, batch):
    one, other = (trace(build(name, network(), steps=K, seed=3).train(), batch, step=5) for _ in range(2))
    assert torch.equal(one.adversarial, other.adversarial)
    assert torch.equal(one.loss, other.loss)


@methods_but(WITHOUT_DRAWS)
def test_another_seed_or_another_moment_gives_other_images(name, batch):
    first = trace(build(name, network(), steps=K, seed=3).train(), batch, step=5)
    for seed, step in ((4, 5), (3, 6)):
        other = trace(build(name, network(), steps=K, seed=seed).train(), batch, step=step)
        assert not torch.equal(first.adversarial, other.adversarial)


@every_method
def test_global_random_state_is_neither_read_nor_moved_by_a_step(name, batch):
    torch.manual_seed(1)
    first = trace(build(name, network(), steps=K).train(), batch)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = trace(build(name, network(), steps=K).train(), batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.loss, second.loss)


@every_method
def test_scripted_draws_are_all_the_randomness_there_is(name):
    losses, first = [], None
    for seed in (0, 1):
        model, x, y, draws = toy()
        method = build(name, model, ThreatModel("linf", 8 / 255), steps=K, seed=seed).double()
        first = first or copy.deepcopy(method.state_dict())
        method.load_state_dict(first)  # the first weights of layers that a method adds are no draw of a step
        method.draws = draws
        losses.append(method.trace_step((x, y, torch.arange(len(y)))).loss)
    assert torch.equal(*losses)


@every_method
def test_labels_and_images_without_an_index_do_as_well(name, batch):
    x, y, _ = batch
    with_index = trace(build(name, network(), steps=K).train(), batch)
    without = trace(build(name, network(), steps=K).train(), (x, y))
    assert torch.equal(with_index.loss, without.loss)


@every_method
def test_the_classifier_is_a_plain_network_of_images_to_logits(name, batch):
    method = build(name, network())
    assert not hasattr(method.classifier(), "trainer")
    assert method.classifier()(batch[0]).shape == (len(batch[0]), 3)


@every_method
def test_the_trace_shows_the_images_that_the_loss_was_computed_on(name, batch):
    settings = PLAIN.get(name, {})
    method = build(name, network(), steps=0, **settings).train()  # without steps a start may still lie outside
    seen = []
    handle = networks_in(method.network)[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    adversarial = trace(method, batch).adversarial
    handle.remove()
    # They are the last images of the last forward, or of one before clean ones.
    behind = CLEAN_BEHIND.get(name, 1)
    assert any(torch.equal(x[-len(adversarial) :], adversarial) for x in seen[-1 - behind :])


@every_method
def test_watching_the_attack_leaves_nothing_on_the_method(name, batch):
    method = build(name, network(), steps=K).train()
    trace(method, batch)
    assert "perturb" not in vars(method)


@every_method
def test_running_statistics_move_only_where_training_forwards_move_them(name, batch):
    """With the network in eval mode at entry, only an attack that itself runs in train mode may move them."""
    method = build(name, network(), steps=K).eval()
    before = statistics(method.network)
    trace(method, batch)
    moved = any(not torch.equal(before[key], value) for key, value in statistics(method.network).items())
    assert moved == (name not in ON_CLEAN_IMAGES and method.inner.mode == "train")


def test_a_batch_of_images_and_labels_numbers_its_rows():
    x, y = images(5)
    assert Batch.of((x, y)).index.tolist() == [0, 1, 2, 3, 4]
    assert Batch.of([x, y, torch.arange(5) + 7]).index.tolist() == [7, 8, 9, 10, 11]


KINDS = {
    "uniform": lambda draws, like: draws.uniform(like),
    "normal": lambda draws, like: draws.normal(like),
    "integers": lambda draws, like: draws.integers(5, like),
    "permutation": lambda draws, like: draws.permutation(50, like),
    "bernoulli": lambda draws, like: draws.bernoulli(0.3, like),
    "beta": lambda draws, like: draws.beta(2.0, 3.0, like),
    "dirichlet": lambda draws, like: draws.dirichlet([1.0, 2.0], like, (50,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_repeat_at_the_same_moment_and_differ_within_it(kind):
    draws, like = Draws(1), torch.empty(10, 50, dtype=torch.float64)
    first, second = KINDS[kind](draws, like), KINDS[kind](draws, like)
    assert not torch.equal(first, second)
    draws.begin(epoch=0, step=0)
    assert torch.equal(KINDS[kind](draws, like), first)
    assert torch.equal(KINDS[kind](draws, like), second)
    for moment in ({"epoch": 1, "step": 0}, {"epoch": 0, "step": 1}, {"epoch": 0, "step": 0, "rank": 1}):
        draws.begin(**moment)
        assert not torch.equal(KINDS[kind](draws, like), first)


def test_draws_have_the_range_and_the_moments_they_are_named_after():
    draws, like = Draws(0), torch.empty(200, 200, dtype=torch.float64)
    uniform, normal = draws.uniform(like), draws.normal(like)
    assert uniform.min() >= -1
    assert uniform.max() < 1
    assert uniform.mean().abs() < 0.01
    assert uniform.std().item() == pytest.approx(3**-0.5, abs=0.01)
    assert (normal.mean().abs(), abs(normal.std() - 1)) < (0.02, 0.02)
    assert sorted(draws.permutation(9, like).tolist()) == list(range(9))
    assert set(draws.integers(4, like).flatten().tolist()) == {0, 1, 2, 3}
    assert draws.bernoulli(0.3, like).mean().item() == pytest.approx(0.3, abs=0.02)
    assert draws.beta(2.0, 3.0, like).mean().item() == pytest.approx(0.4, abs=0.02)
    points = draws.dirichlet([1.0, 1.0, 2.0], like, (500,))
    assert points.shape == (500, 3)
    torch.testing.assert_close(points.sum(1), torch.ones(500, dtype=torch.float64))
