"""What a faithful implementation of DVERGE must show."""

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import BadInput, ThreatModel, counting
from benchmark import suite
from benchmark.experiment import plan
from methods import DVERGE, PGDAT
from methods.base import Batch
from methods.ensemble.dverge import dealt
from methods.ensemble.members import Ensemble
from methods.inner import Inner
from methods.pre_activations import count_feature_maps, ending_at
from methods.recipe import Recipe
from methods.selection import KeepBest
from tests.golden import assert_images, cases, first_layer_gradient, gradient_norm
from tests.methods.from_golden.dverge import build as golden_dverge
from tests.methods.from_golden.dverge import target_of
from tests.methods.tools import build, images, loader, network, redrawn, toy, trainer, weights

THREAT = ThreatModel("linf", 8 / 255)


def method(members=3, threat=THREAT, steps=4, **settings):
    """Members with ten classes, in float64, that are in their second stage."""
    first = toy()[0]
    made = DVERGE(Ensemble([first, *(redrawn(first, k) for k in range(1, members))]), threat, **settings).train()
    made.inner = replace(made.inner, steps=steps)
    return made


def batch(count=8):
    _, x, y, _ = toy()
    return Batch(x[:count], y[:count], torch.arange(count))


def other_batch():
    flipped = batch().x.flip(0, 3)
    return Batch(flipped, batch().y.flip(0), torch.arange(8))


def pull(ours, target, member=0, layer=2, source=None):
    """What one member makes of the batch."""
    one = ours.each_member()[member]
    ours.count_layers(target)
    source = batch() if source is None else source
    return ours.perturb(source, ours.likeness(one, target, layer), one, layer)


# Golden values


@pytest.mark.parametrize("case", cases("dverge", "attack"), ids=lambda case: case.name)
def test_distilled_images_repeat_the_authors_code(case):
    ours, target, expected = golden_dverge(case).double(), target_of(case), case.expected
    x, y, index = case.batch
    layer, member = ours.layer_for(x), ours.each_member()[0]
    found = ours.perturb(Batch(x, y, index), ours.likeness(member, target.x, layer), member, layer)
    assert_images(found, expected["x_adv"])
    assert (found - x).abs().max().item() == pytest.approx(expected["max_abs_change"])

    # The authors measure in train mode, with the batch's own statistics.
    def far(z):
        with torch.no_grad(), ours._features(member, layer):
            return F.mse_loss(member(z), member(target.x)).item()

    assert far(x) == pytest.approx(expected["feature_mse_before"], rel=1e-7)
    assert far(found) == pytest.approx(expected["feature_mse_after"], rel=1e-7)


@pytest.mark.parametrize("case", cases("dverge", "training_step"), ids=lambda case: case.name)
def test_the_loss_of_every_member_and_its_gradient_repeat_the_authors_code(case):
    ours, expected = golden_dverge(case).double(), case.expected
    made, losses = [], []
    perturb, attack_of, members_losses = ours.perturb, ours.attack_of, ours.members_losses
    ours.perturb = lambda *given: made.append(perturb(*given)) or made[-1]
    attacked = []
    ours.attack_of = lambda *given: attacked.append(attack_of(*given)) or attacked[-1]
    ours.members_losses = lambda *given: losses.append(members_losses(*given)) or losses[-1]
    ours.trace_step(case.batch).loss.backward()
    for found, wanted in zip(made, expected["x_distilled"], strict=True):
        assert_images(found, wanted)
    for found, wanted in zip(attacked, expected.get("x_adv", []), strict=True):
        assert_images(found, wanted)
    assert losses[0].tolist() == pytest.approx(expected["loss"], rel=1e-8)
    members = ours.each_member()
    assert [gradient_norm(member) for member in members] == pytest.approx(expected["grad_norm"], rel=1e-8)
    for member, wanted in zip(members, expected["grad_first_layer"], strict=True):
        assert first_layer_gradient(member).tolist() == pytest.approx(wanted, rel=1e-7, abs=1e-10)


def test_every_case_of_the_golden_file_is_used():
    assert len(cases("dverge", "attack")) == 3
    assert len(cases("dverge", "training_step")) == 2
    assert [case.name for case in cases("dverge", "other")] == ["ensemble_forward"]  # in test_ensemble.py


# Its properties


def test_without_room_every_member_learns_the_source_images_once_for_each_other_member():
    ours = method(eps_d=0)
    twin = copy.deepcopy(ours.network)
    loss = ours.trace_step(batch()).loss
    clean = sum(2 * F.cross_entropy(member(batch().x), batch().y) for member in twin.members)
    torch.testing.assert_close(loss, clean)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_target_that_is_the_source_leaves_it_where_it_is(layer):
    ours = method(include_logits=True)
    assert torch.equal(pull(ours, batch().x, layer=layer), batch().x)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("random_start", [True, False])
