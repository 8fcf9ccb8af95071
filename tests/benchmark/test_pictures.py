"""Adversarial pictures kept in whole steps: inside ball and pixel range, still misread, small, and safe to read."""

import errno
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

from attacks import BadInput, ThreatModel
from benchmark import pictures as saving
from benchmark.data import Images
from benchmark.evaluation import evaluate
from benchmark.evaluation_settings import Evaluation
from benchmark.results import evidence, pictures
from benchmark.results.pictures import Pictures, distance, farthest_allowed, in_steps, moved
from tests.models import linear

SHAPES = some.tuples(some.integers(1, 4), some.integers(1, 3), some.integers(1, 6), some.integers(1, 6))
NORMS = some.sampled_from(["linf", "l2", "l1"])


@some.composite
def attacked(draw):
    """Images of whole levels, pictures projected into a ball around them, norm and epsilon."""
    shape, norm, epsilon = draw(SHAPES), draw(NORMS), draw(some.floats(1e-4, 4.0))
    levels = draw(some.sampled_from([16, 255]))
    x = (draw(arrays.arrays(np.uint8, shape, elements=some.integers(0, levels))) / np.float32(levels)).astype("float32")
    pull = draw(arrays.arrays(np.float32, shape, elements=some.floats(-3, 3, width=32)))
    adversarial = ThreatModel(norm, epsilon).project(torch.from_numpy(x + pull), torch.from_numpy(x)).numpy()
    return x, adversarial, norm, epsilon


@settings(deadline=None)
@given(attacked())
def test_a_picture_in_steps_lies_in_ball_and_range_and_less_than_a_step_away(case):
    x, adversarial, norm, epsilon = case
    steps, step = in_steps(adversarial, x, norm, epsilon)
    found = moved(x, steps, step)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    # The attack's own picture may use up what float32 leaves open; steps add no more than the last bits of a sum.
    rim = max(epsilon, distance(adversarial, x, norm).max())
    assert (distance(found, x, norm) <= rim * (1 + 1e-6) + 1e-7 * x[0].size).all()
    assert (np.abs(found - adversarial) <= step[:, None, None, None] * 1.001 + 1e-6).all()
    assert steps.dtype == (np.int8 if norm == "linf" else np.int16)


@settings(deadline=None)
@given(attacked())
def test_what_is_read_back_is_what_was_written_to_the_last_bit(tmp_path_factory, case):
    x, adversarial, norm, epsilon = case
    steps, step = in_steps(adversarial, x, norm, epsilon)
    rounded = np.arange(len(x)) % 2 == 0
    index = np.arange(len(x), dtype="int32")[::-1].copy()
    kept = Pictures(index, rounded, steps[rounded], step[rounded], adversarial[~rounded])
    path = pictures.write(tmp_path_factory.mktemp("kept") / "part-00000.pictures.npz", kept)
    again = pictures.read(path, len(x), x.shape[1:])
    np.testing.assert_array_equal(again.of(x)[rounded], moved(x, steps, step)[rounded])
    np.testing.assert_array_equal(again.of(x)[~rounded], adversarial[~rounded])
    assert again.index.tolist() == index.tolist()


def test_equal_pictures_give_equal_bytes(tmp_path):
    kept = a_few()
    assert pictures.write(tmp_path / "a", kept).read_bytes() == pictures.write(tmp_path / "b", kept).read_bytes()


def a_few(count=3, shape=(1, 2, 2)) -> Pictures:
    index = np.arange(count, dtype="int32")
    rounded = index < count - 1
    steps = np.ones((count - 1, *shape), "int8")
    return Pictures(index, rounded, steps, np.full(count - 1, 0.01, "float32"), np.zeros((1, *shape), "float32"))


def images(count=40, size=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, size, size), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 10, torch.arange(100, 100 + count))


@settings(deadline=None, max_examples=10)
@given(NORMS, some.sampled_from([0.02, 0.1, 0.5]), some.integers(5, 40), some.integers(0, 3))
def test_every_fooled_verdict_has_a_picture_that_still_fools(tmp_path_factory, norm, epsilon, batch_size, seed):
    folder, network, test = tmp_path_factory.mktemp("job"), linear(seed=seed), images(seed=seed)
    radius = epsilon * {"linf": 1, "l2": 4, "l1": 10}[norm]
    how = Evaluation(
        epsilons=[radius],
        ranked_at=[radius],
        attacks=["pgd20"],
        steps=5,
        batch_size=batch_size,
        save_adversarial=True,
    )
    evaluate(network, test, ThreatModel(norm), how, place=lambda job: folder / f"{job.attack}@{job.epsilon!r}")
    for path in sorted(folder.glob("*/part-*.parquet")):
        frame = pd.read_parquet(path)
        needed = frame[saving.needing(frame)]
        assert pictures.beside(path).exists() == (len(needed) > 0)
        if needed.empty:
            continue
        saved = pictures.read(pictures.beside(path), len(frame), (1, 8, 8))
        assert saved.index.tolist() == needed["index"].tolist()
        x = test.take(torch.as_tensor(needed["index"].to_numpy() - 100)).pixels().numpy()
        found = saved.of(x)
        assert 0 <= found.min() <= found.max() <= 1
        assert (distance(found, x, norm) <= farthest_allowed(radius)).all()
        assert network(torch.from_numpy(found)).argmax(1).tolist() == needed.prediction.tolist()


