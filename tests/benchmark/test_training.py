"""Training one experiment: what it leaves, what it costs, and that an interruption changes nothing."""

import itertools
import os
from types import SimpleNamespace

import pytest
import torch
import yaml

from attacks import BadInput
from attacks.modes import in_mode
from benchmark import suite
from benchmark.cost import Cost, held_memory, peak_memory
from benchmark.data import load
from benchmark.experiment import plan
from benchmark.storage import load_weights, sha256
from benchmark.tasks import restore
from benchmark.training import CARD, RESUME, train
from methods import catalogue
from methods.selection import held_out_verdicts

SMALL = {"recipe.epochs": 3, "dataset.train_images": 96, "dataset.validation_images": 30, "inner_steps": 2}
SMALL |= {"dataset.labels": 30}
every_method = pytest.mark.parametrize("name", catalogue.names())


def experiment(name, own=None, **changes):
    changed = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return plan(suite.load("quickstart", changed | {"methods": {name: own}}))[0]


def splits(of):
    chosen = of.dataset
    return load("digits", train_images=chosen.train_images, validation_images=chosen.validation_images)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupted_train(of, folder, after, **more):
    def tell(what, done, total):
        assert (what, total) == ("training", of.recipe.epochs)
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(of, folder, tell=tell, **more)


def hashes(card):
    return {name: kept["sha256"] for name, kept in card["weights"].items()}


def without_costs(card):
    """What of a card must not depend on the machine's mood."""
    measured = ("seconds", "device_hours", "peak_memory_mib", "memory_growth_mib")
    return {key: value for key, value in card.items() if not key.endswith(measured)}


@every_method
def test_a_training_interrupted_after_every_epoch_ends_with_the_same_bytes(name, tmp_path):
    of = experiment(name, own=SHORT.get(name))
    undisturbed = train(of, tmp_path / "undisturbed")
    for after in (1, 2, 3):  # after 3 nothing is left but to save the weights
        interrupted_train(of, tmp_path / "broken", after)
        assert not (tmp_path / "broken" / CARD).exists()
    resumed = train(of, tmp_path / "broken")
    assert without_costs(resumed) == without_costs(undisturbed)
    for file, digest in hashes(resumed).items():
        assert sha256(tmp_path / "broken" / f"{file}.safetensors") == digest
        assert sha256(tmp_path / "undisturbed" / f"{file}.safetensors") == digest


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaged_weights_survive_an_interruption(average, tmp_path):
    of = experiment("fast_at", recipe__average=average, recipe__epochs=2, own={"start": "previous"})
    undisturbed = train(of, tmp_path / "undisturbed")
    interrupted_train(of, tmp_path / "broken", 1)
    assert hashes(train(of, tmp_path / "broken")) == hashes(undisturbed)
    assert hashes(undisturbed) != hashes(train(experiment("fast_at", recipe__epochs=2), tmp_path / "plain"))


def test_an_interruption_within_an_epoch_costs_that_epoch_only(tmp_path, monkeypatch):
    from methods.origins.pgd_at import PGDAT

    of, steps = experiment("pgd_at"), []
    undisturbed = train(of, tmp_path / "undisturbed")
    loss = PGDAT.training_loss

    def counted(self, batch):
        steps.append(self.current_epoch)
        if len(steps) == 4:
            raise Interrupted
        return loss(self, batch)

    monkeypatch.setattr(PGDAT, "training_loss", counted)
    with pytest.raises(Interrupted):
        train(of, tmp_path / "broken")
    assert steps == [0, 0, 1, 1]  # two batches of 64 and 32 an epoch
    assert hashes(train(of, tmp_path / "broken")) == hashes(undisturbed)
    assert steps == [0, 0, 1, 1, 1, 1, 2, 2]