def test_distilled_images_stay_near_and_come_closer_in_the_features(momentum, layer, random_start):
    ours = method(steps=10, momentum=momentum, include_logits=True, random_start=random_start)
    target = other_batch().x
    found = pull(ours, target, layer=layer)
    assert (found - batch().x).abs().max() <= 0.07 + 1e-12
    assert found.min() >= 0
    assert found.max() <= 1
    member = ours.each_member()[0]
    with torch.no_grad(), ours._features(member, layer):
        before, after = (F.mse_loss(member(z), member(target)) for z in (batch().x, found))
    assert after < before


def test_no_loss_has_a_gradient_by_the_weights_of_another_member_and_distilled_images_are_constants():
    ours, target = method(), other_batch()
    distilled = [pull(ours, target.x, member=k) for k in range(3)]
    assert all(not z.requires_grad and z.grad_fn is None for z in distilled)
    losses = ours.members_losses(batch(), target.y, distilled)
    for i, loss in enumerate(losses):
        for j, member in enumerate(ours.each_member()):
            parameters = list(member.parameters())
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            assert any((gradient != 0).any() for gradient in found) == (i == j)


def test_the_first_step_of_momentum_is_along_the_sign_of_the_gradient():
    with_momentum, without = (pull(method(steps=1, momentum=mu), other_batch().x) for mu in (1.0, 0.0))
    assert torch.equal(with_momentum, without)


def test_momentum_counts_every_gradient_by_its_length_as_written_out():
    ours, target, mu = method(steps=3, momentum=0.9), other_batch().x, 0.9
    twin = copy.deepcopy(ours.each_member()[0])
    found = pull(ours, target, layer=2)
    features = nn.Sequential(*list(twin.children())[:5])  # up to the second BatchNorm
    wanted, z, velocity = features(target).detach(), batch().x, 0
    for _ in range(3):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.mse_loss(features(z), wanted), z)
        velocity = mu * velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True).clamp(min=1e-12)
        z = batch().x + (z.detach() - 0.07 / 3 * velocity.sign() - batch().x).clamp(-0.07, 0.07)
        z = z.clamp(0, 1)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-12)


def test_with_no_weight_on_distilled_images_each_member_is_trained_by_pgd_on_itself():
    attack = Inner(steps=3, step_size="epsilon/4", start="uniform", boxed=True, mode="train")
    ours = method(plus_adv=True, coefficient=0.0, inner=attack, steps=3, eps_d=0)  # which moves no image
    ours.draws = toy()[3]
    for member in ours.each_member():
        for module in member.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # so that what was run before leaves no trace
    alone = [PGDAT(copy.deepcopy(member), THREAT, inner=attack) for member in ours.each_member()]
    ours.trace_step(batch()).loss.backward()
    for member, pgd_at in zip(ours.each_member(), alone, strict=True):
        pgd_at.draws = toy()[3]
        pgd_at.trace_step(batch()).loss.backward()
        for found, wanted in zip(member.parameters(), pgd_at.network.parameters(), strict=True):
            torch.testing.assert_close(found.grad, wanted.grad)


def test_swapping_two_members_swaps_their_losses_and_target_labels_do_not_matter():
    target, found = other_batch(), []
    for order, labels in (([0, 1, 2], target.y), ([1, 0, 2], target.y), ([0, 1, 2], (target.y + 3) % 10)):
        ours = method()
        ours.network = Ensemble([ours.each_member()[k] for k in order]).train()
        distilled = [pull(ours, target.x, member=k) for k in range(3)]
        found.append(ours.members_losses(batch(), labels, distilled))
    torch.testing.assert_close(found[0][[1, 0, 2]], found[1])
    assert torch.equal(found[0], found[2])


def test_all_images_are_distilled_before_any_weight_moves():
    """One optimizer step for all members: the first moves no weights before the second has made its images."""
    ours, seen = method(), []
    perturb = ours.perturb
    ours.perturb = lambda *given: (
        seen.append([p.detach().clone() for p in ours.network.parameters()]) or perturb(*given)
    )
    ours.trace_step(batch())
    assert len(seen) == 3
    assert all(torch.equal(a, b) for later in seen[1:] for a, b in zip(seen[0], later, strict=True))


@pytest.mark.parametrize("members", [3, 5, 8])
def test_passes_of_the_second_stage_are_those_of_the_specification(members):
    ours, steps = method(members=members, steps=7), 7
    with counting(ours.network) as passes:
        ours.trace_step(batch()).loss.backward()
    assert passes.forward == 8 * (members * (steps + 1) + members * (members - 1))
    assert passes.backward == 8 * (members * steps + members * (members - 1))


# Layers


