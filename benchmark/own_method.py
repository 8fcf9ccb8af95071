"""A method that a user wrote: its class, looked at before anything is trained."""

import inspect
import re
from dataclasses import replace
from typing import Any

from benchmark import user_code
from benchmark.errors import BadInput
from benchmark.results import survey
from benchmark.user_code import UserCode
from methods import catalogue
from methods.base import AdversarialTraining, Card

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PLACES = {  # what a method may override, and what it is called with
    "training_loss": ("batch",),
    "perturb": ("batch", "objective"),
    "optimizers_for": ("recipe",),
    "on_epoch": ("epoch",),
    "classifier": (),
}


def find(method: str, code: UserCode | None) -> type[AdversarialTraining]:
    """Give the class of a method: the user's where there is ``code``, else the project's of that name."""
    return catalogue.get(method) if code is None else load(code)


def load(code: UserCode) -> type[AdversarialTraining]:
    """Give the user's class, with a card: where it has none, the key is the name of the class, ``Mine`` as ``mine``.

    Raises:
        BadInput: naming file and line, for what is no method, for signatures that the harness cannot call, and for a
            key that is taken.
    """
    found = user_code.load(code, kind="class")
    where = user_code.line_of(found, code)
    if not (isinstance(found, type) and issubclass(found, AdversarialTraining)):
        raise BadInput(
            f"{where}: a method is a subclass of methods.base.AdversarialTraining, but {code.name} is {_kind(found)}"
        )
    _check_signatures(found, code, where)
    if "card" not in vars(found):
        found.card = _derived(found, code)
    _check_card(found.card, where)
    return found


def _check_signatures(found: type[AdversarialTraining], code: UserCode, where: str) -> None:
    own = found.training_loss is not AdversarialTraining.training_loss
    if not own and found.training_step is AdversarialTraining.training_step:
        raise BadInput(f"{where}: {code.name} has no training_loss(self, batch), which gives the loss of one batch")
    words = list(inspect.signature(found).parameters)
    needed = [p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty and p.kind in _NAMED]
    settings = dict.fromkeys(needed[2:]) | {"recipe": None, "seed": None}
    if words[:2] != ["network", "threat"] or not _takes(found, "network", "threat", **settings):
        line = user_code.line_of(found.__init__, code)
        raise BadInput(
            f"{line}: {code.name} is made with (network, threat, *, own settings, **common), but found "
            f"({', '.join(words)}): hand **common on to super().__init__"
        )
    for name, arguments in _PLACES.items():
        function = getattr(found, name)
        if not _takes(function, "self", *arguments):
            raise BadInput(
                f"{user_code.line_of(function, code)}: {name} takes ({', '.join(('self', *arguments))}), "
                f"but found {_signature(function)}"
            )


def _takes(function: Any, *values: Any, **words: Any) -> bool:
    try:
        inspect.signature(function).bind(*values, **words)
    except (TypeError, ValueError):
        return False
    return True


def _signature(function: Any) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})" if callable(function) else repr(function)


def _derived(found: type[AdversarialTraining], code: UserCode) -> Card:
    """Make a card for a class without one of its own; one that builds on a method stays in that method's class."""
    inherited = getattr(found, "card", None)
    own = Card(key=code.key, category="own", citation="")
    return replace(own, comparison=inherited.comparison) if isinstance(inherited, Card) else own


def _check_card(card: Any, where: str) -> None:
    if not isinstance(card, Card):
        raise BadInput(f"{where}: card is a methods.base.Card, but found {_kind(card)}: leave it out to get one")
    if not re.fullmatch(r"\w[\w+.-]{0,59}", str(card.key)):
        raise BadInput(f"{where}: a key is 1 to 60 letters, digits, '_', '-', '+' or '.', but found {card.key!r}")
    if card.key in {*catalogue.names(), *survey.table1().method_key}:
        raise BadInput(
            f"{where}: the key {card.key!r} is that of another method: rename the class, or give it another by "
            f'card = Card(key="my_{card.key}", category="own", citation="")'
        )


def _kind(found: Any) -> str:
    if isinstance(found, type):
        return f"a subclass of {', '.join(base.__name__ for base in found.__bases__)}"
    return f"a {type(found).__name__}"
