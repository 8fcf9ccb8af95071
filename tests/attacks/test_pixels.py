import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks import BadInput, Pixels
from attacks.pixels import fraction


@pytest.mark.parametrize(
    ("written", "at_031"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.007", 0.007),
        (".5", 0.5),
        ("1e-3", 0.001),
        (0.25, 0.25),
        (0, 0.0),
        ("epsilon", 0.031),
        ("epsilon/4", 0.031 / 4),
        ("1.25 epsilon", 1.25 * 0.031),
        ("1.25*epsilon", 1.25 * 0.031),
        ("0.007/0.031 epsilon", 0.007),
    ],
)
def test_a_length_is_read_as_people_write_it(written, at_031):
    assert Pixels.read(written).at(0.031) == pytest.approx(at_031, rel=1e-15)


def test_a_quarter_of_epsilon_is_the_very_division_of_the_papers():
    assert Pixels.read("epsilon/10").at(8 / 255) == (8 / 255) / 10


@given(st.floats(0, 1), st.floats(0.01, 100))
def test_a_relative_length_follows_epsilon_and_an_absolute_one_does_not(epsilon, factor):
    assert Pixels.read(f"{factor!r} epsilon").at(epsilon) == pytest.approx(factor * epsilon)
    assert Pixels.read(factor).at(epsilon) == factor


def test_a_relative_length_follows_radii_per_image():
    radii = torch.tensor([0.0, 0.1, 0.4])
    torch.testing.assert_close(Pixels.read("epsilon/4").at(radii), radii / 4)


@given(st.floats(0, 1e6))
def test_every_number_reads_as_itself(number):
    assert fraction(number) == fraction(repr(number)) == number


def test_what_was_read_can_be_read_again():
    length = Pixels.read("epsilon/4")
    assert Pixels.read(length) is length


@pytest.mark.parametrize("written", ["", "eight", "8/0", "-8/255", "8//255", "1,5", "inf", "nan", "1e999", None, True])
def test_a_bad_number_is_refused_naming_its_setting(written):
    with pytest.raises(BadInput) as refusal:
        Pixels.read(written, "inner.step_size")
    assert str(refusal.value) == (
        f"inner.step_size is a number in pixel units such as 8/255 or 0.031, but found {written!r}"
    )


@pytest.mark.parametrize(
    "written", ["epsilon4", "epsilon/0", "1/0 epsilon", "-epsilon", "epsilon*2", "epsilon epsilon"]
)
def test_a_bad_multiple_of_epsilon_is_refused_naming_its_setting(written):
    with pytest.raises(BadInput) as refusal:
        Pixels.read(written, "inner.scale")
    assert str(refusal.value) == f"inner.scale is written like 8/255, epsilon/4 or 1.25 epsilon, but found {written!r}"
