"""The protocol of evaluation: verdicts with known answers, and what they must not depend on."""

import pandas as pd
import pytest
import torch
from torch import nn

from attacks import BadInput, ThreatModel
from benchmark.data import Images
from benchmark.evaluation import ATTACKS, Job, evaluate, jobs
from benchmark.evaluation_settings import Evaluation
from benchmark.results import evidence
from benchmark.results.worst_case import WORST_CASE, with_worst_case
from benchmark.tasks import expected_parts, same_measurement
from tests.models import Averaged

VERDICT = ["index", "label", "clean_prediction", "prediction", "fooled", "by"]


def settings(*epsilons, attacks=("pgd20", "cw20"), **others):
    radii = list(epsilons or [0.1])
    return Evaluation(epsilons=radii, ranked_at=radii[-1:], attacks=list(attacks), **others)


def random_images(count=12, *, low=0, high=256, size=4, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Images(
        torch.randint(low, high, (count, 1, size, size), generator=generator, dtype=torch.uint8),
        torch.arange(count) % classes,
        torch.arange(count),
    )


def linear(classes=4, size=4, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes)).eval()
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight.sum(1) / 2)  # undecided on a grey image
    return network


def verdicts(frame, *columns):
    chosen = [*VERDICT, *columns]
    return frame.sort_values(["attack", "epsilon", "index"])[["attack", "epsilon", *chosen]].reset_index(drop=True)


class Constant(nn.Module):
    """Says ``answer`` whatever it sees."""

    def __init__(self, answer, classes=4):
        super().__init__()
        self.logits = nn.Parameter(torch.nn.functional.one_hot(torch.tensor(answer), classes).float())

    def forward(self, x):
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_every_attack_leaves_one_verdict_per_image_in_the_columns_of_the_evidence():
    images = random_images(10)
    frame = evaluate(linear(), images, ThreatModel(), settings(0.05, 0.1, batch_size=4))
    assert list(frame.columns) == evidence.SCHEMA.names
    counts = frame.groupby(["attack", "epsilon"]).size().to_dict()
    assert counts == {("clean", 0.0): 10, **{(attack, e): 10 for attack in ("pgd20", "cw20") for e in (0.05, 0.1)}}
    assert all(sorted(rows["index"]) == list(range(10)) for _, rows in frame.groupby(["attack", "epsilon"]))
    assert (frame.fooled == (frame.prediction != frame.label)).all()
    assert ((frame.by != "") == frame.fooled).all()
    assert ((frame.margin > 0) == frame.fooled).all()
    assert frame.confidence.between(0.25, 1).all()
    assert not frame.carried.any()


def test_a_constant_network_is_right_on_its_class_whatever_the_attack():
    frame = evaluate(Constant(2), random_images(12), ThreatModel(), settings(0.1, 0.5))
    assert (frame.fooled == (frame.label != 2)).all()
    assert frame.groupby(["attack", "epsilon"]).fooled.mean().unique().tolist() == [0.75]


def test_pgd_and_cw_find_exactly_the_images_that_a_linear_network_loses_in_linf():
    network, images, epsilon = linear(classes=2), random_images(400, classes=2), 0.05
    with torch.no_grad():
        x, y = images.pixels(), images.labels
        towards = network[1].weight[1] - network[1].weight[0]  # of class 1
        towards = torch.where(y[:, None] == 0, towards, -towards).reshape(x.shape)
        worst = (x + epsilon * towards.sign()).clamp(0, 1)  # the exact optimum, pixel by pixel
        lost = network(worst).argmax(1) != y
    assert 0.05 < lost.float().mean() - (network(x).argmax(1) != y).float().mean() < 0.9
    frame = evaluate(network, images, ThreatModel(), settings(epsilon))
    for attack in ("pgd20", "cw20"):
        assert frame[frame.attack == attack].fooled.tolist() == lost.tolist()


