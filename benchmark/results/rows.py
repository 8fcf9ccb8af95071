"""What tables call a run: ``trades``, its variant ``trades/beta_1``, and either on 200 labels, ``trades@200``."""


def parts(row: str) -> tuple[str, str, str]:
    """Split a row's name into method, variant and labels: ``("trades", "/beta_1", "@200")``, "" for what it lacks.

    The method may be a user's FILE:CLASS, whose folders have slashes of their own.
    """
    file, colon, name = row.rpartition(":")
    rest, at, labels = name.partition("@")
    method, slash, variant = rest.partition("/")
    return file + colon + method, slash + variant, at + labels


def method_of(row: str) -> str:
    """Give the key of the method that a row is about."""
    return parts(row)[0]
