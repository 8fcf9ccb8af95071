"""`atbench speed attack`: what it writes, how it goes on, and what it refuses; how fast anything is, no test asks."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmark import attack_speed as measuring
from benchmark.attack_memory import memory_growth
from benchmark.contestants import OFFICIAL, QUICK, SWEEP, Contestant, contestants
from benchmark.data import load
from benchmark.results import attack_speed as stored
from benchmark.storage import save_weights

NETWORK = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
IMAGES = 8


def fitted():
    """A linear network that knows most digits: least squares on their one-hot labels."""
    digits = load("digits", None).train
    x = torch.cat([digits.pixels().flatten(1), torch.ones(len(digits), 1)], 1)
    solved = torch.linalg.lstsq(x, nn.functional.one_hot(digits.labels, 10).float(), driver="gelsd").solution
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network[1].weight.data, network[1].bias.data = solved[:-1].T.contiguous(), solved[-1]
    return network


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.setattr(measuring, "memory_growth", lambda candidate, one: 1.5)
    save_weights(Path("w.safetensors"), fitted().state_dict())
    Path("net.py").write_text(NETWORK)


@pytest.fixture
def no_quick(monkeypatch):
    monkeypatch.setattr(measuring, "contestants", lambda *words, **more: contestants(*words, **more)[:-1])


def words(*others, weights="w.safetensors", images=IMAGES, attacks=("apgd-ce",)):
    whole = ["speed", "attack", "--model", "net.py:build", "--weights", weights, "--dataset", "digits"]
    chosen = ["--attacks", *attacks] if attacks else []
    return [*whole, "--epsilon", "0.02", "--images", images, "--batch-size", 4, "--output", "s.csv", *chosen, *others]


def test_everyone_attacks_the_same_images_and_each_repeat_is_a_row_for_each(atbench, capsys):
    assert atbench(*words("--repeats", 2)) == 0
    table = stored.read(Path("s.csv"))
    assert table.groupby("variant", sort=False).size().to_dict() == {
        OFFICIAL: 2,
        "fast-fp32": 2,
        "fast-bf16": 2,
        QUICK: 2,
    }
    assert (table["images"] == IMAGES).all()
    for _, rows in table.groupby("repeat"):
        official = rows.set_index("variant").loc[OFFICIAL]
        torch.testing.assert_close(
            torch.tensor(rows["ratio"].tolist()),
            torch.tensor((official["cpu_seconds"] / rows["cpu_seconds"]).tolist()),
            rtol=1e-4,
            atol=0,
        )
    assert (table["forward"] > 0).all()
    assert (table["memory_mib"] == 1.5).all()
    page = Path("s.md").read_text()
    assert page == capsys.readouterr().out
    assert "| fast-fp32 |" in page
    assert "2 times; given are medians" in page


@pytest.mark.usefixtures("no_quick")
def test_on_a_linear_network_both_engines_give_the_verdicts_of_the_closed_form(atbench):
    assert atbench(*words("--repeats", 1, "--precision", "fp32", attacks=("apgd-t",))) == 0
    network, test = fitted(), load("digits", None).test.take(torch.arange(IMAGES))
    logits, weight = network(test.pixels()), network[1].weight
    pixels, held = test.pixels().flatten(1), 0
    for row in range(IMAGES):
        label = int(test.labels[row])
        # What each other class gains at most, inside ball and range.
        slope = weight - weight[label]
        low, high = (pixels[row] - 0.02).clamp(min=0), (pixels[row] + 0.02).clamp(max=1)
        most = logits[row] - logits[row, label] + (torch.where(slope > 0, high, low) - pixels[row]).mul(slope).sum(1)
        most[label] = -torch.inf
        held += bool((most < 0).all())
    robust = stored.read(Path("s.csv")).set_index("variant")["robust"]
    assert 0 < held < IMAGES
    assert (robust[OFFICIAL], robust["fast-fp32"]) == (held, held)


@pytest.mark.usefixtures("no_quick")
def test_a_stopped_measurement_goes_on_and_does_nothing_twice(atbench, monkeypatch):
    assert atbench(*words("--repeats", 1, "--precision", "fp32")) == 0
    first = Path("s.csv").read_text().splitlines()
    assert atbench(*words("--repeats", 2, "--precision", "fp32")) == 0
    both = Path("s.csv").read_text().splitlines()
    assert both[: len(first)] == first
    assert len(both) == 2 * len(first) - 1

    def nobody(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "take_turns", nobody)
    assert atbench(*words("--repeats", 2, "--precision", "fp32")) == 0


@pytest.mark.usefixtures("no_quick")
def test_another_setting_is_not_mixed_with_the_measured_one(atbench, capsys):
    assert atbench(*words("--repeats", 1, "--precision", "fp32")) == 0
    assert atbench(*words("--repeats", 2, "--precision", "fp32", images=4)) == 2
    assert "another images (8, now it is 4)" in capsys.readouterr().err
    assert atbench(*words("--repeats", 2, "--precision", "fp32", "--seed", 1)) == 2
    assert "another seed (0, now it is 1)" in capsys.readouterr().err


def test_verdicts_that_differ_are_named_on_both_sides_with_their_closest_margin(atbench, monkeypatch, capsys):
    real = contestants

    def one_that_misses(*words, **more):
        chosen = real(*words, **more)

        def misses(contest, beat):
            found = chosen[1].run(contest, beat)
            row = next(row for row, by in enumerate(found.by) if by not in ("", "clean"))
            found.by[row] = ""
            return found

        return [*chosen[:2], Contestant("misses", misses, 1.0)]

    monkeypatch.setattr(measuring, "contestants", one_that_misses)
    assert atbench(*words("--repeats", 1, "--precision", "fp32")) == 0
    row = stored.read(Path("s.csv")).set_index("variant").loc["misses"]
    assert row["fooled_here_only"] == ""
    assert len(row["fooled_officially_only"].split()) == 1
    assert row["closest_officially"] > 0
    assert "misses: 0 fooled here and not there; 1 fooled there and not here (images" in capsys.readouterr().out


@pytest.mark.usefixtures("no_quick")
def test_the_sweep_is_a_row_and_a_sentence(atbench, capsys):
    assert atbench(*words("--repeats", 1, "--precision", "fp32", "--sweep", attacks=(), images=2)) == 0
    table = stored.read(Path("s.csv")).set_index("variant")
    assert table.loc[SWEEP, "robust"] == table.loc["fast-fp32", "robust"]
    assert "Five epsilons in descending order cost" in capsys.readouterr().out


def test_memory_is_that_of_a_fresh_process():
    candidate = measuring.Candidate(
        *("net.py:build", Path("w.safetensors"), "digits", "linf", "0.02", 4, 4, 0, False, ("apgd-ce",), None, False)
    )
    grown = memory_growth(candidate, next(one for one in contestants(["fp32"]) if one.name == "fast-fp32"))
    assert 0 <= grown < 2000


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (["--attacks", "fab"], "--attacks takes apgd-ce, apgd-t, fab-t, square, but found fab"),
        (["--sweep"], "--sweep is of the whole AutoAttack: leave --attacks out"),
        (["--repeats", "0"], "--repeats"),
        (["--output", "s.txt"], "--output is a .csv file"),
        (["--weights", "none.safetensors"], "none.safetensors"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(atbench, capsys, others, says):
    assert atbench(*words(*others)) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not Path("s.csv").exists()


def test_a_model_without_weights_is_refused(atbench, capsys):
    assert atbench("speed", "attack", "--model", "net.py:build") == 2
    assert "--model comes with --weights and --dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "is no CSV of atbench speed attack"), ("variant,repeat\n", "has no column cpu_seconds")],
)
def test_a_file_of_something_else_is_left_alone(atbench, capsys, content, says):
    Path("s.csv").write_text(content)
    assert atbench(*words()) == 2
    assert says in capsys.readouterr().err
    assert Path("s.csv").read_text() == content


def test_the_page_gives_medians_and_spreads():
    base = dict.fromkeys(stored.COLUMNS, "")
    figures = {"forward": 1.0, "backward": 1.0, "memory_mib": 1.0, "robust": 1, "wall_seconds": 1.0, "images": 1}
    rows = [
        base | figures | {"repeat": n, "variant": v, "cpu_seconds": s, "ratio": 8 / s, "closest_here": 0.5}
        for n, s in enumerate((4.0, 2.0, 8.0), 1)
        for v in ("official",)
    ]
    lines = stored.page(pd.DataFrame(rows))
    assert "| official | 2.00 (1.00 to 4.00) | 4.0 (2.0 to 8.0) | 1.0 | 1 | 1 | 1 | 1 |" in lines
