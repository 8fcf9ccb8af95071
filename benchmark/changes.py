"""What replaces the values of a suite before they are checked: a suite that is based on it, and single changes."""

from typing import Any

from benchmark.errors import BadInput
from benchmark.results.rows import parts


def based_on(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Put ``values`` over those of ``base``, but for the methods, which take the place of all that it has.

    A variant whose method has no row among them starts from its row in ``base``.
    """
    methods, there = values.get("methods"), base.get("methods")
    if isinstance(methods, dict) and isinstance(there, dict):
        plain = {row: there.get(parts(str(row))[0]) for row in methods if parts(str(row))[0] not in methods}
        starts = {row: start for row, start in plain.items() if isinstance(start, dict) and methods[row]}
        methods = {row: merged(starts[row], own) if row in starts else own for row, own in methods.items()}
    return merged(base, values) | ({} if methods is None else {"methods": methods})


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Put ``over`` over ``base``, key by key at every depth."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        found[key] = merged(base[key], value) if both else value
    return found


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Put ``value`` in the place of a dotted ``key``, such as ``recipe.epochs``, made where it is missing."""
    name, rest = _first_name(values, key)
    while rest:
        below = values.setdefault(name, {})
        if below is None:
            below = values[name] = {}
        if not isinstance(below, dict):
            raise BadInput(f"--set {key}: {name} holds a value, not keys")
        values = below
        name, rest = _first_name(values, rest)
    values[name] = value


def _first_name(values: dict[str, Any], key: str) -> tuple[str, str]:
    """Split a dotted key behind its first name: the longest that is there, for ``alp/w_lp_0.25`` has a dot in it."""
    there = [name for name in values if isinstance(name, str) and f"{key}.".startswith(f"{name}.")]
    name = max(there, key=len, default=key.partition(".")[0])
    return name, key[len(name) + 1 :]
