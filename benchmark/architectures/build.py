"""Build a classifier from its name."""

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from benchmark.architectures.choices import one_of
from benchmark.architectures.cifar_resnet import resnet8, resnet20, resnet32
from benchmark.architectures.densenet import densenet161
from benchmark.architectures.digits_cnn import digits_cnn
from benchmark.architectures.madry_resnet import madry_resnet
from benchmark.architectures.mnist_small import mnist_small
from benchmark.architectures.normalise import Normalise, StandardisePerImage
from benchmark.architectures.preact_resnet18 import preact_resnet18
from benchmark.architectures.published_cnns import (
    atda_convnet,
    conv8,
    lenet_plus,
    maxout,
    tramer_a,
    tramer_b,
    tramer_c,
    tramer_d,
)
from benchmark.architectures.resnet18 import resnet18, resnet50
from benchmark.architectures.small_cnn import small_cnn
from benchmark.architectures.torchvision_models import PREFIX, torchvision_model
from benchmark.architectures.wide_resnet import depth_and_width, wrn
from benchmark.errors import BadInput
from methods.activations import swap_activations
from methods.smooth_activations import smooth_activation

Builder = Callable[..., nn.Module]

_BUILDERS: dict[str, Builder] = {
    builder.__name__: builder
    for builder in (
        *(digits_cnn, mnist_small, small_cnn, lenet_plus, maxout, conv8, atda_convnet),
        *(tramer_a, tramer_b, tramer_c, tramer_d),
        *(resnet8, resnet20, resnet32, resnet18, resnet50, preact_resnet18, densenet161, madry_resnet, wrn),
    )
}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    **{name: smooth_activation(name) for name in ("silu", "gelu", "elu", "smooth_relu", "mish")},
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}
_WIDE = ("wrn-28-10", "wrn-32-10", "wrn-34-10", "wrn-34-20", "wrn-40-2")  # those of the literature; any D and K work
_SHAPE = ("classes", "channels", "size")


def names() -> list[str]:
    """List the architectures by name, sorted; ``torchvision/<name>`` and further ``wrn-D-K`` work beside them."""
    return sorted([*_BUILDERS, *_WIDE])


def describe(name: str) -> str:
    """Say in one line what ``name`` is.

    Raises:
        BadInput: no such architecture; the message suggests the nearest name.
    """
    if name.startswith(PREFIX):
        return f"torchvision's {name.removeprefix(PREFIX)} with random weights"
    builder, fixed = _find(name)
    if fixed:
        return (
            f"Wide ResNet of depth {fixed['depth']}, widened {fixed['width']} times (Zagoruyko & Komodakis, BMVC 2016)."
        )
    return (inspect.getdoc(builder) or "").splitlines()[0]


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalise: str | dict[str, Sequence[float]] = "data",
    activation: str = "relu",
    **settings: Any,
) -> nn.Module:
    """Build ``name`` for images ``(n, channels, size, size)`` in [0, 1], returning logits ``(n, classes)``.

    The result is a ``Sequential`` of ``normalise`` (left out where ``mean`` is None) and ``body``, in train mode, on
    the CPU; its weights are drawn from torch's global generator and depend on nothing else.

    Args:
        mean, std: per channel, in [0, 1] pixel units; both or neither.
        normalise: ``data``, by mean and std; ``none``; ``per_image``; or a mean and a std of its own, by these names.
        activation: in place of every ``nn.ReLU``: softplus (of slope 1), silu, gelu, elu, smooth_relu, mish or
            leaky_relu (of slope 0.1).
        settings: the architecture's own, such as ``width`` or ``dropout``; see its file.

    Raises:
        BadInput: an unknown name or setting, a setting's value of the wrong type, images that are too small.
    """
    if name.startswith(PREFIX):
        body = torchvision_model(name.removeprefix(PREFIX), classes=classes, channels=channels, size=size, **settings)
    else:
        builder, fixed = _find(name)
        _check_settings(name, builder, fixed, settings)
        body = builder(classes=classes, channels=channels, size=size, **fixed, **settings)
    if activation != "relu":
        one_of("activation", activation, ["relu", *_ACTIVATIONS])
        swap_activations(body, nn.ReLU, _ACTIVATIONS[activation])
    layers = OrderedDict(body=body)
    if isinstance(normalise, str):
        one_of("normalise", normalise, ("data", "none", "per_image"))
    if normalise == "per_image":
        return nn.Sequential(OrderedDict(normalise=StandardisePerImage(), body=body))
    if normalise == "none":
        return nn.Sequential(layers)
    if isinstance(normalise, dict):
        if set(normalise) != {"mean", "std"}:
            raise BadInput(f"setting normalise holds a mean and a std, got {', '.join(normalise) or 'nothing'}")
        mean, std = normalise["mean"], normalise["std"]
    if mean is not None or std is not None:
        if len(mean or ()) != channels:
            raise BadInput(f"normalisation for images of {channels} channels needs as many means, got {mean}")
        layers = OrderedDict(normalise=Normalise(mean or (), std or ()), body=body)
    return nn.Sequential(layers)


def _find(name: str) -> tuple[Builder, dict[str, int]]:
    """Return the builder of ``name`` with the settings that the name itself fixes."""
    if wide := depth_and_width(name):
        return wrn, {"depth": wide[0], "width": wide[1]}
    if name not in _BUILDERS:
        (near,) = difflib.get_close_matches(name, names(), n=1, cutoff=0)
        raise BadInput(
            f"no architecture is called {name!r}; did you mean {near}? Known: {', '.join(names())}; "
            f"any torchvision classifier works as {PREFIX}<name>, such as {PREFIX}resnet18"
        )
    return _BUILDERS[name], {}


def _check_settings(name: str, builder: Builder, fixed: dict[str, int], settings: dict[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters
    defaults = {key: parameters[key].default for key in parameters if key not in _SHAPE and key not in fixed}
    for key, value in settings.items():
        if key not in defaults:
            accepted = ", ".join(f"{known}={default!r}" for known, default in defaults.items()) or "no settings"
            raise BadInput(f"{name} has no setting {key!r}; it accepts {accepted}")
        expected = type(defaults[key])
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise BadInput(
                f"setting {key} of {name} must be {expected.__name__}, such as {defaults[key]!r}; got {value!r}"
            )
        if expected is int and value < 1:
            raise BadInput(f"setting {key} of {name} must be at least 1, got {value}")