def test_where_rounding_would_cost_the_misclassification_the_picture_is_kept_exactly(tmp_path):
    network, test, epsilon = linear(classes=2), images(6), 0.1
    x = test.pixels()
    with torch.no_grad():
        gap = torch.stack([*network(x).T]).diff(dim=0).squeeze(0)
        towards = (network.weight[1] - network.weight[0]).reshape(1, 1, 8, 8)
        right = (gap > 0).long()
        # A hair behind the boundary: one step of epsilon / 127 in a pixel is worth far more than that.
        push = -(gap + gap.sign() * 1e-5)[:, None, None, None] * towards / towards.square().sum()
    test = Images(test.images, right, test.index)
    frame = pd.DataFrame(
        {"index": test.index, "fooled": True, "by": "some", "carried": False, "prediction": 1 - right.numpy()}
    )
    threat = ThreatModel("linf", max(epsilon, float(push.abs().max())))
    saving.keep(tmp_path / "part-00000.parquet", network, test, frame, x + push, threat, 6)
    saved = pictures.read(tmp_path / "part-00000.pictures.npz", 6, (1, 8, 8))
    assert not saved.rounded.any()
    np.testing.assert_array_equal(saved.of(x.numpy()), (x + push).numpy())


def test_misread_held_and_carried_images_need_no_picture():
    frame = pd.DataFrame(
        {
            "fooled": [True, True, False, True],
            "by": ["pgd20", "clean", "", "pgd20"],
            "carried": [False, False, False, True],
        }
    )
    assert saving.needing(frame).tolist() == [True, False, False, False]


def test_pictures_of_linf_take_a_byte_a_pixel_at_most_and_far_less_where_the_attack_stands_on_the_rim(tmp_path):
    draws = np.random.default_rng(0)
    x = draws.random((100, 3, 32, 32), dtype="float32") * 0.8 + 0.1
    rim = (x + np.float32(8 / 255) * np.sign(draws.standard_normal(x.shape))).astype("float32")
    steps, step = in_steps(rim, x, "linf", 8 / 255)
    index, every = np.arange(100, dtype="int32"), np.ones(100, bool)
    path = pictures.write(tmp_path / "p", Pictures(index, every, steps, step, np.zeros((0, 3, 32, 32), "float32")))
    assert path.stat().st_size / 100 < 3 * 32 * 32 / 5


def test_without_the_setting_no_picture_is_written_and_the_verdicts_are_the_same(tmp_path):
    def parts(save):
        folder = tmp_path / str(save)
        how = Evaluation(epsilons=[0.1], ranked_at=[0.1], attacks=["pgd20"], save_adversarial=save)
        evaluate(linear(), images(), ThreatModel(), how, place=lambda job: folder / f"{job.attack}@{job.epsilon!r}")
        return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    without, having = parts(False), parts(True)
    assert not [name for name in without if "pictures" in name]
    assert {name for name in having if "pictures" not in name} == set(without)
    for name, path in without.items():
        ours, theirs = (pd.read_parquet(one).drop(columns="seconds") for one in (path, having[name]))
        pd.testing.assert_frame_equal(ours, theirs)


def test_a_batch_stopped_before_its_verdicts_leaves_pictures_that_are_written_again(tmp_path, monkeypatch):
    how = Evaluation(epsilons=[0.1], ranked_at=[0.1], attacks=["pgd20"], save_adversarial=True)

    def attack():
        evaluate(linear(), images(), ThreatModel(), how, place=lambda job: tmp_path / f"{job.attack}@{job.epsilon!r}")

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "write_part", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            attack()
    assert not list(tmp_path.rglob("*.parquet"))
    attack()
    (path,) = tmp_path.glob("pgd20*/*.npz")
    frame = pd.read_parquet(path.with_name("part-00000.parquet"))
    assert len(pictures.read(path, len(frame), (1, 8, 8)).index) == saving.needing(frame).sum()
    assert not [one for one in tmp_path.rglob(".*") if one.is_file()]


def test_a_full_disk_is_told_in_a_sentence_and_leaves_no_verdicts_without_pictures(tmp_path, monkeypatch):
    how = Evaluation(epsilons=[0.1], ranked_at=[0.1], attacks=["pgd20"], save_adversarial=True)
    write = Path.write_bytes

    def full(self, content):
        if "pictures" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match=r"no space left for .*part-00000\.pictures\.npz: free some"):
        evaluate(linear(), images(), ThreatModel(), how, place=lambda job: tmp_path / f"{job.attack}@{job.epsilon!r}")
    assert not list(tmp_path.glob("pgd20*/*"))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path):
    path.write_bytes(b"")


def of_objects(path):
    np.savez(path.open("wb"), **{**vars(a_few()), "index": np.array([print, None, 3], dtype=object)})


def of_another_shape(path):
    pictures.write(path, a_few(shape=(1, 3, 3)))


def without_a_column(path):
    np.savez(path.open("wb"), index=a_few().index)


def of_a_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("index.npy", bytes(2_000_000))


def twice_the_same(path):
    kept = a_few()
    pictures.write(path, Pictures(kept.index * 0, kept.rounded, kept.steps, kept.step, kept.exact))


@pytest.mark.parametrize(
    "harm", [truncated, emptied, of_objects, of_another_shape, without_a_column, of_a_bomb, twice_the_same]
)
def test_a_damaged_or_foreign_file_is_refused_in_a_sentence(harm, tmp_path):
    path = pictures.write(tmp_path / "part-00000.pictures.npz", a_few())
    harm(path)
    with pytest.raises(BadInput, match=r"^expected .* found .*part-00000\.pictures\.npz"):
        pictures.read(path, 3, (1, 2, 2))


def test_pictures_that_are_not_there_are_told_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"found no file .*part-00007\.pictures\.npz; delete it with the part"):
        pictures.read(tmp_path / "part-00007.pictures.npz", 3, (1, 2, 2))
