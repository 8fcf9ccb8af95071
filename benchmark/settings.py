"""A method's own settings: checked by the types of its constructor, and written out with every default."""

import difflib
import inspect
import re
from dataclasses import asdict
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser

from benchmark import own_method
from benchmark.errors import BadInput
from benchmark.user_code import UserCode
from methods.base import AdversarialTraining


def resolve(
    method: str, own: dict[str, Any], inner_steps: int, code: UserCode | None = None, row: str = ""
) -> dict[str, Any]:
    """Write out all settings of a method: its defaults, the preset's number of inner steps, then its ``own``.

    A method without an ``inner`` setting has its number of steps by definition, and the preset's is not used.

    Raises:
        BadInput: naming the method, or the suite's ``row`` of it, and the key.
    """
    found = own_method.find(method, code)
    defaults = {"inner": {"steps": inner_steps}} if "inner" in _parser(found).get_defaults() else {}
    inner = own.get("inner")
    merged = {**defaults, **own}
    if defaults and isinstance(inner, dict):
        merged["inner"] = {**defaults["inner"], **inner}
    parsed = parse(method, found, merged, row)
    return {key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in parsed.items()}


def _parser(found: type[AdversarialTraining]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, skip={"network", "threat", "recipe", "seed"})
    return parser


def parse(method: str, found: type[AdversarialTraining], settings: dict[str, Any], row: str = "") -> dict[str, Any]:
    """Give ``settings`` as the class takes them, with all defaults; raises :class:`BadInput` as :func:`resolve`."""
    parser = _parser(found)
    try:
        return dict(parser.instantiate(parser.parse_object(_in_words(found, settings))))
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).replace("Parser key ", "key ").replace("typing.", "")
        reason = re.sub(r"<class '(\w+)'>", r"\1", reason)
        known = [name.rpartition(".")[2] for name in parser.get_defaults().keys()]  # noqa: SIM118 - of the leaves
        wrong = re.search(r"ption '(\w+)'", reason)
        near = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
        hint = f": did you mean {near[0]}?" if near else ""
        raise BadInput(f"methods.{row or method}: {reason}{hint} (atbench show {method} lists its settings)") from None


def _in_words(found: type[AdversarialTraining], settings: dict[str, Any]) -> dict[str, Any]:
    """Spell out a truth value where a setting takes words: YAML reads ``label: true`` as one."""
    known = inspect.signature(found).parameters
    words = {key: get_args(known[key].annotation) for key in settings if key in known}
    return {
        key: str(value).lower() if isinstance(value, bool) and str(value).lower() in words.get(key, ()) else value
        for key, value in settings.items()
    }
