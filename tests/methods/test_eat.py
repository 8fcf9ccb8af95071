"""What a faithful implementation of EAT must show."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import BadInput, ThreatModel, counting
from attacks.modes import in_mode
from attacks.pgd import fgsm
from benchmark import suite
from benchmark.data import ImageData, load
from benchmark.experiment import plan
from benchmark.kin import kin
from benchmark.suite import NetworkChoice
from benchmark.training import train
from methods import EAT, FGSMAT, Natural
from methods.base import Batch
from methods.ensemble.sources import Pool
from methods.plain_training import train_plainly
from methods.recipe import Recipe
from methods.training_set import TrainingSet
from tests.methods.tools import (
    assert_same,
    build,
    gradients,
    images,
    loader,
    network,
    redrawn,
    sharpened,
    statistics,
    trace,
    trainer,
    weights,
)

THREAT = ThreatModel("linf", 0.1)


def batch(count=24):
    x, y = images(count)
    return Batch(x, y, torch.arange(count))


def method(sources=3, threat=THREAT, dropout=0.0, **settings):
    """With frozen sources that differ, on a few images; nothing is trained."""
    pool = Pool(network(dropout), [redrawn(network(dropout), k) for k in range(1, sources + 1)])
    return EAT(pool, threat, **{"source_floor": 0, "source_epochs": 0, **settings}).train()


def still(ours):
    """Leave BatchNorm and dropout out of it."""
    ours.network.eval()
    return ours


def with_source(ours, number):
    ours.draw_source = lambda: number
    return ours


# Its properties


@pytest.mark.parametrize("attack_mode", ["train", "eval"])
def test_without_sources_it_is_fgsm_training_with_predicted_labels(attack_mode):
    class Predicted(FGSMAT):
        """FGSM training whose step leaves the class that the network predicts, in the mode of the attack."""

        def perturb(self, batch, objective, seen=None):
            with torch.no_grad(), in_mode(copy.deepcopy(self.network), attack_mode) as twin:
                own = twin(batch.x).argmax(1)
            return super().perturb(batch, lambda logits: F.cross_entropy(logits, own, reduction="none"), seen)

    body = network()
    ours = EAT(copy.deepcopy(body), THREAT, sources=[], attack_mode=attack_mode).train()
    theirs = Predicted(body, THREAT, attack_mode=attack_mode, exact_forwards=True).train()
    found, wanted = trace(ours, batch()), trace(theirs, batch())
    assert torch.equal(found.adversarial, wanted.adversarial)
    torch.testing.assert_close(found.loss, wanted.loss)
    torch.testing.assert_close(gradients(ours, found.loss), gradients(theirs, wanted.loss))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source_mode", ["eval", "train"])
def test_frozen_sources_are_the_same_bit_for_bit_after_training(source_mode):
    ours = method(dropout=0.2, source_mode=source_mode, recipe=Recipe(epochs=2, learning_rate=0.1))
    before = weights(ours.sources)
    trainer(2).fit(ours, loader(), loader(seed=2))
    assert_same(weights(ours.sources), before)
    assert not any(p.requires_grad for p in ours.sources.parameters())
    in_optimizer = {id(p) for group in ours.trainer.optimizers[0].param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in ours.network.parameters()}


def test_without_epsilon_the_loss_is_the_plain_cross_entropy():
    ours = still(method(threat=ThreatModel("linf", 0.0), attack_mode="eval"))
    alone = Natural(ours.network, THREAT)
    torch.testing.assert_close(trace(ours, batch()).loss, alone.trace_step(batch()).loss)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_pixel_moves_by_epsilon_or_is_clipped_where_the_source_has_a_gradient(number):
    ours = with_source(still(method(attack_mode="eval")), number)
    x = batch().x
    found = trace(ours, batch()).adversarial
    source = ours.network if number == 4 else ours.sources[number - 1]
    point = x.clone().requires_grad_()
    logits = copy.deepcopy(source).eval()(point)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), point)
    assert (slope != 0).any()
    torch.testing.assert_close(found, (x + 0.1 * slope.sign()).clamp(0, 1), rtol=0, atol=1e-6)


def test_sources_are_drawn_uniformly_and_once_for_a_batch_on_all_devices():
    ours, drawn = method(), []
    for step in range(4000):
        ours.draws.begin(epoch=step // 100, step=step % 100, rank=step % 2)
        drawn.append(ours.draw_source())
        ours.draws.begin(epoch=step // 100, step=step % 100, rank=1 - step % 2)
        assert ours.draw_source() == drawn[-1]
    counts = Counter(drawn)
    assert set(counts) == {1, 2, 3, 4}
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_the_label_changes_the_loss_but_not_the_images():
    first, other = (trace(method(), (batch().x, y, batch().index)) for y in (batch().y, (batch().y + 1) % 3))
    assert torch.equal(first.adversarial, other.adversarial)
    assert not torch.equal(first.loss, other.loss)


@pytest.mark.parametrize("number", [1, 4])
def test_no_gradient_comes_through_the_adversarial_images(number):
    ours = with_source(still(method(attack_mode="eval")), number)
    step = trace(ours, batch())
    constant = step.adversarial.clone()
    by_hand = 0.5 * F.cross_entropy(ours(batch().x), batch().y) + 0.5 * F.cross_entropy(ours(constant), batch().y)
    torch.testing.assert_close(gradients(ours, step.loss), gradients(ours, by_hand))
    assert all(p.grad is None for p in ours.sources.parameters())


@pytest.mark.filterwarnings("ignore")
def test_images_made_for_a_network_it_never_saw_fool_it_less_than_fgsm_training_of_the_same_budget():
    data, found = load("digits", train_images=600, validation_images=20), {}
    for name, own, seed in (("natural", {}, 1), ("eat", {}, 0), ("eat", {"sources": []}, 0)):
        changes = {"methods": {name: own}, "seeds": [seed], "recipe.epochs": 8, "dataset.train_images": 600}
        (of,) = plan(suite.load("digits-common", changes))
        ours = of.build_method(of.build_network())
        run = trainer(8, limit_val_batches=0)
        run.fit(ours, datamodule=ImageData(data, batch_size=64, seed=seed, augment=False))
        found[name, len(own)] = ours.classifier().eval()
    held_out, ensemble, alone = found.values()
    x, y = data.test.pixels(), data.test.labels

    def right(body):
        attacked = [fgsm(held_out, x, y, ThreatModel("linf", radius)) for radius in (0.2, 0.25, 0.3)]
        return sum((body(images_).argmax(1) == y).float().mean().item() for images_ in attacked) / 3

    assert right(ensemble) > right(alone) + 0.05


# The two forwards


def test_clean_and_adversarial_images_are_batches_of_their_own_for_batchnorm():
    ours = with_source(method(), 1)
    twin = copy.deepcopy(ours.network)
    step = trace(ours, batch())
    losses = [F.cross_entropy(twin(x), batch().y) for x in (batch().x, step.adversarial)]
    torch.testing.assert_close(step.loss, sum(losses) / 2)
    assert_same(statistics(ours.network), statistics(twin))


@pytest.mark.parametrize(("number", "own", "theirs"), [(2, 2, 1), (4, 3, 0)])
def test_passes_are_two_of_the_network_and_one_of_the_source(number, own, theirs):
    ours = with_source(method(), number)
    with counting(ours.network) as mine, counting(ours.sources[1]) as others:
        trace(ours, batch()).loss.backward()
    assert (mine.forward, mine.backward) == (own * 24, own * 24)
    assert (others.forward, others.backward) == (theirs * 24, theirs * 24)


def test_the_imagenet_form_steps_towards_the_class_that_is_least_likely():
    ours = with_source(method(label="ll"), 1)
    x, source = batch().x, copy.deepcopy(ours.sources[0]).eval()
    point = x.clone().requires_grad_()
    logits = source(point)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmin(1)), point)
    found = trace(ours, batch()).adversarial
    torch.testing.assert_close(found, (x - 0.1 * slope.sign()).clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("source_mode", "moves"), [("eval", False), ("train", True)])
def test_dropout_of_a_frozen_source_is_at_work_only_where_it_is_attacked_in_train_mode(source_mode, moves):
    ours = with_source(method(dropout=0.5, source_mode=source_mode), 1)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(trace(ours, batch()).adversarial)
    assert torch.equal(*found) != moves


# The sources' own training


def whole():
    return TrainingSet.of_batch(batch())


def test_a_source_is_trained_by_the_recipes_optimizer_with_its_schedule_in_the_epochs_it_has():
    recipe = Recipe(batch_size=24, learning_rate=0.1, schedule="cyclic", weight_decay=0.01, label_smoothing=0.1)
    source, twin = network(), network()
    train_plainly(source, whole(), recipe, epochs=4, seed=3)
    optimizer = recipe.build_optimizer(twin.parameters())
    for rate in (0.05, 0.1, 0.05, 0.0):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(twin(batch().x), batch().y).backward()
        optimizer.step()
    for name, value in weights(twin).items():  # whose sums are in another order
        torch.testing.assert_close(weights(source)[name], value, rtol=1e-4, atol=1e-6)
    assert not any(p.requires_grad for p in source.parameters())
    assert all(p.grad is None for p in source.parameters())


def test_a_sources_training_follows_from_its_seed_and_leaves_the_global_generator_alone():
    made = []
    for seed in (3, 3, 4):
        source = network(dropout=0.3)
        torch.manual_seed(len(made))
        before = torch.get_rng_state()
        train_plainly(source, whole(), Recipe(batch_size=8), epochs=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(weights(source))
    assert_same(made[0], made[1])
    assert not torch.equal(made[0]["0.weight"], made[2]["0.weight"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("epochs", "own", "passes"), [(4, None, 2), (5, None, 2), (1, None, 1), (4, 3, 3)])
def test_sources_are_trained_before_the_first_epoch_for_half_of_the_recipes(epochs, own, passes):
    ours = build("eat", network(), recipe=Recipe(epochs=epochs, batch_size=8, learning_rate=0.05), source_epochs=own)
    with counting(ours.sources[0]) as first:
        ours.attack_source = lambda batch, *_: batch.x  # else it would count, too
        trainer(epochs).fit(ours, loader())
    assert first.forward == first.backward == 24 * passes
    assert ours.source_epochs == passes


def small(**changes):
    of = {"recipe.epochs": 4, "dataset.train_images": 96, "dataset.validation_images": 30, "methods": {"eat": {}}}
    (one,) = plan(suite.load("quickstart", of | changes))
    return one


@pytest.mark.filterwarnings("ignore")
def test_the_card_counts_the_sources_passes_their_training_included(tmp_path):
    one = small(methods={"eat": {"source_floor": 0}})
    card = train(one, tmp_path)
    # Two of the network, one of the source drawn, and half of the epochs for each of three sources.
    assert card["forward_passes"] == pytest.approx(4 * (2 + 1) + 3 * 2)
    assert card["backward_passes"] == pytest.approx(4 * (2 + 1) + 3 * 2)
    assert (card["members"], card["comparison_class"]) == (1, "C")
    assert card["parameters"] == sum(p.numel() for p in one.build_method(one.build_network()).classifier().parameters())
    assert card["remarks"]["source_parameters"] > card["parameters"]
    kept = card["companions"]
    assert (tmp_path / "companions.safetensors").is_file()
    assert kept["networks"] == 3
    assert kept["parameters"] == card["remarks"]["source_parameters"]


@pytest.mark.filterwarnings("ignore")
def test_a_source_that_has_learned_next_to_nothing_is_an_error():
    ours = method(source_floor=3.0)
    for source in ours.sources:
        sharpened(source, 0.0)  # says the same of every image
    with pytest.raises(BadInput, match=r"source 1 of eat is right on 33 % .*, below 3 times chance: train it longer"):
        trainer(1).fit(ours, loader(), loader(seed=2))


@pytest.mark.filterwarnings("ignore")
def test_how_good_the_sources_are_and_what_became_of_their_images_stands_beside_the_row():
    ours = build("eat", network(), recipe=Recipe(epochs=4, batch_size=8, learning_rate=0.05, schedule="constant"))
    trainer(4).fit(ours, loader(48), loader(seed=2))
    told, line = ours.remarks(), ours.history[-1]
    assert told["pool"] == "narrow pool: sources of one family"
    for number in (1, 2, 3):
        x, y = images(24, seed=2)
        right = (ours.sources[number - 1].eval()(x).argmax(1) == y).float().mean().item()
        assert told[f"held_out_source_{number}"] == line[f"held_out_source_{number}"] == pytest.approx(right)
    noted = {name for each in ours.history for name in each if name.startswith("accuracy_on_")}
    assert {"accuracy_on_itself", "accuracy_on_source_1"} <= noted


@pytest.mark.parametrize(("lead", "marked"), [([0.0, 0.06], True), ([0.04, 0.05], False), ([], False)])
def test_accuracy_on_its_own_images_above_the_clean_one_is_marked(lead, marked):
    ours = method()
    ours.history = [{"epoch": k, "lead_on_itself": value} for k, value in enumerate(lead)]
    assert (ours.remarks().get("mark") == "label leaking or masking") == marked


def test_published_architectures_are_no_narrow_pool():
    mixed = method(sources=2)
    mixed.narrow_pool = EAT(Pool(network(), [network(seed=1)]), THREAT, sources=["resnet20"]).narrow_pool
    assert "pool" not in mixed.remarks()
    assert "pool" not in EAT(network(), THREAT, sources=[]).remarks()


@pytest.mark.filterwarnings("ignore")
def test_augmentation_differs_between_the_epochs_of_a_sources_training():
    seen = []

    class Counting(torch.utils.data.SequentialSampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

    x, y = images(8)
    data = TensorDataset(x, y, torch.arange(8))
    sampler = Counting(data)
    ours = build("eat", network(), recipe=Recipe(epochs=4, batch_size=8, learning_rate=0.0))
    ours.on_after_batch_transfer = lambda batch, _: seen.append(sampler.epoch) or batch
    trainer(1).fit(ours, DataLoader(data, batch_size=8, sampler=sampler))
    assert seen[:6] == [0, 1] * 3
    assert sampler.epoch == 0


# Which sources


def test_beside_digits_stand_networks_of_half_once_and_twice_the_width():
    (of,) = plan(suite.load("digits-common", {"methods": {"eat": None}}))
    pool = of.build_network()
    first = [next(m for m in source.modules() if isinstance(m, nn.Conv2d)).out_channels for source in pool.sources]
    own = next(m for m in pool.network.modules() if isinstance(m, nn.Conv2d)).out_channels
    assert [width / own for width in first] == [0.5, 1, 2]
    ours = of.build_method(pool)
    assert ours.source_epochs == 15
    assert ours.inner.steps == 1
    assert not torch.equal(weights(pool.network)["body.linear.weight"], weights(pool.sources[1])["body.linear.weight"])
    assert ours.classifier() is pool.network


@pytest.mark.parametrize(
    ("name", "settings", "widths"),
    [
        ("digits_cnn", {"width": 8}, [4, 8, 16]),
        ("mnist_small", {"hidden": 50}, [8, 16, 32]),
        ("resnet8", {"normalise": "none"}, [16, 32, 64]),
        ("preact_resnet18", {}, [16, 32, 64]),
    ],
)
def test_small_networks_are_widened_and_beside_larger_ones_stand_those_of_digits(name, settings, widths):
    choice = NetworkChoice(name, settings)
    found = [kin(choice, kind) for kind in (0.5, 1, 2)]
    assert [one.settings["width"] for one in found] == widths
    assert {one.name for one in found} == {name if name in ("digits_cnn", "mnist_small") else "digits_cnn"}
    assert all(one.settings.get("normalise") == settings.get("normalise") for one in found)
    assert kin(choice, None) is choice
    assert kin(choice, "resnet20").name == "resnet20"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"label": "true"}, "label is predicted or ll, but found 'true'"),
        ({"source_mode": "batch"}, "source_mode is eval or train, but found 'batch'"),
        ({"source_epochs": -1}, "source_epochs is 0 or more, or null for half of the recipe's, but found -1"),
        ({"source_floor": -1}, "source_floor is 0 or more, but found -1"),
        ({"attack_mode": "off"}, "attack_mode is one of eval, train, batch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(BadInput, match=says):
        method(**settings)


def test_a_network_without_sources_is_refused_unless_none_are_wanted():
    with pytest.raises(BadInput, match=r"eat takes its sources from a Pool, but found one Sequential: hand in Pool\("):
        EAT(network(), THREAT)
    assert len(EAT(network(), THREAT, sources=[]).sources) == 0