def test_pgd_and_cw_find_exactly_the_images_that_a_linear_network_loses_in_l2():
    network, images, epsilon = linear(classes=2), random_images(400, low=100, high=156, classes=2), 0.1
    with torch.no_grad():
        towards = network[1].weight[1] - network[1].weight[0]
        logits = network(images.pixels())
        margin = (logits[:, 1] - logits[:, 0]) * torch.where(images.labels == 0, 1, -1)  # above 0: wrong
        distance = -margin / towards.norm()
    sure = ((distance - epsilon).abs() > 1e-4).numpy()
    lost = (distance < epsilon).numpy()
    assert 0.02 < lost.mean() - (margin > 0).float().mean() < 0.9
    frame = evaluate(network, images, ThreatModel("l2"), settings(epsilon))
    for attack in ("pgd20", "cw20"):
        assert (frame[frame.attack == attack].fooled.to_numpy() == lost)[sure].all()


def test_a_minimum_norm_attack_counts_only_what_it_found_within_the_radius(monkeypatch):
    network, images = linear(), random_images(40)
    images = images.take(torch.where(network(images.pixels()).argmax(1) == images.labels)[0][:2])
    opposite = (network(images.pixels()).argmin(1) != images.labels).all()
    far = torch.linspace(0, 1, 2)[:, None, None, None]

    def found(network, x, y):
        assert opposite
        return (x + far * (1 - 2 * x)).detach()  # the first image as it was, the second turned to its negative

    monkeypatch.setattr("benchmark.evaluation.carlini_wagner_l2", found)
    for epsilon, fooled in ((4.0, [False, True]), (0.01, [False, False])):
        frame = evaluate(network, images, ThreatModel("l2"), settings(epsilon, attacks=("cw_l2",)))
        assert frame[frame.attack == "cw_l2"].fooled.tolist() == fooled


def test_an_image_that_is_wrong_as_it_stands_is_fooled_under_every_attack(digits_network):
    network, images = digits_network
    frame = evaluate(network, images, ThreatModel(), settings(0.01, 0.3, attacks=("pgd20", "cw20", "pgd20_any")))
    wrong = set(frame[(frame.attack == "clean") & frame.fooled]["index"])
    assert len(wrong) > 3
    rows = frame[frame["index"].isin(wrong)]
    assert rows.fooled.all()
    assert (rows.by == "clean").all()
    assert (rows.prediction == rows.clean_prediction).all()


def test_verdicts_do_not_depend_on_the_batch_size(digits_network):
    network, images = digits_network
    frames = [evaluate(network, images, ThreatModel(), settings(0.1, images=200, batch_size=n)) for n in (64, 200)]
    pd.testing.assert_frame_equal(*map(verdicts, frames))
    survivors = 1 - frames[0][frames[0].attack == "pgd20"].fooled.mean()
    assert 0.2 < survivors < 0.9  # a network on which batches could have made a difference


def test_verdicts_do_not_depend_on_the_order_of_the_images(digits_network):
    network, images = digits_network
    images = images.take(torch.arange(100))
    shuffled = images.take(torch.randperm(100, generator=torch.Generator().manual_seed(1)))
    frames = [evaluate(network, some, ThreatModel(), settings(0.1)) for some in (images, shuffled)]
    assert frames[0]["index"].tolist() != frames[1]["index"].tolist()
    pd.testing.assert_frame_equal(*map(verdicts, frames))


def test_verdicts_depend_on_the_seed_and_on_nothing_drawn_elsewhere(digits_network):
    network, images = digits_network
    first = evaluate(network, images, ThreatModel(), settings(0.1, images=50))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = evaluate(network, images, ThreatModel(), settings(0.1, images=50))
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(verdicts(first, "margin"), verdicts(again, "margin"))
    other = evaluate(network, images, ThreatModel(), settings(0.1, images=50, seed=1))
    assert not verdicts(first, "margin").equals(verdicts(other, "margin"))


def test_restarts_only_ever_fool_more(digits_network):
    network, images = digits_network
    once, thrice = (
        evaluate(network, images, ThreatModel(), settings(0.1, images=100, steps=2, restarts=n)) for n in (1, 3)
    )
    for attack in ("pgd20", "cw20"):
        one, three = (frame[frame.attack == attack].set_index("index").fooled for frame in (once, thrice))
        assert (three | ~one).all()
        assert three.sum() > one.sum()


