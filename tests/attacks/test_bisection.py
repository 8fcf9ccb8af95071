import pytest
import torch

from attacks import ThreatModel
from attacks.bisection import bisect


@pytest.mark.parametrize("halvings", [1, 5, 20])
def test_bisection_finds_where_each_image_crosses_over_and_asks_once_more_than_it_halves(halvings):
    x, direction = torch.zeros(5, 1, 2, 2, dtype=torch.float64), torch.ones(5, 1, 2, 2, dtype=torch.float64)
    edges = torch.tensor([0.0, 0.1, 0.25, 0.7, 2.0], dtype=torch.float64)  # the last lies beyond the search
    asked = []

    def crosses(points):
        asked.append(points)
        return points[:, 0, 0, 0] >= edges

    first = torch.tensor([0.8, 0.01, 0.3, 0.3, 0.3], dtype=torch.float64)
    found = bisect(crosses, x, direction, ThreatModel(), first=first, last=0.8, halvings=halvings)
    assert len(asked) == halvings + 1
    assert ((found - edges.clamp(max=0.8)).abs() <= 0.8 / 2**halvings).all()


def test_bisection_asks_about_images_in_the_range_only():
    seen = []
    x = torch.full((1, 1, 2, 2), 0.9)
    bisect(
        lambda points: seen.append(points) or torch.zeros(1, dtype=torch.bool),
        x,
        torch.ones_like(x),
        ThreatModel(),
        first=torch.tensor([0.5]),
        last=1.0,
        halvings=3,
    )
    assert all(points.max() == 1 for points in seen)
