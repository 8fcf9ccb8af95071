"""What a short search judges in full precision."""

import torch

from attacks.objectives import margin
from attacks.oracle import Oracle
from attacks.screen import judged
from tests.models import curved

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_search_in_full_precision_judges_every_point_once():
    network, oracle = curved(), Oracle(curved())
    y = torch.zeros(12, dtype=torch.int64)
    found = judged(oracle, X, y, torch.full((12,), torch.inf))
    with torch.no_grad():
        torch.testing.assert_close(found.value, margin(network(X), y))
    assert torch.equal(found.value, found.rough)
    assert oracle.forward == 1


def test_a_short_search_judges_what_seems_better_by_the_plain_network_alone():
    network = curved()
    oracle, y = Oracle(network, precision="bf16"), torch.zeros(12, dtype=torch.int64)
    rough = judged(oracle, X, y, torch.full((12,), -torch.inf)).rough
    bar = torch.where(torch.arange(12) < 3, rough - 1, rough)
    before = oracle.forward
    found = judged(oracle, X, y, bar)
    with torch.no_grad():
        exact = network(X[:3])
    torch.testing.assert_close(found.value[:3], margin(exact, y[:3]))
    assert torch.equal(found.wrong[:3], exact.argmax(1) != y[:3])
    assert (found.value[3:] == -torch.inf).all()
    assert not found.wrong[3:].any()
    assert oracle.forward - before == 1 + 3 / 12
