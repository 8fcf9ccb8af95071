"""A network that a user wrote: built with what their function asks for, and tried on a few images first."""

import inspect
from typing import Any

import torch
from torch import nn

from attacks.checks import check_logits
from benchmark import user_code
from benchmark.data.description import Description
from benchmark.errors import BadInput
from benchmark.user_code import UserCode

_IMAGES = 2  # of a trial: BatchNorm wants more than one


def build(code: UserCode, data: Description, settings: dict[str, Any] | None = None) -> nn.Module:
    """Call the user's function and give its network.

    It is called with those of ``classes``, ``channels``, ``size``, ``mean`` and ``std`` that its signature names, and
    with the suite's ``settings`` of the network.

    Raises:
        BadInput: naming file and line, where the function fails or gives something else.
    """
    function = user_code.load(code)
    known = {name: getattr(data, name) for name in ("classes", "channels", "size", "mean", "std")}
    parameters, any_word = _words(function)
    stray = [name for name in settings or {} if name not in parameters and not any_word]
    if stray:
        raise BadInput(
            f"{user_code.line_of(function, code)}: {code.name} takes ({', '.join(parameters)}), but the suite has the "
            f"setting network.settings.{stray[0]}"
        )
    words = {name: value for name, value in known.items() if name in parameters}
    network = user_code.call(code, function, **{**words, **(settings or {})})
    if not isinstance(network, nn.Module):
        raise BadInput(
            f"{user_code.line_of(function, code)}: {code.name} returns an nn.Module, but found {type(network).__name__}"
        )
    return network


def try_out(network: nn.Module, data: Description, name: str, code: UserCode | None) -> None:
    """Run ``network`` on a few made-up images of the data set's shape, before hours are spent on it.

    Raises:
        BadInput: where it fails, or gives something else than finite logits ``(n, classes)``; for a network of the
            user's with the line of the failure, or of the function that built it.
    """
    where = user_code.line_of(user_code.load(code), code) if code is not None else name
    x = torch.rand(_IMAGES, data.channels, data.size, data.size, generator=torch.Generator().manual_seed(0))
    expected = f"logits of shape ({_IMAGES}, {data.classes}) for {_IMAGES} images of {data.name}"
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            logits = network.eval()(x)
    except (Exception, SystemExit) as error:
        place = user_code.place(error, code.path) if code is not None else ""
        raise BadInput(
            f"{place or where}: the network failed on images of shape {tuple(x.shape)} with "
            f"{user_code.described(error)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if isinstance(logits, torch.Tensor) and tuple(logits.shape) != (_IMAGES, data.classes):
        raise BadInput(f"{where}: the network returns {expected}, but found {tuple(logits.shape)}")
    try:
        check_logits(logits, x, torch.zeros(_IMAGES, dtype=torch.int64))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def _words(function: Any) -> tuple[list[str], bool]:
    """List the words that ``function`` can be called with, and whether it takes any other."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], False
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