class Residual(nn.Module):
    """A block whose last activation is a function, which a hook on modules would not find."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x):
        seen = self.relu(self.norm(self.first(x)))
        summed = F.relu(seen + self.second(seen))
        return self.last(F.relu(summed.flatten(1)))


def test_layers_are_what_enters_activations_on_feature_maps_modules_or_functions():
    body, (x, _) = Residual().eval(), images(4)
    assert count_feature_maps(body, x) == 2
    with ending_at(body, 1):
        assert torch.equal(body(x), body.norm(body.first(x)))
    with ending_at(body, 2):
        seen = F.relu(body.norm(body.first(x)))
        torch.testing.assert_close(body(x), seen + body.second(seen))
    assert body(x).shape == (4, 10)
    assert "forward" not in vars(body)


def test_what_is_cut_short_is_left_as_it_was_even_by_an_error():
    body, (x, _) = network(), images(4)
    with pytest.raises(RuntimeError, match="fewer than 3 activations"), ending_at(body, 3):
        body(x)
    assert "forward" not in vars(body)
    with pytest.raises(BadInput, match="found none in Sequential"):
        count_feature_maps(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x)


@pytest.mark.parametrize(
    ("name", "size", "channels", "layers"),
    [("digits_cnn", 8, 1, 3), ("mnist_small", 28, 1, 2), ("resnet8", 32, 3, 7), ("resnet20", 32, 3, 19)],
)
def test_the_presets_networks_have_as_many_layers_as_the_specification_counts(name, size, channels, layers):
    from benchmark import architectures

    body = architectures.build(name, classes=10, channels=channels, size=size)
    assert count_feature_maps(body, torch.rand(2, channels, size, size)) == layers
    ours = DVERGE(Ensemble([body, copy.deepcopy(body)]), THREAT, include_logits=True)
    assert ours.count_layers(torch.rand(2, channels, size, size)) == layers + 1


def fit(epochs=6, baseline="half", callbacks=(), **settings):
    recipe = Recipe(epochs=epochs, learning_rate=0.05, schedule="cyclic")
    ours = build("dverge", network(), recipe=recipe, steps=2, baseline=baseline, **settings)
    trainer(ours.data_passes(), *callbacks).fit(ours, loader(), loader(seed=2))
    return ours


@given(st.integers(1, 20), st.integers(0, 10_000), st.integers(0, 5))
def test_layers_are_dealt_without_repeats_until_all_were_used(layers, seed, deck):
    hand = [dealt(deck * layers + card, layers, seed) for card in range(layers)]
    assert sorted(hand) == list(range(1, layers + 1))


def test_decks_and_seeds_differ():
    hands = [[dealt(place, 7, seed) for place in range(14)] for seed in range(3)]
    assert len({tuple(hand) for hand in hands}) == 3
    assert hands[0][:7] != hands[0][7:]


# Stages


class Watch(KeepBest):
    """Remembers learning rates, the optimizer's memory before each step, and what was kept."""

    def __init__(self):
        super().__init__()
        self.rates, self.memory, self.scored = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append({group["lr"] for group in trainer.optimizers[0].param_groups})
        self.memory.append(len(trainer.optimizers[0].state))

    def on_validation_end(self, trainer, module):
        self.scored += [] if trainer.sanity_checking else [module.settled]
        super().on_validation_end(trainer, module)


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_runs_once_in_each_stage_with_new_optimizers_and_the_best_epoch_is_of_the_second():
    watch = Watch()
    fit(epochs=4, callbacks=[watch])
    assert len(watch.rates) == 12  # three batches an epoch
    assert all(len(rates) == 1 for rates in watch.rates)
    rates = [rate for (rate,) in watch.rates]
    assert rates[:6] == rates[6:]
    assert rates[:6] == pytest.approx([0.05 * share for share in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0)])
    assert [step for step, filled in enumerate(watch.memory) if not filled] == [0, 6]
    assert watch.scored == [False, False, True, True]
    assert watch.epoch >= 2


class AtTheSwitch(pl.Callback):
    """Keeps the weights that the first stage, of one epoch, ended with."""

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            self.weights = weights(module.each_member()[1])


@pytest.mark.filterwarnings("ignore")
def test_in_the_first_stage_members_are_networks_trained_alone():
    watch = AtTheSwitch()
    fit(epochs=2, callbacks=[watch])
    recipe = Recipe(epochs=1, learning_rate=0.05, schedule="cyclic")
    alone = build("natural", redrawn(network(), 1), recipe=recipe)
    trainer(1).fit(alone, loader())
    for name, value in weights(alone.network).items():
        torch.testing.assert_close(watch.weights[name], value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("baseline", "second"), [("half", [False, True]), ("full", [False, False, True, True]), ("none", [True, True])]
)
def test_stages_share_the_epochs_or_have_all_of_them_each_and_trained_members_need_no_first(baseline, second):
    ours = fit(epochs=2, baseline=baseline)
    assert ["layer" in line for line in ours.history] == second
    assert ours.remarks()["layers"] == f"layers {' '.join(f'{layer:.0f}' for layer in ours.noted('layer'))}"