def test_any_iterate_counts_where_the_last_one_does_not(digits_network):
    network, images = digits_network
    frame = evaluate(network, images, ThreatModel(), settings(0.1, attacks=("pgd20", "pgd20_any"), images=100))
    assert frame[frame.attack == "pgd20_any"].fooled.sum() >= frame[frame.attack == "pgd20"].fooled.sum()


def test_the_worst_case_over_attacks_and_smaller_radii_never_rises_with_epsilon(digits_network):
    network, images = digits_network
    epsilons = [0.02, 0.1, 0.2, 0.5, 1.0]
    frame = evaluate(network, images, ThreatModel(), settings(*epsilons, images=100))
    joined = with_worst_case(frame.assign(experiment="x", checkpoint="last"))
    worst = joined[joined.attack == WORST_CASE].groupby("epsilon").fooled.mean()
    assert worst.index.tolist() == epsilons
    assert worst.is_monotonic_increasing
    assert worst.iloc[-1] > 0.9


def test_autoattack_leaves_no_more_than_pgd_and_names_what_fooled_each_image(digits_network):
    network, images = digits_network
    torch.manual_seed(5)
    before = torch.get_rng_state()
    chosen = settings(0.15, attacks=("pgd20", "cw20", "autoattack"), images=10)
    frame = evaluate(network, images, ThreatModel(), chosen)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    held = 10 - frame.groupby("attack").fooled.sum()
    assert 0 < held["autoattack"] < held["clean"]
    assert held["autoattack"] <= held["pgd20"] + 1
    own = frame[frame.attack == "autoattack"].set_index("index")
    assert set(own.by[own.fooled]) <= {"clean", "apgd-ce", "apgd-t", "fab-t", "square"}
    assert own.engine.str.startswith("fast ").all()
    assert (frame[frame.attack != "autoattack"].engine == "").all()
    assert own.forward[~own.fooled].min() > 1 + 101 + 9 * 101 + 9 * 200  # and what Square asked
    assert own.backward[~own.fooled].min() == own.backward[~own.fooled].max() == 101 + 9 * 101 + 9 * 100
    assert own.forward[own.by == "apgd-ce"].max() < 200


class Killed(Exception):
    pass


def test_an_interrupted_autoattack_goes_on_where_it_was_and_gives_the_same_verdicts(
    digits_network, tmp_path, monkeypatch
):
    monkeypatch.setattr("attacks.tally.KEEP_EVERY", 0.0)
    monkeypatch.setattr("attacks.tally.TELL_EVERY", 0.0)
    network, images = digits_network
    chosen = settings(0.15, attacks=("autoattack",), images=6, slots=4)
    once = evaluate(network, images, ThreatModel(), chosen, place=lambda job: tmp_path / "once" / job.attack)
    told = []

    def tell(what, done, total):
        told.append(what)
        if "apgd-t" in what and len(told) > 400:
            raise Killed

    place = lambda job: tmp_path / "twice" / job.attack  # noqa: E731
    with pytest.raises(Killed):
        evaluate(network, images, ThreatModel(), chosen, place=place, tell=tell)
    assert list((tmp_path / "twice" / "autoattack" / "part-00000.unfinished").iterdir())
    assert "decided" in told[-1]
    assert "robust so far" in told[-1]
    assert "passes/s" in told[-1]
    again = evaluate(network, images, ThreatModel(), chosen, place=place)
    same = [name for name in once.columns if name != "seconds"]
    pd.testing.assert_frame_equal(again[same], once[once.attack == "autoattack"][same].reset_index(drop=True))
    assert [path.name for path in (tmp_path / "twice" / "autoattack").iterdir()] == ["part-00000.parquet"]


def test_both_engines_agree_and_say_which_they_are(digits_network):
    network, images = digits_network
    both = [settings(0.15, attacks=("autoattack",), images=6, engine=engine) for engine in ("fast", "official")]
    fast, official = (evaluate(network, images, ThreatModel(), one) for one in both)
    assert fast.fooled.tolist() == official.fooled.tolist()
    assert official.engine[official.attack == "autoattack"].str.startswith("official ").all()