# Forward passes per image and epoch with two inner steps: the attack's, and those of the loss.
COSTS = {
    "natural": (1, 1),
    "fgsm_at": (3, 3),
    "kurakin": (1.5, 1.5),
    "pgd_at": (3, 3),
    "alp": (5, 4),
    "trades": (5, 4),
    "mart": (4, 4),
    "llr": (5, 6),
    "tla": (2 + 1 + 4 + 2 * 9 / 96, 6),  # a tenth of the images as a pool, in each of two batches
    "eat": (3, 3),  # without sources
    "adp": (3, 3),
    "gal": (3, 6),
    "dverge": ((3 + 2 * 15) / 3, (3 + 2 * 12) / 3),  # one epoch of the first stage, two of the second
    "fast_at": (2, 2),
    "gradalign": (3, 4),
    "fgsmr": (3, 5),
    "cat_curriculum": (1 + (0 + 48 + 99) / 96 / 3,) * 2,  # steps of all groups in lessons 0, 1 and 2
    "dynamic_at": (4, 4),
    "single_step_checkpoints": (2, 2),
    "sads": (2, 2),
    "sat_r": (4, 4),
    "atda": (3, 3),
    "fat": (3, 3),
    "avmixup": (3, 3),
    "feature_scatter": (3, 2),
    "smooth_at": (3, 3),
    "adv_interp": (3, 2),
    "rst": (5, 4),
    "ss_rotation": (15, 15),
    "pretraining": (3, 3),
    "ssdrl": (4, 3),
    "uat": (4, 3),
    "zhai": (3 + 44 / 64, 3),  # of 64 rows the unlabelled share, as of 96 images, is predicted first
    "iaat": ((4 + 10 + 10) / 3, (3 + 7 + 7) / 3),  # a warm-up of one epoch
    "mma": (2, 2),  # while no image is surely right
    "cat_customized": (4, 3),
    "free_at": (1, 1),
    "yopo": (5, 5),
    "adt": (11, 11),
    "bilateral": (3, 2),
    "hypersphere": (3, 3),
    "msd": (9, 3),
    "avg_max": (10, 7),
    "rlfat": (4, 4),
    "l1_penalty": (3, 3),
    "ccat": (3.5, 2),
}
# What a method spends on held-out images beyond the selection, in three epochs.
HELD_OUT = {"cat_curriculum": (1 + 2 * 2 + 3, 2 * 1 + 2)}  # A_0; A_1 now and as the lesson began; A_2
# Settings with which the passes do not depend on the images, and fill the epochs.
EXACT = {
    "eat": {"sources": []},
    "fat": {"tau": 2},
    "free_at": {"replays": 3},
    "dynamic_at": {"c_max": 0.0},
    "single_step_checkpoints": {"checkpoints": 1},
}
ENSEMBLES = {"adp", "gal", "dverge"}
# What three epochs of a few images need: free_at's would be one pass, eat's sources have learned next to nothing.
SHORT = {"free_at": {"replays": 1}, "eat": {"source_floor": 0}}
UNTRAINED = {"mma"}  # with learning rate 0 no image becomes surely right


@every_method
def test_the_card_says_what_was_trained_and_what_it_cost(name, tmp_path):
    of = experiment(name, own=EXACT.get(name), **({"recipe__learning_rate": 0.0} if name in UNTRAINED else {}))
    card = train(of, tmp_path)
    assert yaml.safe_load((tmp_path / CARD).read_text()) == card
    assert (card["experiment"], card["method"], card["status"], card["seed"]) == (of.name, name, "done", 0)
    assert card["category"] == catalogue.get(name).card.category
    assert card["identity"]["recipe"]["epochs"] == 3
    assert card["training_images"] == 96
    assert card["parameters"] == sum(value.numel() for value in of.build_network().parameters())
    forward, backward = COSTS[name]
    assert (card["forward_passes"], card["backward_passes"]) == (3 * forward, 3 * backward)
    epochs = 1 if name == "free_at" else 3
    held_out = epochs * 30 / 96  # images held out for each image trained on
    assert card["members"] == (3 if name in ENSEMBLES else 1)
    held_out *= card["members"]
    selection = (1, 0) if name == "natural" else (1 + 2 * 11, 2 * 10)
    if catalogue.get(name).single_step:  # the alarm's PGD-10 is that of the selection, its FGSM comes on top
        selection = (selection[0] + 2, selection[1] + 1)
    if name == "ss_rotation":  # clean images in train mode
        selection = (selection[0] + 1, selection[1])
    if name == "kurakin":  # step l.l. is watched, too
        selection = (selection[0] + 2, selection[1] + 1)
    if name in ("msd", "avg_max"):  # PGD-10 in three norms
        selection = (1 + 3 * 11, 3 * 10)
    if name == "gal":  # an input gradient of each member
        selection = (selection[0] + 1, selection[1] + 1)
    if name == "mma":  # two steps and eleven questions where the boundary lies
        selection = (selection[0] + 2 + 11, selection[1] + 2)
    if name == "ccat":  # its own attack from two starts
        selection = (1 + 2 * 21 + 1, 2 * 10)
    more = HELD_OUT.get(name, (0, 0))
    selection = (selection[0] + more[0] / 3, selection[1] + more[1] / 3)
    assert (card["selection_forward_passes"], card["selection_backward_passes"]) == pytest.approx(
        (held_out * selection[0], held_out * selection[1])
    )
    assert card["seconds"] > 0
    assert card["devices"] == 1
    assert card["device_hours"] == pytest.approx(card["seconds"] / 3600, abs=1e-5)
    assert card["peak_memory_mib"] > 0
    assert card["peak_memory_of"] == peak_memory()[0]
    assert 0 <= card["memory_growth_mib"] < card["peak_memory_mib"]
    assert (card["reconstruction"], card["broken"]) == (
        catalogue.get(name).card.reconstruction,
        catalogue.get(name).card.broken,
    )
    assert card["trials"] == catalogue.get(name).card.trials.get("digits", 1)
    assert {"atbench", "torch", "pyautoattack"} <= card["versions"].keys()
    assert [line["epoch"] for line in card["history"]] == list(range(epochs))
    for file, kept in card["weights"].items():
        assert sha256(tmp_path / f"{file}.safetensors") == kept["sha256"]
    assert not (tmp_path / RESUME).exists()


