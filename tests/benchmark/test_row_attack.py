"""The attack of a row of Table 1, on linear networks whose worst images are known."""

import pytest
import torch
from torch import nn

from attacks import BadInput, ThreatModel
from benchmark.data import Images
from benchmark.evaluation import Job, evaluate, jobs
from benchmark.evaluation_settings import Evaluation
from benchmark.row_attack import RowAttack

EPSILON = 0.05


def settings(**row):
    row = {"epsilon": EPSILON, "steps": 20, **row}
    return Evaluation(epsilons=[EPSILON], ranked_at=[EPSILON], attacks=["row"], row=RowAttack(**row))


def images(count=200, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % classes, torch.arange(count))


def linear(classes=4, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight.sum(1) / 2)
    return network


def seen_rightly(network, count=200, classes=4):
    """Images with the label that the network gives them, so that every one that is fooled was fooled by the attack."""
    found = images(count, classes)
    with torch.no_grad():
        return Images(found.images, network(found.pixels()).argmax(1), found.index)


def fooled(network, found, **row):
    frame = evaluate(network, found, ThreatModel(), settings(**row), attacks=["row"])
    assert set(frame.attack) == {"row"}
    assert set(frame.epsilon) == {EPSILON}
    return torch.tensor(frame.sort_values("index").fooled.to_numpy())


def moved(x, direction):
    return (x + EPSILON * direction.sign()).clamp(0, 1)  # the exact optimum of a linear function, pixel by pixel


def away_from_label(network, found):
    """Whether the best image towards one of the wrong classes fools the network: the best that any attack can do."""
    weight, y, x = network[1].weight, found.labels, found.pixels()
    lost = torch.zeros(len(y), dtype=torch.bool)
    with torch.no_grad():
        for wrong in range(len(weight)):
            direction = (weight[wrong] - weight[y]).reshape(x.shape)
            lost |= network(moved(x, direction)).argmax(1) != y
    return lost


@pytest.mark.parametrize("loss", ["ce", "margin", "both"])
@pytest.mark.parametrize("random_start", [True, False])
def test_of_two_classes_every_loss_and_start_loses_exactly_what_can_be_lost(loss, random_start):
    network = linear(classes=2)
    found = seen_rightly(network, classes=2)
    lost = away_from_label(network, found)
    assert 0.05 < lost.float().mean() < 0.95
    assert fooled(network, found, loss=loss, random_start=random_start).equal(lost)


def test_both_losses_lose_what_either_loses():
    network = linear(classes=6)
    found = seen_rightly(network, classes=6)
    # Without a random start the three attacks have the same first images.
    alone = {loss: fooled(network, found, loss=loss, steps=3, random_start=False) for loss in ("ce", "margin")}
    assert fooled(network, found, loss="both", steps=3, random_start=False).equal(alone["ce"] | alone["margin"])


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_least_likely_target_loses_what_the_way_to_it_loses(loss):
    network = linear(classes=2)  # the other class is the least likely one, and the only one
    found = seen_rightly(network, classes=2)
    assert fooled(network, found, loss=loss, target="least_likely").equal(away_from_label(network, found))


def test_a_target_is_never_the_label_though_the_network_finds_it_the_least_likely():
    network = linear(classes=3)
    found = images(60, classes=3)
    with torch.no_grad():
        hated = Images(found.images, network(found.pixels()).argmin(1), found.index)  # all misread as they stand
    assert fooled(network, hated, target="least_likely").all()


def test_a_targeted_attack_is_weaker_than_one_away_from_the_label():
    network = linear(classes=6)
    found = seen_rightly(network, classes=6)
    free = fooled(network, found, loss="margin")
    for target in ("random", "least_likely"):
        aimed = fooled(network, found, loss="margin", target=target)
        assert 0 < aimed.sum() < free.sum()
        assert not (aimed & ~away_from_label(network, found)).any()


