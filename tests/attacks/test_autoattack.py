"""The versions of AutoAttack: which attacks, how often, and what they leave of networks with known answers."""

import pytest
import torch

from attacks import BadInput, ThreatModel
from attacks.autoattack import NAMES, autoattack, phases
from tests.models import Constant, images, linear


def test_the_standard_version_is_the_one_of_the_paper():
    expected = {"apgd-ce": 1, "apgd-t": 9, "fab-t": 9, "square": 1}
    assert phases("standard", "linf") == phases("standard", "l2") == expected
    assert list(phases("standard", "l2")) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert phases("standard", "l1") == {"apgd-ce": 5, "apgd-t": 5, "fab-t": 9, "square": 1}


def test_plus_has_restarts_and_the_untargeted_attacks_too():
    assert phases("plus", "linf") == {
        "apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9
    }  # fmt: skip
    assert phases("rand", "linf") == {"apgd-ce": 1, "apgd-dlr": 1}
    assert phases("custom", "linf", ["square", "fab"]) == {"square": 1, "fab": 5}


@pytest.mark.parametrize(
    ("version", "attacks", "sentence"),
    [
        ("custom", ["apgd"], f"takes attacks of {', '.join(NAMES)}, but found 'apgd'"),
        ("custom", None, "but found none"),
        ("standard", ["square"], "use version custom"),
        ("fast", None, "standard, plus, rand and custom, but found 'fast'"),
    ],
)
def test_a_version_that_does_not_exist_is_told(version, attacks, sentence):
    with pytest.raises(BadInput, match=sentence):
        phases(version, "linf", attacks)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_network_the_verdict_is_the_closed_form(norm):
    network, x = linear(), 0.3 + 0.4 * images(12)
    y = network(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    radius = network.linf_radius(x, y) if norm == "linf" else network.l2_radius(x, y)
    ordered = radius.sort().values
    gap = (ordered[3:9] - ordered[2:8]).argmax() + 2  # where rounding decides about no image
    epsilon = ((ordered[gap] + ordered[gap + 1]) / 2).item()
    threat = ThreatModel(norm, epsilon)
    fast = autoattack(network, x, y, threat, seed=0, version="custom", attacks=["apgd-t", "fab-t"])
    assert [by == "" for by in fast.by] == (radius > epsilon).tolist()
    assert fast.by[0] == "clean"


def test_a_constant_network_is_never_fooled():
    network, x = Constant([1.0, 0.0, 0.0, 0.0]).eval(), images(6)
    result = autoattack(network, x, torch.zeros(6, dtype=torch.int64), ThreatModel("linf", 0.5), seed=0)
    assert result.by == [""] * 6
    assert result.survivors == {"clean": 6, "apgd-ce": 6, "apgd-t": 6, "fab-t": 6, "square": 6}
    # Three targets are all that four classes have: 101 passes of APGD-CE, 303 of APGD-T, 600 of FAB-T, and Square.
    assert (result.backward == 101 + 303 + 300).all()
    assert (result.forward >= 1 + 101 + 303 + 600).all()
    assert (result.forward <= 1 + 101 + 303 + 600 + 5001).all()


@pytest.mark.parametrize(
    ("classes", "fitting"), [(2, "apgd-ce, fab, square, fab-t"), (3, "apgd-ce, apgd-dlr, fab, square, fab-t")]
)
def test_few_classes_are_refused_with_what_fits_them_and_that_works(classes, fitting):
    network, x = linear(classes=classes), images(6)
    y = network(x).argmax(1)
    with pytest.raises(BadInput, match=f"needs at least 4 classes, but found {classes}: .* attacks {fitting}"):
        autoattack(network, x, y, ThreatModel("linf", 0.1), seed=0)
    names = [name for name in ("apgd-ce", "apgd-dlr", "fab-t") if name in fitting]
    result = autoattack(network, x, y, ThreatModel("linf", 1.0), seed=0, version="custom", attacks=names)
    assert result.survivors["clean"] == 6
    assert result.survivors["fab-t"] == 0


def test_a_network_that_answers_at_random_is_attacked_on_average_gradients():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = linear(classes=4)

        def forward(self, x):
            return self.network(x) + 0.01 * torch.randn(len(x), 4)

    network, x = Noisy().eval(), images(4)
    y = network.network(x).argmax(1)
    result = autoattack(network, x, y, ThreatModel("linf", 1e-4), seed=0, version="rand")
    held = [row for row, by in enumerate(result.by) if not by]
    assert held
    assert all(result.backward[row] == 2 * 101 * 20 for row in held)
