"""Probes of networks whose weakness is known: each goes red for its own reason, honest ones never do."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.threat import ThreatModel
from benchmark.credibility.black_box import square
from benchmark.credibility.colours import colour, of_row
from benchmark.credibility.pictures import Saved, saved_pictures
from benchmark.credibility.probed import PGD20, Probed
from benchmark.credibility.run import CHEAP, FULL, IMAGES, probe, probe_transfer, probed_on
from benchmark.data import Images
from tests.models import Constant, Linear, Returning, linear

THREAT = ThreatModel("linf", 0.15)


class Rounded(nn.Module):
    """Sixteen grey values, as the digits have: nothing is lost but the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return (16 * x).round() / 16


class StraightThrough(nn.Module):
    """Four grey values forwards, none of that backwards."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((4 * x).round() / 4 - x).detach()


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Among(nn.Module):
    """Logits relative to the batch's mean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits - logits.mean(0)


class StubbornDropout(nn.Dropout):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class Counting(nn.Module):
    """Keeps count of its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


def findings(network: nn.Module, images: Images, **how) -> dict[str, str]:
    """Give each check's colour by its name."""
    checks, _ = probe(network.eval(), images, how.pop("threat", THREAT), **{"dataset": "digits", **how})
    return {check.name: colour(check) for check in checks}


def mark(found: dict[str, str]) -> str:
    return of_row(found.items())


def some_images(classes: int = 10, n: int = 32) -> Images:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=draws).to(torch.uint8)
    return Images.of(pixels, torch.arange(n) % classes)


def balanced(classes: int) -> Linear:
    """Logits that a brighter picture does not change, so that no class has all random images."""
    weight = linear(classes).weight.detach()
    return Linear(weight - weight.mean(1, keepdim=True)).eval()


def with_labels_of(network: nn.Module, images: Images) -> Images:
    """Make the network right on every image."""
    return replace(images, labels=network(images.pixels()).argmax(1))


def test_a_network_trained_without_a_defence_is_weak_and_no_more_than_that(digits_network):
    network, images = digits_network
    assert "red" not in findings(network, images).values()


BROKEN = {
    "rounding": (lambda network: nn.Sequential(Rounded(), network), {"zero gradients (margin)", "finite differences"}),
    "no gradient": (lambda network: Returning(lambda x: network(x.detach())), {"zero gradients (cross-entropy)"}),
    "straight through": (lambda network: nn.Sequential(StraightThrough(), network), {"finite differences"}),
    "softmax": (lambda network: nn.Sequential(network, nn.Softmax(1)), {"logits, not probabilities"}),
    "random": (lambda network: nn.Sequential(Noisy(), network), {"repeatable outputs"}),
    "dropout for ever": (lambda network: nn.Sequential(StubbornDropout(0.2), network), {"eval mode"}),
    "moving buffer": (lambda network: nn.Sequential(Counting(), network), {"eval mode"}),
    "batch": (Among, {"batch independence"}),
    "saturated": (lambda network: nn.Sequential(network, Times(1000)), {"zero gradients (cross-entropy)"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_network_that_hides_its_weakness_goes_red_and_the_mark_says_why(kind, digits_network):
    network, images = digits_network
    spoil, expected = BROKEN[kind]
    found = findings(spoil(network), images.take(torch.arange(40)))
    assert {name for name in expected if found[name] == "red"} == expected
    assert mark(found).startswith("red: ")


def test_what_the_gradient_is_kept_from_finding_noise_finds(digits_network):
    network, images = digits_network
    found = findings(nn.Sequential(Rounded(), network), images, threat=THREAT.at(0.3))
    assert (found["random noise"], found["whole pixel range"]) == ("red", "red")


def test_a_constant_network_has_no_gradient_to_hide_but_is_not_green(digits_network):
    _, images = digits_network
    found = findings(Constant([3.0, *range(-9, 0)]), images)
    assert found["zero gradients (margin)"] == found["whole pixel range"] == "not applicable"
    assert mark(found) == "amber: one class for all"


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_linear_network_is_green_with_two_classes_three_or_ten(classes):
    network = balanced(classes)
    images = with_labels_of(network, some_images(classes))
    found = findings(network, images, threat=THREAT.at(0.02), attacks=("pgd20",))
    assert mark(found) == "green"
    assert found["number of classes"] == "not applicable"


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 0.1), ("l1", 0.5)])
def test_a_linear_network_is_not_red_in_other_norms(norm, epsilon):
    network = balanced(10)
    found = findings(network, with_labels_of(network, some_images()), threat=ThreatModel(norm, epsilon))
    assert "red" not in found.values()
    assert found["whole pixel range"] == "green"


def test_attacks_that_two_classes_do_not_suffice_for_are_told():
    network = linear(2)
    checks, _ = probe(network, some_images(2), THREAT, dataset="mine", attacks=("autoattack",))
    (told,) = [check for check in checks if check.name == "number of classes"]
    assert (colour(told), told.note) == ("amber", "autoattack with 2 classes")


