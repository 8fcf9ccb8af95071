"""Sweeps over radii: what is carried from where, what is attacked, and what a killed sweep repeats."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from attacks import BadInput, ThreatModel
from attacks.engine import Job as Slot
from attacks.engine import Outcome
from benchmark import cli, commands, suite, sweep
from benchmark.data import Images
from benchmark.evaluation import ATTACKS, Job, evaluate, jobs
from benchmark.evaluation_settings import Evaluation
from benchmark.experiment import plan
from benchmark.fixed_steps import Attacked
from benchmark.journal import Journal
from benchmark.results import evidence, pictures
from benchmark.results.carried import unfounded
from benchmark.tasks import Places, expected_parts
from tests.benchmark.make_report import verdicts as made_up
from tests.models import linear

EPSILONS = [0.01, 0.02, 0.025, 0.03, 0.04]  # the network's own radii lie between 0.015 and 0.043


def settings(how, ranked=(0.025,), **others):
    chosen = {"attacks": ["autoattack"], "batch_size": 20, "images": 50, "engine": "official"} | others
    return Evaluation(epsilons=EPSILONS, ranked_at=list(ranked), sweep=how, **chosen)


def grey_images(count=50):
    """Images of a linear network's own classes, in the middle of the range, so that nothing is clipped."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(100, 156, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = linear()(pixels.float() / 255).argmax(1)
    labels[::10] = (labels[::10] + 1) % 10  # some are misread as they stand
    return Images(pixels, labels, torch.arange(count) + 1000)


class Scripted:
    """An attack that is as strong as can be on a linear network, and remembers whom it was sent against."""

    def __init__(self, blind=()):
        self.blind, self.seen = blind, []

    def __call__(self, subject, x, y, index):
        epsilon = subject.threat.epsilon
        self.seen += [(epsilon, one) for one in index.tolist()]
        weight = subject.network.weight
        lead = subject.network(x).gather(1, y[:, None]) - subject.network(x)
        size = (weight[y][:, None] - weight[None]).abs().sum(2)
        target = (lead / size).masked_fill(size == 0, torch.inf).argmin(1)
        pictures = x + epsilon * (weight[target] - weight[y]).sign().view_as(x)
        held = torch.tensor([(epsilon, one) in self.blind for one in index.tolist()])[:, None, None, None]
        passes = torch.full((len(x),), 7.0)
        return Attacked(torch.where(held, x, pictures.clamp(0, 1)), ["scripted"] * len(x), passes, passes, [])


@pytest.fixture
def attack(monkeypatch):
    scripted = Scripted()
    monkeypatch.setitem(ATTACKS, "autoattack", scripted)
    return scripted


def swept(how, ranked=(0.025,), **others):
    frame = evaluate(linear(), grey_images(), ThreatModel(), settings(how, ranked), **others)
    return frame[frame.attack == "autoattack"].set_index(["epsilon", "index"]).sort_index()


def place_in(folder):
    return lambda job: evidence.evidence_folder(folder, "x", "last", *job)


def test_without_a_sweep_autoattack_runs_where_models_are_ranked_and_that_is_the_default():
    assert Evaluation().sweep == "none"
    assert [job.epsilon for job in jobs(settings("none"), ranked=True) if job.attack == "autoattack"] == [0.025]


@pytest.mark.parametrize("how", ["strict", "descending"])
def test_a_sweep_begins_where_models_are_ranked_and_goes_down_from_the_largest_other_radius(how):
    chosen = settings(how, ranked=(0.02, 0.03), attacks=["pgd20", "autoattack"])
    order = [job.epsilon for job in jobs(chosen, ranked=True) if job.attack == "autoattack"]
    assert order == [0.02, 0.03, 0.04, 0.025, 0.01]
    assert not [job for job in jobs(chosen, ranked=False) if job.attack == "autoattack"]
    assert [job.epsilon for job in jobs(chosen, ranked=True) if job.attack == "pgd20"] == EPSILONS