def test_a_random_target_belongs_to_the_image_and_is_each_other_class_alike():
    class Aim(nn.Module):  # moves with its input: any class can be reached, so the prediction tells the target
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, x):
            return self.scale * (x.flatten(1)[:, :5] - 0.5)

    count, labels = 600, torch.zeros(600, dtype=torch.int64)
    grey = torch.full((count, 1, 4, 4), 128, dtype=torch.uint8)
    grey[:, 0, 0, 0] += 1  # class 0 is seen
    found = Images(grey, labels, torch.arange(count))
    frame = evaluate(Aim(), found, ThreatModel(), settings(target="random", loss="margin"), attacks=["row"])
    aimed = frame.sort_values("index").prediction
    assert set(aimed) == {1, 2, 3, 4}
    assert aimed.value_counts().between(110, 190).all()
    part = evaluate(Aim(), found.take(torch.arange(7, 23)), ThreatModel(), settings(target="random", loss="margin"))
    part = part[part.attack == "row"]
    assert part.sort_values("index").prediction.tolist() == aimed[7:23].tolist()


def test_away_from_the_prediction_helps_an_image_that_is_misread():
    network = linear(classes=2)
    found = images(classes=2)
    with torch.no_grad():
        misread = network(found.pixels()).argmax(1) != found.labels
    assert fooled(network, found, labels="predicted")[misread].all()  # still counts as fooled, whatever it became
    assert fooled(network, found, labels="predicted")[~misread].equal(fooled(network, found)[~misread])


def test_one_step_of_epsilon_from_the_image_is_fgsm():
    network = linear(classes=2)
    found = seen_rightly(network, classes=2)
    one = fooled(network, found, steps=1, step_size="epsilon", random_start=False)
    assert one.equal(away_from_label(network, found))


class Overshot(nn.Module):
    """Is fooled only between 0.01 and 0.03 away from the image: the first steps arrive there, the last step leaves."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        far = (x[:, 0, 0, 0] - 0.5).abs() * self.scale
        inside = ((far > 0.01) & (far < 0.03)).float() * 10
        return torch.stack([4 - far, inside], 1)


def test_any_iterate_counts_where_the_row_says_so():
    grey = torch.full((3, 1, 4, 4), 51, dtype=torch.uint8)
    grey[:, 0, 0, 0] = 128  # a little above 0.5, so that the gradient leads up
    found = Images(grey, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    way = {"steps": 5, "step_size": "0.01", "random_start": False}
    assert not fooled(Overshot(), found, iterate="last", **way).any()
    assert fooled(Overshot(), found, iterate="any", **way).all()


def test_several_restarts_lose_no_fewer_images_and_start_elsewhere():
    network = linear(classes=6)
    found = seen_rightly(network, classes=6)
    once, often = (fooled(network, found, steps=1, step_size="epsilon/4", restarts=count) for count in (1, 20))
    assert not (once & ~often).any()
    assert often.sum() > once.sum()


def test_the_row_is_attacked_once_on_the_ranked_checkpoint_at_its_own_radius():
    row = RowAttack(epsilon="8/255", steps=20)
    every = Evaluation(epsilons=[0.01, "8/255"], ranked_at=["8/255"], attacks=["row", "pgd20"], row=row)
    ranked = list(jobs(every, ranked=True))
    assert ranked == [Job("clean", 0.0), Job("row", 8 / 255), Job("pgd20", 0.01), Job("pgd20", 8 / 255)]
    assert "row" not in {job.attack for job in jobs(every, ranked=False)}


def test_without_a_row_there_is_nothing_to_attack_with():
    with pytest.raises(BadInput, match="but this suite has none: it is for recipes"):
        list(jobs(Evaluation(attacks=["row"]), ranked=True))


def test_an_attack_is_named_as_papers_do():
    assert str(RowAttack(epsilon="8/255", steps=20)) == "PGD-20 at 0.03137"
    assert str(RowAttack(epsilon=0.031, steps=10, loss="margin")) == "CW-10 at 0.031"
    row = RowAttack(epsilon=0.3, steps=100, loss="both", target="least_likely", restarts=10)
    assert str(row) == "PGD and CW-100 at 0.3, least likely target, 10 restarts"