def test_costs_go_on_counting_after_a_resumption(tmp_path, monkeypatch):
    of, clock, memory = experiment("natural"), iter(range(0, 10**6, 10)), iter([50.0, 800.0, 60.0])
    monkeypatch.setattr("benchmark.cost.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr("benchmark.cost.peak_memory", lambda: ("a made-up memory", next(memory, 60.0)))
    held = iter([30.0, 300.0, 10.0])  # when the training began, and when it was taken up again
    monkeypatch.setattr("benchmark.cost.held_memory", lambda: next(held))
    for after in (1, 2):
        interrupted_train(of, tmp_path, after)
    card = train(of, tmp_path)
    assert (card["seconds"], card["selection_seconds"]) == (30, 30)  # ten of each in each of three epochs
    assert card["device_hours"] == pytest.approx(30 / 3600, abs=1e-6)
    assert (card["peak_memory_mib"], card["peak_memory_of"]) == (800, "a made-up memory")
    assert card["memory_growth_mib"] == 500  # 800 in the second process, which held 300 before
    assert card["forward_passes"] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a GPU something else is counted")
def test_the_memory_held_before_training_is_no_peak_of_training():
    before = bytearray(300 * 2**20)
    assert held_memory() > 300
    del before
    held = held_memory()
    assert held > 0
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert peak_memory()[1] < held + 100


def test_device_hours_count_every_device(monkeypatch):
    cost, moments = Cost(), iter([0.0, 100.0, 100.0, 130.0])
    monkeypatch.setattr("benchmark.cost.time.perf_counter", lambda: next(moments))
    network = torch.nn.Linear(1, 1)
    module = SimpleNamespace(network=network, classifier=lambda: network, companions=list, device="cpu")
    trainer = SimpleNamespace(
        world_size=4, current_epoch=0, strategy=SimpleNamespace(reduce=lambda value, reduce_op: 2 * value)
    )
    cost.on_train_epoch_start(trainer, module)
    cost.on_validation_start(trainer, module)
    cost.on_validation_end(trainer, module)
    found = cost.of_devices()
    assert (found["devices"], found["device_hours"]) == (4, round(400 / 3600, 6))
    assert found["peak_memory_mib"] > 1.5 * peak_memory()[1]  # the largest of all ranks, here made up as twice ours
    assert cost.seconds_of == {0: {"seconds": 100.0, "selection_seconds": 30.0}}


def test_the_card_names_the_epoch_of_a_collapse(tmp_path, monkeypatch):
    """Counts of robust, clean and all images, then of those right under FGSM and under PGD-10, epoch by epoch."""
    counts = [[10, 20, 30, 15, 12], [14, 20, 30, 15, 16], [0, 22, 30, 29, 7]]
    method = catalogue.get("fast_at")
    monkeypatch.setattr(method, "held_out_counts", lambda self, batch: torch.tensor(counts[self.current_epoch]))
    of = experiment("fast_at")
    interrupted_train(of, tmp_path, 2)
    card = train(of, tmp_path)
    assert card["catastrophic_overfitting"] == 2
    assert card["label_leaking"] == [2]
    assert [line["held_out_pgd10"] for line in card["history"]] == [12 / 30, 16 / 30, 7 / 30]
    assert (card["weights"]["best"]["epoch"], card["weights"]["last"]["epoch"]) == (1, 2)


def test_a_sound_training_is_not_marked(tmp_path):
    card = train(experiment("pgd_at", recipe__epochs=1), tmp_path)
    assert (card["catastrophic_overfitting"], card["label_leaking"]) == (None, [])


def test_pgd_at_of_the_common_suite_costs_eight_passes_each_way_an_epoch(tmp_path):
    card = train(experiment("pgd_at", inner_steps=7, recipe__epochs=1), tmp_path)
    assert (card["forward_passes"], card["backward_passes"]) == (8, 8)


@pytest.mark.parametrize("name", ["natural", "trades", "adp"])
def test_the_best_weights_have_the_score_that_the_card_gives_them(name, tmp_path):
    of = experiment(name, recipe__epochs=4, recipe__learning_rate=0.3)
    card = train(of, tmp_path)
    held_out = splits(of).validation
    for file, kept in card["weights"].items():
        network = restore(of, tmp_path / f"{file}.safetensors", kept["sha256"]).cpu()
        x, y = held_out.pixels(), held_out.labels
        if name == "natural":
            with torch.no_grad():
                clean = robust = network(x).argmax(1) == y
        else:
            with in_mode(network, "eval"):
                clean, _, robust = held_out_verdicts(network, x, y, held_out.index, of.threat, seed=of.seed)
        assert robust.sum().item() / len(y) == kept["held_out_robust"]
        line = card["history"][kept["epoch"]]
        assert (robust.sum().item() / len(y), clean.sum().item() / len(y)) == (
            line["held_out_robust"],
            line["held_out_clean"],
        )
    scores = [(line["held_out_robust"], line["held_out_clean"], line["epoch"]) for line in card["history"]]
    assert max(scores)[2] == card["weights"]["best"]["epoch"]
    assert card["weights"]["last"]["overfitting_gap"] == max(scores)[0] - scores[-1][0]


def test_the_networks_first_weights_follow_from_the_seed_alone():
    first = experiment("natural").build_network().state_dict()
    torch.manual_seed(99)
    same = experiment("mart", recipe__learning_rate=0.5).build_network().state_dict()
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    other = experiment("natural", seeds=[1]).build_network().state_dict()
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_the_first_member_of_an_ensemble_begins_like_a_single_network_and_every_other_differs():
    single = experiment("natural").build_network().state_dict()
    torch.manual_seed(99)
    ensemble, larger = (experiment("adp", own={"members": k}).build_network().state_dict() for k in (3, 5))
    members = [{key: larger[f"members.{k}.{key}"] for key in single} for k in range(5)]
    assert all(torch.equal(value, larger[key]) for key, value in ensemble.items())
    assert all(torch.equal(value, members[0][key]) for key, value in single.items())
    weight = next(key for key, value in single.items() if value.ndim == 4)  # of the first convolution
    assert all(not torch.equal(a[weight], b[weight]) for a, b in itertools.combinations(members, 2))
    other = experiment("adp", seeds=[1]).build_network().state_dict()
    assert all(not torch.equal(other[f"members.{k}.{weight}"], members[k][weight]) for k in range(3))


@pytest.mark.parametrize("own", [{}, {"plus_adv": "tf"}])
def test_an_ensembles_file_holds_all_members_and_restores_the_one_classifier(own, tmp_path):
    of = experiment("adp", own=own, recipe__epochs=1)
    card = train(of, tmp_path)
    weights = load_weights(tmp_path / "last.safetensors")
    assert {name.split(".")[1] for name in weights} == {"0", "1", "2"}
    network = restore(of, tmp_path / "last.safetensors", card["weights"]["last"]["sha256"]).cpu()
    x = splits(of).validation.pixels()
    with torch.no_grad():
        mean = torch.stack([member(x).softmax(1) for member in network.members]).mean(0)
        torch.testing.assert_close(network(x).exp(), mean)


def test_a_finished_experiment_is_only_read(tmp_path):
    of = experiment("natural", recipe__epochs=1)
    card = train(of, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert train(of, tmp_path, tell=lambda *_: pytest.fail("it was trained again")) == card
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named_with_the_mend(kept, tmp_path):
    of = experiment("natural")
    interrupted_train(of, tmp_path, 1)
    path = tmp_path / RESUME
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(BadInput) as caught:
        train(of, tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)
    path.unlink()
    train(of, tmp_path)


def test_a_loss_that_is_no_number_ends_the_training_and_spoils_no_checkpoint(tmp_path):
    of = experiment("pgd_at", recipe__learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"lower recipe.learning_rate \(1e\+30\)"):
        train(of, tmp_path)
    assert not (tmp_path / CARD).exists()
    with pytest.raises(FloatingPointError):  # and it ends the same way the next time
        train(of, tmp_path)


def test_weights_that_the_very_last_step_broke_are_not_saved(tmp_path):
    # A single step, whose loss is sound and whose weight decay alone leaves float32's range.
    broken = {"recipe__learning_rate": 1e38, "recipe__weight_decay": 1e4, "recipe__schedule": "constant"}
    of = experiment("natural", **broken, recipe__epochs=1, dataset__train_images=64)
    with pytest.raises(FloatingPointError, match="the weights hold NaN or infinity"):
        train(of, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / CARD).exists()


def test_weights_are_refused_that_are_not_the_ones_of_the_card(tmp_path):
    of = experiment("natural", recipe__epochs=1)
    card = train(of, tmp_path)
    path = tmp_path / "last.safetensors"
    assert restore(of, path, card["weights"]["last"]["sha256"]).training is False
    with pytest.raises(BadInput, match="is not the file that its card names"):
        restore(of, path, "0" * 64)
    assert load_weights(path).keys() == of.build_network().state_dict().keys()


def test_training_leaves_the_random_state_of_other_networks_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    experiment("natural").build_network()
    assert torch.equal(torch.get_rng_state(), before)