def test_a_strict_sweep_attacks_every_image_at_every_radius(attack):
    frame = swept("strict")
    assert len(attack.seen) == 5 * 50
    assert not frame.carried.any()


def test_a_descending_sweep_finds_what_a_strict_one_does_with_far_fewer_attacks(attack):
    strict = swept("strict")
    attack.seen.clear()
    frame = swept("descending")
    compared = ["label", "clean_prediction", "fooled"]
    pd.testing.assert_frame_equal(frame[compared], strict[compared])
    assert len(attack.seen) < 0.8 * 5 * 50
    assert set(frame.index[~frame.carried]) == set(attack.seen)
    assert 0.1 < 1 - strict.loc[0.025].fooled.mean() < 0.9  # a network on which it could have made a difference


def test_of_the_radii_that_are_not_ranked_an_image_that_holds_pays_at_one_alone(attack):
    frame = swept("descending")
    paid = frame[~frame.carried & ~frame.fooled].drop(index=0.025, level="epsilon")
    assert paid.groupby("index").size().max() == 1


def test_where_models_are_ranked_nothing_is_ever_carried(attack):
    frame = swept("descending", ranked=(0.02, 0.03))
    for epsilon in (0.02, 0.03):
        assert not frame.loc[epsilon].carried.any()
    assert frame.loc[[0.01, 0.025, 0.04]].carried.any()


def test_a_carried_verdict_is_the_row_it_comes_from_without_its_cost(attack):
    frame = swept("descending")
    for (epsilon, index), row in frame[frame.carried].iterrows():
        image = frame.xs(index, level="index")
        fooled_before, held_beyond = image[image.index <= epsilon], image[image.index > epsilon]
        source = fooled_before if row.fooled else held_beyond
        source = source[~source.carried & (source.fooled == row.fooled)]
        same = ["prediction", "by", "margin", "confidence", "engine"]
        assert (source[same].astype(object) == row[same].astype(object)).all(axis=1).any()
        assert (row.forward, row.backward, row.seconds) == (0, 0, 0)


def test_an_image_fooled_at_a_small_radius_is_fooled_beyond_though_the_attack_failed_in_between(attack):
    lost = swept("strict").loc[0.02].query("fooled and by == 'scripted'").index[0]
    attack.blind = {(0.03, lost), (0.04, lost)}
    frame = swept("descending", ranked=(0.02, 0.03)).xs(lost, level="index")
    assert frame.fooled.to_dict() == {0.01: False, 0.02: True, 0.025: True, 0.03: False, 0.04: True}
    assert frame.carried[[0.025, 0.04]].all()


@examples(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(EPSILONS), st.integers(0, 5), st.booleans(), st.booleans()), max_size=25))
def test_what_is_carried_follows_from_verdicts_of_other_radii(rows):
    rows = list({row[:2]: row for row in rows if row[0] != 0.025}.values())
    known = pd.DataFrame(rows, columns=["epsilon", "index", "fooled", "carried"])
    found = sweep.carried(known, 0.025).set_index("index")
    full = known[~known.carried.astype(bool)]
    for index, image in full.groupby("index"):
        fooled = image.fooled[image.epsilon <= 0.025].any()
        held = not image.fooled[image.epsilon > 0.025].all() if (image.epsilon > 0.025).any() else False
        assert (index in found.index) == (fooled or held)
        assert not (fooled or held) or found.fooled[index] == fooled
    assert set(found.index) <= set(full["index"])


