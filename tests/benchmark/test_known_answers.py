"""The whole evaluation, verdicts and credibility, on networks whose answers are known before it begins."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks.threat import ThreatModel
from benchmark.credibility.colours import colour
from benchmark.credibility.run import probe
from benchmark.data import Images
from benchmark.evaluation import evaluate
from benchmark.evaluation_settings import Evaluation
from benchmark.results import evidence
from benchmark.storage import save_weights
from tests.attacks.test_third_party import folder, mnist, wong_kolter  # noqa: F401  # fixtures
from tests.benchmark.test_credibility import Noisy, Rounded
from tests.models import Constant, Linear, linear

LINF = ThreatModel("linf", 0.1)


def settings(*attacks, epsilon=0.1, custom=(), **others):
    return Evaluation([epsilon], [epsilon], list(attacks), custom=list(custom), batch_size=60, **others)


def verdicts(network, images, *attacks, threat=LINF, **others) -> pd.DataFrame:
    found = evaluate(network, images, threat, settings(*attacks, epsilon=threat.epsilon, **others))
    return found.set_index("index")


def robust(network, images, *attacks, **others) -> dict[str, float]:
    found = verdicts(network, images, *attacks, **others)
    return {attack: 1 - float(rows.fooled.mean()) for attack, rows in found.groupby("attack")}


def colours(network, images, threat=LINF, attacks=()) -> dict[str, str]:
    checks, _ = probe(network, images, threat, dataset="digits", attacks=attacks)
    return {check.name: colour(check) for check in checks}


def images_for(network: nn.Module, count: int = 60) -> Images:
    """Grey images in the middle of the range, labelled as the network reads them but for every tenth."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(90, 166, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    images = Images.of(pixels, torch.zeros(count, dtype=torch.int64))
    with torch.no_grad():
        logits = network(images.pixels())
    labels, wrong = logits.argmax(1), (logits.argmax(1) + 1) % logits.shape[1]
    return replace(images, labels=torch.where(torch.arange(count) % 10 == 0, wrong, labels))


def between(radii: Tensor) -> float:
    """The middle of the widest gap between sorted radii; FAB comes to within half a percent of the boundary."""
    widest = (radii[1:] / radii[:-1]).argmax()
    assert radii[widest + 1] > 1.02 * radii[widest]
    return float(radii[widest : widest + 2].mean())


def fitted(images: Images) -> Linear:
    """The linear classifier of least squares."""
    x, y = images.pixels().flatten(1).double() - 0.5, nn.functional.one_hot(images.labels, 10).double()
    weight = torch.linalg.solve(x.T @ x + torch.eye(64), x.T @ y).T
    return Linear(5 * weight.float(), 5 * (0.1 - 0.5 * weight.sum(1)).float()).eval()


@pytest.fixture(scope="module")
def digits() -> Images:
    from benchmark.data import load

    return load("digits").test.take(torch.arange(60))