def test_the_official_engine_has_the_standard_version_alone(digits_network):
    network, images = digits_network
    chosen = settings(0.15, attacks=("autoattack_plus",), images=2, engine="official")
    with pytest.raises(BadInput, match="the official engine runs AutoAttack standard alone, but found plus"):
        evaluate(network, images, ThreatModel(), chosen)


@pytest.mark.parametrize("members", [1, 3])
def test_twenty_steps_cost_twenty_passes_each_way_of_every_member(members):
    network = linear() if members == 1 else Averaged(linear(seed=seed) for seed in range(members)).eval()
    frame = evaluate(network, random_images(7), ThreatModel(), settings(0.1, batch_size=3))
    for attack, passes in (("clean", (1, 0)), ("pgd20", (20, 20)), ("cw20", (20, 20))):
        rows = frame[frame.attack == attack]
        assert (rows.forward == members * passes[0]).all()
        assert (rows.backward == members * passes[1]).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_it_was_in_and_untouched(training):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4))
    network.train(training)
    network[1].eval()  # a mode of its own
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = evaluate(network, random_images(), ThreatModel(), settings(0.1))
    assert [module.training for module in network] == [training, False, training, training, training]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    pd.testing.assert_frame_equal(
        verdicts(first), verdicts(evaluate(network.eval(), random_images(), ThreatModel(), settings(0.1)))
    )


def place_in(folder):
    return lambda job: evidence.evidence_folder(folder, "x", "last", *job)


def test_a_run_that_lost_half_of_its_parts_ends_with_the_same_verdicts(digits_network, tmp_path):
    network, images = digits_network
    chosen = settings(0.05, 0.1, images=90, batch_size=20)
    undisturbed = evaluate(network, images, ThreatModel(), chosen, place=place_in(tmp_path))
    parts = sorted(tmp_path.rglob("part-*.parquet"))
    assert len(parts) == 5 * expected_parts(chosen, "pgd20", len(images)) == 25
    kept = {path: path.stat().st_mtime_ns for path in parts[::2]}
    for path in parts[1::2]:
        path.unlink()
    again = evaluate(network, images, ThreatModel(), chosen, place=place_in(tmp_path))
    assert len(again) == 20 * 12 - 10 * sum(path.name == "part-00004.parquet" for path in parts[1::2])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was finished is not done again
    read = verdicts(evidence.read(tmp_path), "margin")
    pd.testing.assert_frame_equal(
        read, verdicts(undisturbed, "margin"), check_dtype=False, check_categorical=False, check_exact=True
    )
    assert evaluate(network, images, ThreatModel(), chosen, place=place_in(tmp_path)).empty