@pytest.mark.parametrize("die_at", range(1, 12, 2))
def test_a_killed_sweep_repeats_nothing_and_gives_the_same_verdicts(attack, tmp_path, monkeypatch, die_at):
    whole = swept("descending")
    asked, attack.seen = set(attack.seen), []
    write = evidence.write_part
    left = iter([True] * die_at + [False])

    def dying(*words):
        if not next(left, True):
            raise KeyboardInterrupt
        return write(*words)

    monkeypatch.setattr(evidence, "write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        swept("descending", place=place_in(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert len(kept) == die_at
    swept("descending", place=place_in(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    read = evidence.read(tmp_path).query("attack == 'autoattack'").set_index(["epsilon", "index"]).sort_index()
    compared = ["prediction", "fooled", "by", "margin", "forward", "carried"]
    pd.testing.assert_frame_equal(
        read[compared], whole[compared], check_dtype=False, check_categorical=False, check_index_type=False
    )
    assert set(attack.seen) == asked
    assert len(attack.seen) <= len(asked) + 20  # the part that was in the works
    assert all(
        len(evidence.finished_parts(place_in(tmp_path)(job))) == expected_parts(settings("descending"), job.attack, 50)
        for job in jobs(settings("descending"), ranked=True)
    )


def test_an_unfinished_part_of_another_sweep_is_not_taken_for_ones_own(tmp_path, monkeypatch):
    known = []

    def looking(subject, x, y, index):
        known.append((subject.threat.epsilon, subject.unfinished.name, Journal(subject.unfinished).read()))
        return Scripted()(subject, x, y, index)

    monkeypatch.setitem(ATTACKS, "autoattack", looking)
    other = Journal(place_in(tmp_path)(Job("autoattack", 0.04)) / "part-00000.unfinished")
    other.keep("square", [Outcome(Slot(3, 0), torch.zeros(1, 8, 8), 1, 1)])
    swept("descending", place=place_in(tmp_path))
    assert {name for epsilon, name, _ in known if epsilon == 0.025} == {f"part-{n:05d}.unfinished" for n in range(3)}
    assert not any(kept for *_, kept in known)
    assert not list(tmp_path.rglob("*unfinished"))


def test_a_part_with_carried_verdicts_is_made_anew_where_images_are_to_be_attacked_in_full(attack, tmp_path):
    swept("descending", place=place_in(tmp_path))
    attack.seen.clear()
    swept("descending", place=place_in(tmp_path))
    assert not attack.seen
    swept("strict", place=place_in(tmp_path))
    assert {epsilon for epsilon, _ in attack.seen} == {0.01, 0.02, 0.03, 0.04}  # but not where it was in full before
    assert not evidence.read(tmp_path).carried.any()
    attack.seen.clear()
    swept("descending", place=place_in(tmp_path))
    assert not attack.seen


def test_networks_that_answer_at_random_are_swept_strictly():
    with pytest.raises(BadInput, match=r"answer at random.*take sweep strict"):
        list(jobs(settings("descending", attacks=["autoattack_rand"]), ranked=True))
    assert len(list(jobs(settings("strict", attacks=["autoattack_rand"]), ranked=True))) == 6


def test_a_suite_knows_what_is_left_of_a_sweep(tmp_path, monkeypatch):
    changes = {"methods": {"natural": None}, "evaluation.attacks": ["autoattack"], "evaluation.images": 20}
    radii = {"evaluation.epsilons": [0.1, 0.2], "evaluation.ranked_at": [0.1], "evaluation.sweep": "descending"}
    chosen = suite.load("quickstart", changes | radii)
    (experiment,) = plan(chosen)
    places = Places(tmp_path / "checkpoints", tmp_path / "report")
    (places.checkpoints / experiment.name).mkdir(parents=True)
    (places.checkpoints / experiment.name / commands.CARD).write_text("status: done")
    monkeypatch.setattr(commands, "_card_is_kept", lambda *_: True)
    monkeypatch.setattr(commands.ProbeTask, "left", lambda *_: [])

    def left():
        return [task.attacks for task in commands._unfinished(experiment, chosen, places, {0: 400}, "cheap")]

    def finish(checkpoint, attack, epsilon, **columns):
        folder = evidence.evidence_folder(places.report, experiment.name, checkpoint, attack, epsilon)
        evidence.write_part(folder, made_up(attack, epsilon, torch.zeros(20, dtype=bool).numpy(), **columns), 0)

    assert left() == [("clean",), ("autoattack",)]
    for checkpoint in chosen.evaluation.checkpoints:
        finish(checkpoint, "clean", 0.0)
    finish(chosen.evaluation.ranked_checkpoint, "autoattack", 0.1)
    assert left() == [("autoattack",)]
    finish(chosen.evaluation.ranked_checkpoint, "autoattack", 0.2, carried=True)
    assert left() == []
    finish(chosen.evaluation.ranked_checkpoint, "autoattack", 0.1, carried=True)
    assert left() == [("autoattack",)]


def test_a_sweep_may_be_added_to_a_report_that_was_measured_without():
    plain = suite.load("quickstart").as_plain()
    added = suite.load("quickstart", {"evaluation.sweep": "descending"}).as_plain()
    assert commands._first_difference(plain, added) is None
    del plain["evaluation"]["sweep"]  # as older reports have it
    assert commands._first_difference(plain, added) is None


def test_the_command_line_has_a_word_for_it(capsys):
    chosen = cli._parser().parse_args(["run", "quickstart", "--sweep", "descending"]).run
    assert cli._changes(chosen)["evaluation.sweep"] == "descending"
    assert "evaluation.sweep" not in cli._changes(cli._parser().parse_args(["run", "quickstart"]).run)
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["run", "quickstart", "--sweep", "ascending"])
    assert "strict" in capsys.readouterr().err


def test_pictures_are_kept_of_who_was_attacked_and_fooled_and_of_nobody_else(attack, tmp_path):
    chosen = settings("descending", save_adversarial=True)
    evaluate(linear(), grey_images(), ThreatModel(), chosen, place=place_in(tmp_path))
    kept = 0
    for part in evidence.parts(tmp_path):
        frame = evidence.read_part(part)
        needed = frame[frame.fooled & (frame.by == "scripted") & ~frame.carried]
        path = pictures.beside(part.path)
        assert path.exists() == bool(len(needed))
        if path.exists():
            assert pictures.read(path, len(frame), (1, 8, 8)).index.tolist() == needed["index"].tolist()
        kept += len(needed)
    assert kept > 50


def recorded(folder, how="descending"):
    swept(how, place=place_in(folder))
    return evidence.read(folder)


def test_carried_verdicts_that_follow_are_found_to_follow(attack, tmp_path):
    assert not list(unfounded(recorded(tmp_path)))
    attack.blind = {(0.04, index) for index in range(1000, 1050, 3)}
    assert not list(unfounded(recorded(tmp_path / "unlike")))
    assert not list(unfounded(recorded(tmp_path / "strict", "strict")))


@pytest.mark.parametrize(
    ("column", "value"),
    [("margin", 9.0), ("prediction", 11), ("by", "square"), ("engine", "another"), ("label", 12), ("confidence", 0.1)],
)
def test_a_carried_verdict_that_is_not_the_one_it_comes_from_is_named(attack, tmp_path, column, value):
    frame = recorded(tmp_path)
    frame = frame.astype({"by": "str", "engine": "str", "attack": "str"})
    row = frame.index[frame.carried & frame.fooled][3]
    frame.loc[row, column] = value
    (found,) = unfounded(frame)
    assert f"autoattack at {frame.epsilon[row]:g}, image {frame['index'][row]}: expected a carried verdict" in str(
        found
    )


def test_a_carried_verdict_whose_source_is_on_the_wrong_side_is_named(attack, tmp_path):
    frame = recorded(tmp_path)
    for fooled in (True, False):
        row = frame.index[frame.carried & (frame.fooled == fooled)][0]
        moved = frame.assign(epsilon=frame.epsilon.where(frame.index != row, 0.001 if fooled else 0.9))
        assert ("a smaller or equal" if fooled else "a larger") in str(next(iter(unfounded(moved))))
