"""Long computations that take turns: whole results, own surroundings, own clocks."""

import threading

import pytest
import torch

from benchmark.turns import take_turns


def counting(name, steps, seen):
    def run(pause):
        for step in range(steps):
            seen.append((name, step))
            pause()
        return name, steps

    return run


def test_each_gives_its_result_in_the_order_given():
    seen = []
    taken = take_turns([counting("a", 3, seen), counting("b", 5, seen)], slice=0.0)
    assert [one.result for one in taken] == [("a", 3), ("b", 5)]
    assert all(one.wall > 0 and one.cpu >= 0 for one in taken)


def test_slices_alternate_and_every_other_round_goes_backwards():
    seen = []
    take_turns([counting("a", 3, seen), counting("b", 3, seen)], slice=0.0)
    assert "".join(name for name, _ in seen) == "abbaab"


def test_a_slice_that_is_not_over_goes_on():
    seen = []
    take_turns([counting("a", 3, seen), counting("b", 3, seen)], slice=1000.0)
    assert "".join(name for name, _ in seen) == "aaabbb"


def test_only_one_computes_at_a_time():
    at_work = threading.Semaphore(1)

    def alone(pause):
        for _ in range(20):
            assert at_work.acquire(blocking=False)
            at_work.release()
            pause()

    take_turns([alone] * 3, slice=0.0)


def test_draws_of_one_do_not_move_those_of_another():
    def drawing(pause):
        torch.manual_seed(0)
        drawn = []
        for _ in range(4):
            drawn.append(torch.rand(2))
            pause()
        return torch.stack(drawn)

    state = torch.get_rng_state()
    alone = take_turns([drawing], slice=0.0)[0].result
    first, second = take_turns([drawing, drawing], slice=0.0)
    assert torch.equal(first.result, alone)
    assert torch.equal(second.result, alone)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_one_raises_comes_out_and_ends_the_others():
    ended = []

    def failing(pause):
        pause()
        raise ValueError("mine")

    def other(pause):
        try:
            while True:
                pause()
        finally:
            ended.append(True)

    before = threading.active_count()
    with pytest.raises(ValueError, match="mine"):
        take_turns([other, failing], slice=0.0)
    assert ended == [True]
    assert threading.active_count() == before