def test_a_part_that_is_there_means_that_its_attack_was_finished(tmp_path, monkeypatch):
    def torn(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        evaluate(linear(), random_images(), ThreatModel(), settings(0.1), place=place_in(tmp_path))
    assert list(tmp_path.rglob("part-*.parquet")) == []


def test_the_first_images_are_taken_and_never_more_than_there_are():
    images = random_images(10)
    few = evaluate(linear(), images, ThreatModel(), settings(0.1, images=3))
    assert sorted(few["index"].unique()) == [0, 1, 2]
    assert evaluate(linear(), images, ThreatModel(), settings(0.1, images=1000))["index"].nunique() == 10


def test_autoattack_runs_on_the_ranked_checkpoint_and_radii_only():
    chosen = settings(0.1, 0.2, attacks=("autoattack", "pgd20"))
    assert list(jobs(chosen, ranked=True)) == [
        Job("clean", 0.0),
        Job("autoattack", 0.2),
        Job("pgd20", 0.1),
        Job("pgd20", 0.2),
    ]
    assert list(jobs(chosen, ranked=False)) == [Job("clean", 0.0), Job("pgd20", 0.1), Job("pgd20", 0.2)]


def test_progress_is_told_from_nothing_to_almost_all():
    told = []
    evaluate(
        linear(), random_images(6), ThreatModel(), settings(0.1, batch_size=3), tell=lambda *news: told.append(news)
    )
    assert [done for _, done, _ in told] == list(range(0, 600, 100))  # in hundredths of a part
    assert {total for _, _, total in told} == {600}
    assert told[2][0] == "pgd20 at 0.1"


def test_an_unknown_attack_is_told_with_those_that_there_are():
    with pytest.raises(BadInput, match="there is no attack 'pgd': .*" + ", ".join(ATTACKS)):
        evaluate(linear(), random_images(), ThreatModel(), settings(0.1, attacks=("pgd",)))
    with pytest.raises(BadInput, match="use cw20"):
        evaluate(linear(), random_images(), ThreatModel("linf"), settings(0.1, attacks=("cw_l2",)))


class Odd(nn.Module):
    """A linear network with something wrong about it."""

    def __init__(self, output):
        super().__init__()
        self.network, self.output = linear(), output

    def forward(self, x):
        return self.output(self.network(x), x)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda z, x: z * float("nan"), "NaN"),
        (lambda z, x: (z, z), "tuple"),
        (lambda z, x: z.sum(1), "shape"),
        (lambda z, x: z[:, :3], "labels lie in 0..2"),
    ],
)
def test_a_network_that_cannot_be_judged_is_refused_in_a_sentence(output, says):
    with pytest.raises(BadInput, match=says):
        evaluate(Odd(output), random_images(), ThreatModel(), settings(0.1))


def test_images_that_a_broken_gradient_made_do_not_count_as_fooled():
    def rooted(logits, x):  # where a pixel is 0 the root has a value but no slope
        return logits * torch.where(x > 0, x.sqrt(), 0.0).sum((1, 2, 3))[:, None]

    images = random_images()
    images.images[:, :, 0] = 0
    with pytest.raises(BadInput, match=r"pgd20 found a gradient that is no number \(NaN\)"):
        evaluate(Odd(rooted), images, ThreatModel("l2"), settings(0.5))


def test_verdicts_of_two_ways_of_measuring_are_not_mixed_in_one_folder(tmp_path):
    chosen = settings(0.1)
    about = {"weights": "abc", "dataset": "digits", "norm": "linf", "path": tmp_path / "last.safetensors"}
    same_measurement(tmp_path, "x", "last", chosen, **about)
    same_measurement(tmp_path, "x", "last", settings(0.1, 0.2, attacks=("pgd20",)), **about)  # more of the same
    same_measurement(tmp_path, "x", "best", settings(0.1, seed=1), **about)
    for key, value in {
        "seed": 1,
        "steps": 10,
        "step_size": "epsilon/10",
        "images": 5,
        "batch_size": 3,
        "restarts": 2,
    }.items():
        with pytest.raises(BadInput, match=f"measured with {key} .* now it is {value}"):
            same_measurement(tmp_path, "x", "last", settings(0.1, **{key: value}), **about)
    for key, value in {"weights": "def", "dataset": "mnist", "norm": "l2"}.items():
        with pytest.raises(BadInput, match=f"measured with {key} .* now it is {value}"):
            same_measurement(tmp_path, "x", "last", chosen, **(about | {key: value}))


@pytest.mark.parametrize(
    ("images", "batch", "test", "parts"),
    [(40, 20, 400, 2), (41, 20, 400, 3), (None, 200, 400, 2), (5, 200, 400, 1), (900, 100, 400, 4)],
)
def test_finished_parts_are_counted_as_they_are_written(images, batch, test, parts):
    chosen = settings(0.1, images=images, batch_size=batch)
    assert expected_parts(chosen, "pgd20", test) == parts


def test_evaluate_is_a_library_function():
    import benchmark

    frame = benchmark.evaluate(linear(), random_images(), ThreatModel(), benchmark.Evaluation(attacks=["pgd20"]))
    assert frame.epsilon.unique().tolist() == [0.0, 8 / 255]
    with pytest.raises(AttributeError, match="no attribute"):
        _ = benchmark.evaluat