def test_each_member_has_the_optimizer_it_would_have_alone():
    ours = method()
    recipe = Recipe(learning_rate=0.1, weight_decay=1e-2, momentum=0.9, gradient_clip=0.5)
    ours.recipe = recipe
    together = ours.optimizers_for(recipe)
    twins = [copy.deepcopy(member) for member in ours.each_member()]
    alone = [recipe.build_optimizer(twin.parameters()) for twin in twins]
    for _ in range(2):
        for member, twin, optimizer in zip(ours.each_member(), twins, alone, strict=True):
            for body in (member, twin):
                body.zero_grad()
                F.cross_entropy(body(batch().x), batch().y).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
        ours.configure_gradient_clipping(together)
        together.step()
    for member, twin in zip(ours.each_member(), twins, strict=True):
        for found, wanted in zip(member.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(found, wanted)


# Targets


@pytest.mark.filterwarnings("ignore")
def test_an_epochs_targets_are_all_training_images_once_in_an_order_of_their_own():
    seen = []

    class Watched(DVERGE):
        def target_batch(self, batch):
            target = super().target_batch(batch)
            seen.append((batch.index.tolist(), target.index.tolist()))
            return target

    ours = Watched(Ensemble([network(), network(seed=1)]), THREAT, baseline="none")
    ours.inner = replace(ours.inner, steps=1)
    x, y = images(24)
    trainer(2).fit(ours, DataLoader(TensorDataset(x, y, torch.arange(24)), batch_size=8))
    assert [len(targets) for _, targets in seen] == [8] * 6
    first, second = ([index for _, targets in part for index in targets] for part in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert all(sources != targets for sources, targets in seen)


# The common track


@pytest.mark.parametrize(("epsilon", "length"), [(0.15, 0.15), (8 / 255, 0.07), (0.3, 0.3)])
def test_the_distance_of_distilled_images_follows_the_data_not_the_ramp(epsilon, length):
    ours = method(threat=ThreatModel("linf", epsilon))
    assert ours.near.epsilon == length
    assert method(eps_d="epsilon/2", threat=ThreatModel("linf", epsilon)).near.epsilon == pytest.approx(epsilon / 2)


def test_on_digits_both_stages_have_fifteen_epochs_and_seven_steps_of_0_0214():
    (of,) = plan(suite.load("digits-common", {"methods": {"dverge": None}}))
    ours = of.build_method(of.build_network())
    assert (ours.members, ours.inner.steps, ours.near.epsilon, ours.first_share) == (3, 7, 0.15, 0.5)
    assert ours.near.epsilon / ours.inner.steps == pytest.approx(0.0214, abs=5e-5)
    assert ours.data_passes() == 30
    assert not ours.plus_adv


@pytest.mark.parametrize(("accuracies", "marked"), [([0.985, 0.99], True), ([0.97, 0.99], False), ([], False)])
def test_images_that_others_read_all_along_are_marked_as_inactive(accuracies, marked):
    ours = method()
    ours.history = [{"epoch": k, "distilled_accuracy": value} for k, value in enumerate(accuracies)]
    assert (ours.remarks().get("mark") == "diversity term inactive") == marked


@pytest.mark.filterwarnings("ignore")
def test_the_history_says_how_each_member_reads_the_others_images():
    line = fit(epochs=2).history[-1]
    pairs = {f"member_{i}_on_{j}": line[f"member_{i}_on_{j}"] for i in (1, 2, 3) for j in (1, 2, 3) if i != j}
    assert all(0 <= value <= 1 for value in pairs.values())
    assert line["distilled_accuracy"] == pytest.approx(sum(pairs.values()) / 6, abs=1e-6)
    assert line["diversity"] > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": -1}, "momentum is 0 or more, but found -1"),
        ({"coefficient": -1}, "coefficient is 0 or more, but found -1"),
        ({"baseline": "some"}, "baseline is half, full or none, but found 'some'"),
        ({"threat": ThreatModel("l2", 0.5)}, "within linf: threat.norm is 'l2'"),
        ({"members": 1}, "members is 2 or more, but found 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(BadInput, match=says):
        method(**settings)


def test_one_member_or_a_plain_network_is_refused():
    with pytest.raises(BadInput, match="members is 2 or more, but found 1"):
        DVERGE.compose(lambda member: network(), members=1)
    with pytest.raises(BadInput, match="dverge trains an Ensemble of networks, but found one Sequential"):
        DVERGE(network(), THREAT)
