import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.randomness import key, normal, uniform

draws = pytest.mark.parametrize("draw", [uniform, normal])


def like(n, size=8, dtype=torch.float32):
    return torch.zeros(n, 1, size, size, dtype=dtype)


@draws
@settings(deadline=None)
@given(index=st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_a_row_depends_on_its_index_alone_not_on_the_batch_or_its_order(draw, index):
    together = draw(like(len(index)), index, 7, "pgd20", 0)
    for row, i in enumerate(index):
        assert torch.equal(together[row : row + 1], draw(like(1), [i], 7, "pgd20", 0))


@draws
def test_every_part_of_the_key_makes_other_numbers(draw):
    keys = [(0, "pgd20", 0, "start"), (1, "pgd20", 0, "start"), (0, "cw20", 0, "start"), (0, "pgd20", 1, "start")]
    keys += [(0, "pgd20", 0, "end"), (0, "pgd20", 0), ("0", "pgd20", 0, "start")]
    rows = [draw(like(1), [index], *names).flatten() for names in keys for index in (0, 1)]
    for i, one in enumerate(rows):
        for other in rows[:i]:
            assert (one == other).float().mean() < 0.1
            assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 0.6  # 64 numbers: 5 sigma is 0.62


@draws
def test_indices_may_be_a_tensor_or_a_list(draw):
    assert torch.equal(draw(like(2), torch.tensor([3, 5]), 1), draw(like(2), [3, 5], 1))


@draws
def test_an_empty_batch_draws_nothing(draw):
    assert draw(like(0), [], 1).shape == (0, 1, 8, 8)


@draws
def test_dtype_changes_the_rounding_not_the_draw(draw):
    single, double = draw(like(4), range(4), 3), draw(like(4, dtype=torch.float64), range(4), 3)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(single, double.float())


def test_uniform_numbers_are_the_very_same_in_both_precisions():
    assert torch.equal(uniform(like(4), range(4), 3).double(), uniform(like(4, dtype=torch.float64), range(4), 3))


def test_uniform_fills_the_interval_evenly():
    drawn = uniform(like(40, size=50, dtype=torch.float64), range(40), "even").flatten()  # 100,000 numbers
    assert drawn.min() >= -1
    assert drawn.max() < 1
    assert abs(drawn.mean().item()) < 5 / (3 * len(drawn)) ** 0.5
    assert drawn.var().item() == pytest.approx(1 / 3, rel=0.02)
    counts = torch.histc(drawn, bins=10, min=-1, max=1)
    assert ((counts - 10_000).abs() < 5 * 95).all()  # binomial: standard deviation 95


def test_normal_has_the_moments_of_a_normal():
    drawn = normal(like(40, size=50, dtype=torch.float64), range(40), "bell").flatten()
    assert abs(drawn.mean().item()) < 5 / len(drawn) ** 0.5
    assert drawn.var().item() == pytest.approx(1.0, rel=0.025)
    assert drawn.pow(3).mean().item() == pytest.approx(0.0, abs=0.06)
    assert drawn.pow(4).mean().item() == pytest.approx(3.0, rel=0.05)
    assert drawn.isfinite().all()


def test_normal_is_the_same_draw_bent():
    flat, bell = (draw(like(1, dtype=torch.float64), [0], "same").flatten() for draw in (uniform, normal))
    assert torch.equal(flat.argsort(), bell.argsort())


@draws
def test_the_callers_random_states_are_left_alone(draw):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - the state that others may depend on
    draw(like(2), [0, 1], 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002 - the state that others may depend on
    assert random.getstate() == states[2]


def test_keys_do_not_depend_on_the_process():
    told = subprocess.run(
        [sys.executable, "-c", "from attacks.randomness import key; print(key('pgd20', 3))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) == key("pgd20", 3)


def test_draws_are_those_that_published_verdicts_were_made_with():
    # Frozen: whoever changes these numbers changes every evaluation that was ever stored.
    blank = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    assert key("pgd20", 0, "start") == 2286553902507113920
    assert key(0, "pgd20", 0, "start") == 759147988767870228
    flat = uniform(blank, [0, 9999], 0, "pgd20", 0, "start").flatten()
    steps = [6213643, 6837303, 4350768, -2662713, -5654089, 4080152, 3744407, 277035]
    assert flat.tolist() == [step / 2**23 for step in steps]
    bell = normal(blank, [0, 9999], 0, "pgd20", 0, "start").flatten()
    assert bell.tolist() == pytest.approx(
        [
            1.1281040644505422,
            1.3257277043413185,
            0.7041361680369346,
            -0.40894512197239463,
            -0.9822430433170104,
            0.6532301446542966,
            0.5923266967886645,
            0.04140278215140313,
        ],
        rel=1e-13,  # the quantile function may round differently elsewhere
    )