def test_finite_differences_match_the_gradient_of_a_linear_network_to_the_last_digits():
    network = linear(10)
    checks, _ = probe(network, with_labels_of(network, some_images()), THREAT.at(0.01), dataset="digits")
    values = {check.name: check.value for check in checks}
    assert values["finite differences"] < 1e-3
    assert values["zero gradients (margin)"] == values["repeatable outputs"] == 0


def test_a_check_that_the_network_makes_fail_is_amber_with_the_reason_and_the_others_go_on(digits_network):
    network, images = digits_network

    def only_whole_batches(x):
        if len(x) < 2:
            raise ValueError("give me company")
        return network(x)

    checks, _ = probe(Returning(only_whole_batches), images, THREAT, dataset="digits")
    failed = {check.name: check for check in checks}["batch independence"]
    assert (colour(failed), failed.note) == ("amber", "ValueError: give me company")
    assert sum(check.missing == "failed" for check in checks) == 1


def test_probing_leaves_network_and_random_state_as_they_were_and_twice_gives_the_same(digits_network):
    network, images = digits_network
    network.train()
    before, state = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    first, second = (probe(network, images, THREAT, dataset="digits")[0] for _ in range(2))
    assert first == second
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_longer_attack_goes_on_from_the_shorter_one_and_ends_where_it_would_have_ended(digits_network):
    network, images = digits_network
    with torch.random.fork_rng():
        pieces, whole = (probed_on(network, images, THREAT, dataset="digits", depth="cheap") for _ in range(2))
    pieces.attacked(replace(PGD20, steps=7))
    torch.testing.assert_close(pieces.attacked(PGD20), whole.attacked(PGD20), rtol=0, atol=0)


def test_the_cheap_subset_costs_two_hundred_passes_an_image_forwards_and_backwards(digits_network):
    network, images = digits_network
    checks, passes = probe(network, images, THREAT, dataset="digits", attacks=("pgd20",))
    assert (passes.forward / IMAGES["cheap"], passes.backward / IMAGES["cheap"]) < (260, 200)
    only_in_full = {check.name for check in checks if check.note == "only with --credibility full"}
    assert only_in_full == {*(rule.name for rule, _ in FULL), "transfer"}
    assert len(checks) == len(CHEAP) + len(only_in_full) + 1
    assert checks[len(CHEAP)].note == "no pictures were saved"


def test_progress_names_the_check_that_runs(digits_network):
    network, images = digits_network
    told = []
    probe(network, images, THREAT, dataset="digits", tell=lambda *news: told.append(news))
    assert told[:2] == [("eval mode", 0, len(CHEAP)), ("repeatable outputs", 1, len(CHEAP))]


def test_pictures_made_for_the_network_beneath_fool_the_one_that_hides_its_gradient(digits_network):
    network, images = digits_network[0], digits_network[1].take(torch.arange(40))
    hidden = nn.Sequential(Rounded(), network).eval()
    found = probe_transfer(hidden, {"natural": network}, images, THREAT, dataset="digits")
    assert (colour(found), found.note.split(" fools")[0]) == ("red", "of 1 models natural")
    back = probe_transfer(network, {"hidden": hidden}, images, THREAT, dataset="digits")
    assert colour(back) == "green"
    assert colour(probe_transfer(network, {}, images, THREAT, dataset="digits")) == "not applicable"


def test_square_sees_through_a_hidden_gradient_and_adds_nothing_where_there_is_none_hidden(digits_network):
    network, images = digits_network
    few = images.take(torch.arange(16))
    for spoiled, expected in ((nn.Sequential(Rounded(), network).eval(), "red"), (network, "green")):
        probed = probed_on(spoiled, few, THREAT.at(0.25), dataset="digits", depth="cheap")
        assert colour(square(probed)) == expected


@pytest.fixture
def saved():
    """A network, and pictures of it that are what they should be."""
    network = linear()
    images = with_labels_of(network, some_images())
    x, y = images.pixels(), images.labels
    probed = Probed(network, x, y, images.index, THREAT, "digits")
    pictures = probed.attacked(PGD20)
    fooled = network(pictures).argmax(1) != y
    assert fooled.sum() > 10
    return probed, Saved("pgd20", 0.15, x[fooled], pictures[fooled], y[fooled])


def test_saved_pictures_are_in_ball_and_range_and_misread(saved):
    probed, whole = saved
    assert colour(saved_pictures(probed, [whole])) == "green"
    assert colour(saved_pictures(probed, [])) == "not applicable"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one._replace(pictures=torch.cat([one.x[:1], one.pictures[1:]])),  # is read rightly
        lambda one: one._replace(epsilon=0.149),
        lambda one: one._replace(pictures=one.pictures - 1e-4),  # below 0
    ],
)
def test_one_saved_picture_that_is_not_what_it_should_be_is_enough_for_red(spoil, saved):
    probed, whole = saved
    found = saved_pictures(probed, [whole, spoil(whole)])
    assert colour(found) == "red"
    assert "of pgd20 at 0.1" in found.note


def test_logits_that_are_no_numbers_are_red_and_not_passed_over(digits_network):
    network, images = digits_network
    found = findings(nn.Sequential(network, Times(math.nan)), images)
    assert found["repeatable outputs"] == "red"
    assert found["finite gradients"] == "red"
