"""Put a user's own method, data set and network into a suite, under names that can be read in tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark import own_method, user_code, variants
from benchmark.data import own as own_data
from benchmark.errors import BadInput
from benchmark.results.rows import method_of, parts
from benchmark.suite import DataChoice, NetworkChoice, Suite
from benchmark.user_code import UserCode, anchored, is_reference


def take_up(suite: Suite) -> Suite:
    """Look up what ``suite`` names as FILE:OBJECT and put readable names in its place; the files are run for that.

    A method is called by the key of its card, and what the suite sets for that key goes to it; variants' settings are
    written out: :func:`benchmark.variants.written_out`. A suite that names neither stays as it is.

    Raises:
        BadInput: for a mistake in a user's file, two methods of one key, a variant that is none, or an unknown method
            in ``against``.
    """
    keys, own = {}, dict(suite.own)
    for name in filter(is_reference, suite.methods):
        file, variant, labels = parts(name)
        code = user_code.find(file if ":" in name else name, "Mine")
        key = own_method.load(code).card.key
        keys[name] = key + variant + labels
        if own.get(key, code) != code:
            raise BadInput(
                f"two methods have the key {key!r}, {own[key].label} and {code.label}: give one of them another by "
                f'card = Card(key="{key}_2", category="own", citation="")'
            )
        own[key] = code
    methods: dict[str, dict[str, Any] | None] = {}
    for name, settings in suite.methods.items():
        key = keys.get(name, name)
        methods[key] = {**(methods.get(key) or {}), **(settings or {})} if methods.get(key) else settings
    methods = variants.written_out(methods, own)
    own = {key: code for key, code in own.items() if key in set(map(method_of, methods))}
    for name in suite.against:
        if name not in methods:
            raise BadInput(f"against names methods of the suite, which has {', '.join(methods)}, but found {name!r}")
    return replace(suite, dataset=data(suite.dataset), network=_network(suite.network), methods=methods, own=own)


def with_methods(
    suite: Suite, only: Sequence[str] | None, own: Sequence[str] = (), against: Sequence[str] | None = None
) -> Suite:
    """Cut a suite down to the methods that a command names, and add the user's.

    Args:
        only: these of the suite's; methods that it does not list are added with their defaults.
        own: FILE:CLASS, looked for from where the user stands.
        against: what the user's are compared with; where ``only`` names nothing, nothing else runs beside them.

    Raises:
        BadInput: as :func:`take_up`.
    """
    for text in own:
        if not is_reference(text):
            raise BadInput(f"--method takes FILE:CLASS, such as my.py:Mine, but found {text}: --methods takes names")
    first, others, mine = (_anchored(words) for words in (only or (), against or (), own))
    added = {word: suite.methods.get(word) for word in (*first, *others, *mine) if is_reference(word)}
    whole = take_up(replace(suite, methods={**suite.methods, **added}, against=[]))
    if against is not None and not whole.own:
        raise BadInput("--against names what a method of your own is compared with: add one by --method FILE:CLASS")
    if only is None and against is None:
        return take_up(replace(whole, against=suite.against))
    key_of = {f"{code.path}:{code.name}": key for key, code in whole.own.items()}
    first, others, mine = ([_keyed(word, key_of) for word in words] for words in (first, others, mine))
    if only is None and not mine:
        mine = [row for row in whole.methods if method_of(row) in whole.own]  # those that stand in the suite's file
    methods = {
        key: whole.methods.get(key, whole.methods.get(key.partition("@")[0])) for key in (*first, *others, *mine)
    }
    compared = [key for key in suite.against if key in methods] if against is None else others
    return take_up(replace(whole, methods=methods, against=compared))


def in_place_of(suite: Suite, dataset: str | None, network: str | None) -> dict[str, Any]:
    """Give the changes to ``suite`` that put another data set or network in place of its own.

    The suite gets another name and title with it, so that its results go to a folder of their own; how far it cuts its
    data set down goes, and its note, which may be about the old one.
    """
    changes: dict[str, Any] = {}
    name, title = suite.name, suite.title or suite.name
    if dataset is not None and dataset != suite.dataset.name:
        readable = _readable(dataset, "MyData")
        name, title = f"{name}-{readable}", f"{title}, on {readable}"
        changes |= {
            "dataset.name": dataset,
            "dataset.folds": [0],
            "note": f"{readable} in place of {suite.dataset.name}.",
        }
        changes |= {"dataset.train_images": None, "dataset.validation_images": None, "dataset.labels": None}
    if network is not None and network != suite.network.name:
        readable = _readable(network, "build")
        name, title = f"{name}-{readable}", f"{title}, with {readable}"
        changes["network"] = {"name": network}
    return {**changes, "name": name, "title": title} if changes else {}


def _keyed(row: str, key_of: Mapping[str, str]) -> str:
    method, variant, labels = parts(row)
    return key_of.get(method, method) + variant + labels


def _anchored(words: Sequence[str]) -> list[str]:
    return [anchored(word, Path()) for word in words]


def _readable(text: str, example: str) -> str:
    return user_code.find(anchored(text, Path()), example).key if is_reference(text) else text.replace("/", "-")


def data(choice: DataChoice) -> DataChoice:
    """Put the name and code of a user's data set in place of its FILE:OBJECT."""
    code = _code(choice.name, "MyData")
    return choice if code is None else replace(choice, name=own_data.name_of(code), code=code)


def _network(choice: NetworkChoice) -> NetworkChoice:
    code = None if choice.code is not None else _code(choice.name, "build")
    return choice if code is None else replace(choice, name=code.label, code=code)


def _code(name: str, example: str) -> UserCode | None:
    return user_code.find(name, example) if is_reference(name) else None
