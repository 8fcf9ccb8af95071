"""What is known of a data set before a file is opened."""

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal

from benchmark.data.augment import Style
from benchmark.errors import BadInput

Augmentation = Literal["none", "flip", "crop4", "crop4+flip", "crop2+flip", "crop4-reflect+flip"]


@dataclass(frozen=True)
class Description:
    """One data set: its shape, its normalisation, and the augmentation that its images allow.

    Args:
        mean, std: per channel over the training images, in [0, 1] pixel units.
        augmentation: "crop4" pads 4 zeros and crops at random, "crop4-reflect" pads by mirroring, "crop2" pads 2 zeros;
            with "+flip" half of the images are mirrored as well, with "flip" they are but mirrored; "none" where
            published recipes for adversarial training leave the images as they are.
        extra_from: training images numbered from here on are extra ones, which some methods use without their labels;
            None for a set without.
        readable: whether :func:`benchmark.data.load` can read it; some are only described, for published recipes.
    """

    name: str
    summary: str
    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = "none"
    extra_from: int | None = None
    readable: bool = True

    @property
    def moves(self) -> Style:
        """How images are moved where they are augmented."""
        found = re.match(r"crop(\d+)", self.augmentation)
        padding = int(found[1]) if found else 0
        return Style(padding=padding, reflect="reflect" in self.augmentation, flips="flip" in self.augmentation)


# Of the 73,257 training images alone: svhn_extra has the same figures, so that both train the same network. (With the
# extra images they would be .4310 .4302 .4463 and .1965 .1984 .1992, by DeVries & Taylor's code for cutout.)
_SVHN_MEAN, _SVHN_STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)

_IMAGENET: dict[str, Any] = {
    "classes": 1_000,
    "channels": 3,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "augmentation": "crop4+flip",  # for want of the random resized crop of its recipes
}

# Means and deviations of digits, mnist and cifar10 were measured for this project, and a test repeats it. Those of
# fashion_mnist, cifar100 and svhn are the ones in common use, which could not be measured again for want of the images;
# but multiplied out, the means published to 16 digits are whole sums of pixels, as they should be. The test covers
# these sets, too, where ATBENCH_DATA holds them.
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
        Description(
            name="cifar100",
            summary="60,000 photographs of 100 kinds of things, 32x32 RGB (Krizhevsky, 2009)",
            classes=100,
            channels=3,
            size=32,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            augmentation="crop4+flip",  # as Lee et al. (AVMixup, CVPR 2020) and Zhang & Wang (NeurIPS 2019)
        ),
        Description(
            name="fashion_mnist",
            summary="70,000 pieces of clothing, 28x28 grey (Xiao et al., 2017)",
            classes=10,
            channels=1,
            size=28,
            mean=(0.2860,),
            std=(0.3530,),
            # A mirrored shirt is a shirt, but ATDA (Song et al., ICLR 2019) and other recipes augment nothing here.
        ),
        Description(
            name="svhn",
            summary="99,289 house numbers cut to one digit, 32x32 RGB (Netzer et al., 2011)",
            classes=10,
            channels=3,
            size=32,
            mean=_SVHN_MEAN,
            std=_SVHN_STD,
            augmentation="crop4",  # as GradAlign (Andriushchenko & Flammarion, NeurIPS 2020): a mirrored 2 is no digit
        ),
        Description(
            name="svhn_extra",
            summary="SVHN with its 531,131 extra images to train on, which are easier; 1.3 GB (Netzer et al., 2011)",
            classes=10,
            channels=3,
            size=32,
            mean=_SVHN_MEAN,
            std=_SVHN_STD,
            augmentation="crop4",
            extra_from=73_257,
        ),
        # Described for the published recipes that use them, and not readable yet. Mean and deviation as in common use.
        Description(
            name="cifar10_tiny",
            summary="CIFAR-10 and 500,000 Tiny Images with pseudo-labels (Carmon et al., 2019); described only",
            classes=10,
            channels=3,
            size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augmentation="crop4+flip",
            extra_from=50_000,
            readable=False,
        ),
        Description(
            name="cifar10_tiny_200k",
            summary="CIFAR-10 and 200,000 Tiny Images without labels (Alayrac et al., 2019); described only",
            classes=10,
            channels=3,
            size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augmentation="crop4+flip",
            extra_from=50_000,
            readable=False,
        ),
        Description(
            name="tiny_imagenet",
            summary="110,000 photographs of 200 kinds of things, 64x64 RGB (Le & Yang, 2015); described only",
            classes=200,
            channels=3,
            size=64,
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2770, 0.2691, 0.2821),
            augmentation="crop4+flip",
            readable=False,
        ),
        Description(
            name="imagenet",
            summary="1,331,167 photographs of 1,000 kinds of things, 224x224 RGB (ILSVRC 2012); described only",
            readable=False,
            size=224,
            **_IMAGENET,
        ),
        Description(
            name="imagenet299",
            summary="ImageNet at 299x299 pixels, for Inception v3; described only",
            readable=False,
            size=299,
            **_IMAGENET,
        ),
    )
}


def names() -> list[str]:
    """List the data sets that can be read, by name, sorted."""
    return sorted(name for name in _KNOWN if _KNOWN[name].readable)


def described_only() -> list[str]:
    """List the data sets that no reader exists for, by name, sorted."""
    return sorted(name for name in _KNOWN if not _KNOWN[name].readable)


def describe(name: str) -> Description:
    """Look up a data set.

    Raises:
        BadInput: no such data set; the message suggests the nearest name.
    """
    if name not in _KNOWN:
        (near,) = difflib.get_close_matches(name, list(_KNOWN), n=1, cutoff=0)
        raise BadInput(f"no data set is called {name!r}; did you mean {near}? Known: {', '.join(names())}")
    return _KNOWN[name]
