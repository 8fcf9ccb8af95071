"""A data set that a user wrote: what their function gives, looked at and split.

The function takes no arguments and gives a dict, or an object with attributes, of ``train`` and ``test``, each a pair
of images, uint8 ``(n, c, h, w)`` or grey ``(n, h, w)``, and labels ``(n,)``; ``validation`` and ``classes`` where they
are not to be made out of these.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark import user_code
from benchmark.data.description import Description, names
from benchmark.data.images import Images, Splits, check
from benchmark.errors import BadInput
from benchmark.user_code import UserCode

Pair = tuple[Tensor, Tensor]
_MOST_HELD_OUT = 5_000


def name_of(code: UserCode) -> str:
    """Give the data set's name in tables and folders, ``my_data`` for ``MyData``; never one of the project's."""
    if code.key in names():
        raise BadInput(f"{code.label}: {code.key!r} is the name of a data set of the project: rename the function")
    return code.key


def describe(code: UserCode) -> Description:
    """Describe the user's data set, as its images are."""
    return _given(code).description


def load(
    code: UserCode, *, fold: int = 0, train_images: int | None = None, validation_images: int | None = None
) -> Splits:
    """Split the user's data set, the same way every time.

    Where the function gives no ``validation``, a tenth of the training images (at most 5,000) is held out, or
    ``validation_images`` of them: the first of ``numpy.random.RandomState(0).permutation``.

    Raises:
        BadInput: naming file and line, where the function fails or what it gives is no data set; for a fold other than
            0, or more images asked for than there are.
    """
    given, name = _given(code), name_of(code)
    if fold != 0:
        raise BadInput(f"{name} has 1 fold(s), counted from 0; got fold {fold}")
    train, validation = given.train, given.validation
    if len(validation):
        train, validation = (
            _some(name, part, images, wanted)
            for part, images, wanted in (
                ("training", train, train_images),
                ("validation", validation, validation_images),
            )
        )
    else:
        train, validation = _held_out(name, train, train_images, validation_images)
    splits = Splits(given.description, train, validation, given.test)
    try:
        check(splits)
    except BadInput as error:
        raise BadInput(f"{_where(code)}: {error}") from None
    return splits


def splits_of(
    *, name: str, train: Pair, test: Pair, validation: Pair | None = None, classes: int | None = None, summary: str = ""
) -> Splits:
    """Make splits of uint8 images ``(n, c, h, w)`` with labels ``(n,)``; without ``validation`` that part is empty.

    Mean and standard deviation are those of the training images; the number of classes is told by the labels.
    """
    apart = validation or (train[0][:0], train[1][:0])
    labels = torch.cat([train[1], apart[1], test[1]])
    mean, std = _moments(train[0])
    description = Description(
        name=name,
        summary=summary,
        classes=int(labels.max()) + 1 if classes is None else classes,
        channels=train[0].shape[1],
        size=train[0].shape[-1],
        mean=mean,
        std=std,
    )
    count = len(train[1])
    return Splits(
        description,
        Images(*train, torch.arange(count)),
        Images(*apart, torch.arange(count, count + len(apart[1]))),
        Images(*test, torch.arange(len(test[1]))),
    )


@lru_cache(maxsize=1)  # one data set per run, asked for by description, training and every attack
def _given(code: UserCode) -> Splits:
    """Call the user's function and look at what it gives; the part of held-out images may be empty."""
    where, name, summary = _where(code), name_of(code), f"a user's own: {code.label}"
    found = user_code.call(code, user_code.load(code, kind="class or function"))
    if isinstance(found, Splits):
        return replace(found, description=replace(found.description, name=name, summary=summary))
    parts = {part: _pair(found, part, where) for part in ("train", "test", "validation")}
    for part in ("train", "test"):
        if parts[part] is None:
            raise BadInput(
                f"{where}: {code.name} gives 'train' and 'test', each a pair (images, labels), "
                f"but found no {part!r} in a {type(found).__name__}"
            )
    classes = _part(found, "classes")
    if classes is not None and not (isinstance(classes, int) and classes > 1):
        raise BadInput(f"{where}: 'classes' is a whole number above 1, but found {classes!r}")
    return splits_of(name=name, summary=summary, classes=classes, **parts)  # type: ignore[arg-type] # none is missing


def _where(code: UserCode) -> str:
    return user_code.line_of(user_code.load(code, kind="class or function"), code)


def _part(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else getattr(found, name, None)


def _pair(found: Any, part: str, where: str) -> Pair | None:
    value = _part(found, part)
    if value is None:
        return None
    try:
        images, labels = value
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(f"{where}: {part!r} is a pair (images, labels), but found a {type(value).__name__}") from None
    images = images[:, None] if images.ndim == 3 else images  # grey
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise BadInput(
            f"{where}: the images of {part!r} are uint8 of shape (n, c, h, w) or (n, h, w), "
            f"but found {_plain(images)}: pixels go from 0 to 255"
        )
    if images.shape[-1] != images.shape[-2]:
        turned = ": move the channels forward" if images.shape[1] == images.shape[2] else ""
        raise BadInput(f"{where}: the images of {part!r} are square, (n, c, h, w), but found {_plain(images)}{turned}")
    if len(images) and images.max() <= 1:
        raise BadInput(f"{where}: the pixels of {part!r} go from 0 to 255, but found none above {int(images.max())}")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.shape != (len(images),):
        raise BadInput(
            f"{where}: the labels of {part!r} are one whole number per image, of shape ({len(images)},), "
            f"but found {_plain(labels)}"
        )
    if len(labels) == 0:
        raise BadInput(f"{where}: {part!r} holds at least one image, but found none")
    return images.contiguous(), labels.to(torch.int64)


def _plain(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give mean and standard deviation per channel in [0, 1]; counted by level, so that large sets need no floats."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        middle = (share * levels).sum()
        mean.append(round(float(middle), 4))
        std.append(max(round(float((share * (levels - middle) ** 2).sum().sqrt()), 4), 1e-3))  # a channel may be flat
    return tuple(mean), tuple(std)


def _some(name: str, part: str, images: Images, wanted: int | None) -> Images:
    if wanted is not None and not 1 <= wanted <= len(images):
        raise BadInput(f"{name} has {len(images)} {part} images: asked for {wanted}")
    return images if wanted is None else images.take(torch.arange(wanted))


def _held_out(name: str, images: Images, wanted: int | None, apart: int | None) -> tuple[Images, Images]:
    """Divide the training images into those that are trained on and those that are held out."""
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images)))  # a frozen generator
    apart = min(_MOST_HELD_OUT, max(1, len(order) // 10)) if apart is None else apart
    wanted = len(order) - apart if wanted is None else wanted
    if wanted < 1 or apart < 1 or wanted + apart > len(order):
        raise BadInput(
            f"{name} has {len(order)} images for training and validation together: asked for {wanted} and {apart}, of "
            "which each must be at least 1"
        )
    return images.take(order[apart : apart + wanted]), images.take(order[:apart])
