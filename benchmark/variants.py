"""Variants of a method, rows of their own such as ``alp/untargeted``: how they are called, what they start from."""

import re
from typing import Any

from benchmark import own_method
from benchmark.changes import merged
from benchmark.errors import BadInput
from benchmark.results.rows import parts
from benchmark.user_code import UserCode

Methods = dict[str, dict[str, Any] | None]


def written_out(methods: Methods, own: dict[str, UserCode]) -> Methods:
    """Give a suite's ``methods`` with each variant's settings written out: those of its method's row, then its own.

    A variant is whole then and stays what it is when the suite is cut down. What is written out already stays so.

    Args:
        own: where methods of a user's live, by key.

    Raises:
        BadInput: for an unknown method, a variant without a proper name, or one that says nothing of its own.
    """
    found: Methods = {}
    for row, settings in methods.items():
        method, variant, labels = parts(row)
        if not variant:
            found[row] = settings
            continue
        own_method.find(method, own.get(method))  # an unknown one is told first
        if not re.fullmatch(r"/[A-Za-z0-9_.-]{1,60}", variant):
            raise BadInput(
                f"methods.{row}: behind the slash stands the name of a variant, 1 to 60 letters, digits, '-', '_' or "
                f"'.', such as {method}/mine, but found {variant[1:]!r}"
            )
        special = merged((labels and methods.get(method + variant)) or {}, settings or {})
        if not special:
            raise BadInput(
                f"methods.{row} has no settings in this suite, and would be {method} by another name: "
                f"say in what it departs, as by --set methods.{row}.SETTING=VALUE"
            )
        found[row] = merged(methods.get(method) or {}, special)
    return found
