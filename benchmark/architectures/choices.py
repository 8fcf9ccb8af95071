"""One sentence for a setting whose value is none of those allowed."""

from collections.abc import Collection

from benchmark.errors import BadInput


def one_of(setting: str, value: str, allowed: Collection[str]) -> None:
    """Raise BadInput unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise BadInput(f"setting {setting} must be one of {', '.join(allowed)}, got {value!r}")