@pytest.mark.parametrize("attack", ["apgd-t", "fab-t"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_network_exactly_the_images_nearer_to_the_boundary_than_epsilon_are_fooled(norm, attack):
    network = linear(classes=5)
    images = images_for(network)
    radius = getattr(network, f"{norm}_radius")(images.pixels(), images.labels)
    threat = ThreatModel(norm, between(radius.sort()[0][20:40]))
    found = verdicts(network, images, "autoattack_custom", threat=threat, custom=[attack])
    fooled = found[found.attack == "autoattack_custom"].fooled
    assert fooled.tolist() == (radius < threat.epsilon).tolist()
    assert 1 / 3 < fooled.mean() < 2 / 3


def test_a_linear_network_is_believed(digits):
    network = fitted(digits)
    assert "red" not in colours(network, digits).values()


def test_autoattack_in_full_agrees_with_the_closed_form():
    network = linear(classes=5)
    images = images_for(network, 24)
    radius = network.linf_radius(images.pixels(), images.labels)
    threat = ThreatModel("linf", between(radius.sort()[0][18:22]))  # few hold: those take thousands of passes
    found = verdicts(network, images, "pgd20", "autoattack", threat=threat)
    assert found[found.attack == "autoattack"].fooled.tolist() == (radius < threat.epsilon).tolist()
    assert found[found.attack == "autoattack"].engine.str.startswith("fast ").all()


def test_a_constant_network_keeps_the_images_of_its_class_and_says_why(digits):
    network = Constant([7.0 * (label == 3) for label in range(10)])
    share = float((digits.labels == 3).float().mean())
    found = robust(network, digits, "pgd20", "cw20", "autoattack_custom", custom=["apgd-ce", "apgd-t", "fab-t"])
    assert found == pytest.approx(dict.fromkeys(found, share))
    told = colours(network, digits)
    assert told["one class for all"] == "amber"
    assert "red" not in told.values()


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("killer", [Rounded(), Detached()], ids=["rounding", "no graph at all"])
def test_where_gradients_are_killed_square_finds_what_they_do_not_and_the_row_is_red(killer, digits):
    plain = fitted(digits)
    network = nn.Sequential(killer, plain).eval()
    few = digits.take(torch.arange(20))
    threat = LINF.at(0.25)
    given = robust(network, few, "pgd20", "autoattack_custom", custom=["apgd-ce", "apgd-t", "fab-t"], threat=threat)
    without = robust(network, few, "autoattack_custom", custom=["square"], threat=threat)["autoattack_custom"]
    assert given["autoattack_custom"] > without + 0.3
    assert given["pgd20"] > without + 0.3
    told = colours(network, digits)
    assert told["zero gradients (margin)"] == told["zero gradients (cross-entropy)"] == "red"


def test_probabilities_in_place_of_logits_are_red_and_attacked_all_the_same(digits):
    network = nn.Sequential(fitted(digits), nn.Softmax(1)).eval()
    assert colours(network, digits)["logits, not probabilities"] == "red"
    images = digits.take(torch.arange(20))
    plain = robust(fitted(digits), images, "autoattack_custom", custom=["apgd-t"])["autoattack_custom"]
    assert robust(network, images, "autoattack_custom", custom=["apgd-t"])["autoattack_custom"] <= plain + 0.05


def test_a_network_that_answers_at_random_is_marked_and_autoattack_rand_runs_on_it(digits):
    network = nn.Sequential(Noisy(), fitted(digits)).eval()
    assert colours(network, digits)["repeatable outputs"] == "red"
    torch.manual_seed(0)
    found = robust(network, digits.take(torch.arange(10)), "autoattack_rand", threat=LINF.at(0.3))
    assert found["autoattack_rand"] < 0.3 < found["clean"]


def test_a_network_trained_without_a_defence_is_broken_and_believed(digits_network):
    network, images = digits_network
    found = robust(network, images.take(torch.arange(60)), "pgd20", "autoattack_custom", custom=["apgd-ce", "apgd-t"],
                   threat=LINF.at(0.3))  # fmt: skip
    assert found["clean"] > 0.9
    assert found["autoattack_custom"] <= found["pgd20"] <= 0.1
    assert "red" not in colours(network, images).values()


MODEL = """from torch import nn


def build(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
"""
DATA = """import numpy as np


def few():
    draws = np.random.default_rng(0)
    images, labels = draws.integers(90, 166, (60, 6, 6), dtype=np.uint8), np.arange(60) % CLASSES
    return {"train": (images[:30], labels[:30]), "test": (images[30:], labels[30:])}
"""


@pytest.fixture(params=[2, 3])
def few_classes(request, tmp_path, monkeypatch):
    """Words for an evaluation of a user's model on a user's data of two or three classes."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(MODEL)
    Path("data.py").write_text(DATA.replace("CLASSES", str(request.param)))
    torch.manual_seed(0)
    save_weights(Path("w.safetensors"), nn.Sequential(nn.Flatten(), nn.Linear(36, request.param)).state_dict())
    words = ["evaluate", "--model", "net.py:build", "--weights", "w.safetensors", "--dataset", "data.py:few"]
    return request.param, [*words, "--epsilon", 0.05, "--output", "report"]


def test_autoattack_on_few_classes_is_refused_before_anything_runs_with_the_words_that_work(
    few_classes, atbench, capsys
):
    classes, words = few_classes
    assert atbench(*words) == 2
    told = capsys.readouterr().err
    assert f"autoattack: apgd-t needs at least 4 classes, but found {classes}" in told
    assert not Path("report/evidence").exists()
    said = told[told.index("--attacks") : told.index(";", told.index("--attacks"))]
    assert ("apgd-dlr" in said) == (classes == 3)
    assert atbench(*words, *said.split()) == 0
    found = evidence.read(Path("report"))
    assert set(found.attack) == {"clean", "autoattack_custom"}
    board = pd.read_csv("report/leaderboard.csv")
    assert board.autoattack_custom.notna().all()
    assert board.autoattack.isna().all()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--attacks", "autoattack_custom"], "but found none (atbench evaluate: --attacks autoattack_custom --custom"),
        (["--attacks", "autoattack_custom", "--custom", "fabb"], "but found 'fabb' (atbench evaluate: --attacks"),
        (
            ["--attacks", "autoattack_plus", "--engine", "official"],
            "the official engine runs AutoAttack standard alone",
        ),
    ],
)
@pytest.mark.parametrize("few_classes", [3], indirect=True)
def test_versions_that_cannot_run_are_told_before_anything_runs(few_classes, asked, told, atbench, capsys):
    assert atbench(*few_classes[1], *asked) == 2
    assert told in capsys.readouterr().err
    assert not Path("report/evidence").exists()


def test_of_a_certified_network_quick_and_apgd_leave_what_is_certified(wong_kolter, mnist):  # noqa: F811
    from attacks.quick import quick

    folder("ATBENCH_DATA")
    x, y = mnist[0][:500], mnist[1][:500]
    found = quick(wong_kolter, x, y, LINF, seed=0)
    images = Images.of((255 * x).round().to(torch.uint8), y)
    left = verdicts(wong_kolter, images, "autoattack_custom", custom=["apgd-t"])
    fooled = torch.tensor(left[left.attack == "autoattack_custom"].fooled.tolist())
    holds = torch.tensor([not by for by in found.by]) & ~fooled
    assert holds.float().mean() >= 0.942  # published, of 10,000 images
