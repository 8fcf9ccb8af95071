"""A data set that a user wrote: what their function gives, made into splits; every complaint names file and line.

The function takes no arguments and gives a dict, or an object with attributes, of ``train`` and ``test``, each a pair
of images, uint8 ``(n, c, h, w)`` or grey ``(n, h, w)``, and labels ``(n,)``; and whatever else :meth:`Splits.of` takes,
such as ``validation``, ``classes`` and ``augmentation``. It may give :class:`Splits` as well.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from benchmark import user_code
from benchmark.data.description import Description, names
from benchmark.data.images import Images, Splits
from benchmark.errors import BadInput
from benchmark.user_code import UserCode

_NEEDED, _OPTIONAL = ("train", "test"), ("validation", "classes", "augmentation", "levels")


def name_of(code: UserCode) -> str:
    """Give the data set's name in tables and folders, ``my_data`` for ``MyData``; never one of the project's."""
    if code.key in names():
        raise BadInput(f"{code.label}: {code.key!r} is the name of a data set of the project: rename the function")
    return code.key


def describe(code: UserCode) -> Description:
    """Describe the user's data set, as its images are; however they are split, networks are normalised by this."""
    return _splits(code, None).description


def load(
    code: UserCode, *, fold: int = 0, train_images: int | None = None, validation_images: int | None = None
) -> Splits:
    """Split the user's data set, the same way every time; ``validation_images`` are held out where none are given.

    Raises:
        BadInput: naming file and line, where the function fails or what it gives is no data set; for a fold other than
            0, or more images asked for than there are.
    """
    if fold != 0:
        raise BadInput(f"{name_of(code)} has 1 fold(s), counted from 0; got fold {fold}")
    splits = _splits(code, validation_images)
    return replace(
        splits,
        description=describe(code),
        train=_first(code, "training", splits.train, train_images),
        validation=_first(code, "validation", splits.validation, validation_images),
    )


def _splits(code: UserCode, held_out: int | None) -> Splits:
    given, name, summary = _given(code), name_of(code), f"a user's own: {code.label}"
    if isinstance(given, Splits):
        return replace(given, description=replace(given.description, name=name, summary=summary))
    try:
        if given.get("validation") is None:
            given = {**given, "held_out": held_out}
        return Splits.of(name, summary=summary, **given)
    except BadInput as error:
        raise BadInput(f"{_where(code)}: {error}") from None


@lru_cache(maxsize=1)  # one data set per run, asked for by description, training and every attack
def _given(code: UserCode) -> dict[str, Any] | Splits:
    """Call the user's function, and give what it gave as arguments of :meth:`Splits.of`."""
    found = user_code.call(code, user_code.load(code, kind="class or function"))
    if isinstance(found, Splits):
        return found
    look_up = found.get if isinstance(found, dict) else lambda name: getattr(found, name, None)
    given = {name: value for name in (*_NEEDED, *_OPTIONAL) if (value := look_up(name)) is not None}
    for part in _NEEDED:
        if part not in given:
            raise BadInput(
                f"{_where(code)}: {code.name} gives 'train' and 'test', each a pair (images, labels), "
                f"but found no {part!r} in a {type(found).__name__}"
            )
    return given | {part: _with_channel(code, part, given[part]) for part in (*_NEEDED, "validation") if part in given}


def _with_channel(code: UserCode, part: str, pair: Any) -> Any:
    """Give grey images their one channel; whatever is no pair of images and labels is left to Splits.of."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return pair
    images, labels = pair
    images = images[:, None] if getattr(images, "ndim", 0) == 3 else images
    if getattr(images, "ndim", 0) == 4 and len(images) and "int" in str(images.dtype) and images.max() <= 1:
        raise BadInput(f"{_where(code)}: the pixels of {part!r} go from 0 to 255, but found none above {images.max()}")
    return images, labels


def _where(code: UserCode) -> str:
    return user_code.line_of(user_code.load(code, kind="class or function"), code)


def _first(code: UserCode, part: str, images: Images, wanted: int | None) -> Images:
    if wanted is not None and not 1 <= wanted <= len(images):
        raise BadInput(f"{name_of(code)} has {len(images)} {part} images: asked for {wanted}")
    return images if wanted is None else images.take(torch.arange(wanted))
