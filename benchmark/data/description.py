"""What is known of a data set before a file is opened."""

import difflib
from dataclasses import dataclass
from typing import Literal

from benchmark.errors import BadInput


@dataclass(frozen=True)
class Description:
    """One data set: its shape, its normalisation, and the augmentation that its images allow.

    Args:
        mean, std: per channel over the training images, in [0, 1] pixel units.
        augmentation: "crop4+flip" pads 4 zeros, crops at random and mirrors half of the images; "none" where a
            mirrored image would be another thing, such as a digit.
    """

    name: str
    summary: str
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Literal["none", "crop4+flip"] = "none"

    @property
    def flips(self) -> bool:
        """Whether a mirrored image still shows its class."""
        return "flip" in self.augmentation


_KNOWN = {
    description.name: description
    for description in (
        Description(
            name="digits",
            summary="1,797 handwritten digits, 8x8 grey, shipped with scikit-learn: nothing to download",
            classes=10,
            channels=1,
            size=8,
            # Over all 1,797 images; those over any fold's training images differ by less than 0.0005.
            mean=(0.3053,),
            std=(0.3760,),
        ),
        Description(
            name="mnist",
            summary="70,000 handwritten digits, 28x28 grey (LeCun, Cortes & Burges)",
            classes=10,
            channels=1,
            size=28,
            mean=(0.1307,),
            std=(0.3081,),
        ),
        Description(
            name="cifar10",
            summary="60,000 photographs of animals and vehicles, 32x32 RGB (Krizhevsky, 2009)",
            classes=10,
            channels=3,
            size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augmentation="crop4+flip",
        ),
    )
}


def names() -> list[str]:
    """List the data sets by name, sorted."""
    return sorted(_KNOWN)


def describe(name: str) -> Description:
    """Look up a data set.

    Raises:
        BadInput: no such data set; the message suggests the nearest name.
    """
    if name not in _KNOWN:
        (near,) = difflib.get_close_matches(name, names(), n=1, cutoff=0)
        raise BadInput(f"no data set is called {name!r}; did you mean {near}? Known: {', '.join(names())}")
    return _KNOWN[name]
