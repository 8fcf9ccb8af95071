"""Follow the non-linearities of any network from outside: where they are, and what each call of one gives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import activation as torchs_own
from torch.overrides import TorchFunctionMode

from attacks.errors import BadInput
from methods.smooth_activations import SmoothReLU

_NO_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
_TORCHS = tuple(
    kind
    for kind in (getattr(torchs_own, name) for name in torchs_own.__all__)
    if issubclass(kind, nn.Module) and kind not in _NO_ACTIVATIONS
)
ACTIVATIONS = (*_TORCHS, SmoothReLU)
_NAMES = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
    *("tanh", "sigmoid", "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "log_sigmoid"),
    *("hardshrink", "softshrink", "tanhshrink", "glu"),
)
_FUNCTIONS = frozenset(name + ending for name in _NAMES for ending in ("", "_"))  # those with _ write into their input


def swap_activations(network: nn.Module, kind: type[nn.Module], make: Callable[[], nn.Module]) -> int:
    """Put a module that ``make`` gives in the place of each of ``kind`` in ``network``; returns how many there were."""
    found = [
        (parent, name)
        for parent in list(network.modules())
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
    for parent, name in found:
        setattr(parent, name, make())
    return len(found)


class ActivationCall(NamedTuple):
    """One call of an activation module: its name, and the shape of what it gave for each image, channels first."""

    name: str
    shape: tuple[int, ...]


def activation_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Give the modules of ``network`` that are non-linearities, by name; one that is used twice stands once."""
    return {name: module for name, module in network.named_modules() if isinstance(module, ACTIVATIONS)}


@contextmanager
def after_activations(network: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block put ``change`` behind every call of an activation module that is in train mode.

    As a layer of its own would be, it is called once for each call of a module, also where one module is called often;
    nothing of it is left on ``network``.
    """

    def changed(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return change(output) if module.training else output

    handles = [module.register_forward_hook(changed) for module in activation_modules(network).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def every_activation(network: nn.Module) -> Iterator[list[ActivationCall]]:
    """Inside the block list the calls of activation modules, in the order in which they happen.

    Raises:
        BadInput: on an activation that is called as a function, because no hook can follow it.
    """
    calls: list[ActivationCall] = []
    watch = _Functions(type(network).__name__)
    handles = []
    for name, module in activation_modules(network).items():

        def enter(_module: nn.Module, _inputs: Any) -> None:
            watch.inside += 1

        def leave(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            watch.inside -= 1
            calls.append(ActivationCall(name, tuple(output.shape[1:])))

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with watch:
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def is_activation(function: Any) -> bool:
    """Tell whether a function of PyTorch is a non-linearity, as a module calls it or as a network does itself."""
    return getattr(function, "__name__", "") in _FUNCTIONS


class _Functions(TorchFunctionMode):
    """Refuses functions of PyTorch that are non-linearities, unless an activation module calls them."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network, self.inside = network, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if is_activation(function) and not self.inside:
            raise BadInput(
                f"{self.network} calls {name} as a function, where nothing can be put behind it: make it a module of "
                "torch.nn, such as nn.ReLU, and call that"
            )
        return function(*args, **(kwargs or {}))
