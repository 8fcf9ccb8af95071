import re

import pytest
import torch
from torch import nn

from attacks import BadInput, check_classifier, check_images
from tests.models import Returning, images, linear

X, Y = images(4), torch.tensor([0, 1, 2, 9])


def scaled(low, high):
    return torch.linspace(low, high, 4).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (
            (255 * X).to(torch.uint8),
            Y,
            "images are floating-point numbers in [0, 1], but found torch.uint8: divide by 255",
        ),
        (X, Y[:3], "there is one label per image, but found 4 images and 3 labels"),
        (X[:0], Y[:0], "there is nothing to attack: found 0 images"),
        (
            scaled(-1.0, 1.0),
            Y,
            "images lie in [0, 1], but found values from -1 to 1: normalise inside the network, as its first layer",
        ),
        (
            scaled(0.0, 255.0),
            Y,
            "images lie in [0, 1], but found values from 0 to 255: normalise inside the network, as its first layer",
        ),
        (
            torch.full_like(X, torch.nan),
            Y,
            "images lie in [0, 1], but found values from nan to nan: normalise inside the network, as its first layer",
        ),
        (X[0], Y[:1], "images have the shape (n, channels, height, width), but found (1, 8, 8)"),
        (X, Y.float(), "labels are whole numbers of type torch.int64, but found torch.float32"),
        (X, Y > 1, "labels are whole numbers of type torch.int64, but found torch.bool"),
        (X, Y.int(), "labels are whole numbers of type torch.int64, but found torch.int32"),
        (X, Y[:, None], "labels are one number per image, of shape (4,), but found (4, 1)"),
    ],
)
def test_bad_images_and_labels_are_refused_in_one_sentence(x, y, sentence):
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        check_images(x, y)


def test_another_range_is_named_in_the_sentence():
    with pytest.raises(BadInput, match=r"^images lie in \[-1, 2\], but found values from 0 to 3: "):
        check_images(scaled(0.0, 3.0), Y, low=-1.0, high=2.0)


def with_nan(x):
    logits = torch.zeros(len(x), 10)
    logits[1:3, 4] = torch.nan
    return logits


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            lambda x: (torch.zeros(len(x), 10), x),
            "the network returns one tensor of logits (n, classes), but found a tuple: "
            "wrap it so that only the logits come out",
        ),
        (
            lambda x: torch.zeros(len(x)),
            "the network returns logits of shape (4, classes) for 4 images, but found (4,)",
        ),
        (
            lambda x: torch.zeros(1, 10),
            "the network returns logits of shape (4, classes) for 4 images, but found (1, 10)",
        ),
        (with_nan, "logits are finite numbers, but found NaN or infinity for 2 of 4 images"),
        (
            lambda x: torch.full((len(x), 10), torch.inf),
            "logits are finite numbers, but found NaN or infinity for 4 of 4 images",
        ),
        (
            lambda x: torch.zeros(len(x), 5),
            "labels lie in 0..4 (the network has 5 classes), but found 0..9",
        ),
    ],
)
def test_a_network_that_answers_badly_is_refused_in_one_sentence(answer, sentence):
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        check_classifier(Returning(answer).eval(), X, Y)


def test_negative_labels_are_refused():
    with pytest.raises(BadInput, match=r"but found -1\.\.9$"):
        check_classifier(linear(), X, torch.tensor([-1, 1, 2, 9]))


def test_a_network_of_which_any_part_is_in_train_mode_is_refused_unrun():
    ran = []
    network = nn.Sequential(linear(), nn.Dropout(), Returning(ran.append)).eval()
    network[1].train()
    with pytest.raises(BadInput) as refusal:
        check_classifier(network, X, Y)
    assert str(refusal.value) == (
        "the network is attacked as it will be used, but found it in train mode: call network.eval()"
    )
    assert not ran


def test_a_good_network_passes_and_tells_its_classes():
    check_images(X, Y)
    assert check_classifier(linear(classes=12), X, Y) == 12


def test_checking_leaves_no_graph():
    answers = []
    network = linear()
    network.register_forward_hook(lambda module, inputs, logits: answers.append(logits.requires_grad))
    check_classifier(network, X, Y)
    assert answers == [False]
