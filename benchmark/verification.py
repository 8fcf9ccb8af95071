"""Recheck a report: its files against the manifest, its tables against verdicts, these against networks.

What can be checked without PyTorch is checked without it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmark.errors import BadInput
from benchmark.results import evidence, manifest
from benchmark.results.cards import read_cards
from benchmark.results.carried import unfounded
from benchmark.results.finding import Finding
from benchmark.results.verify import contradictions, differences, other_columns
from benchmark.storage import not_being_written

_NOT_MEASURED = ("coverage.csv",)  # tells what this version of atbench has, not what was measured


@dataclass(frozen=True)
class Sources:
    """Where lies what a report needs and does not hold; None for where it lay when the report was made."""

    checkpoints: Path | None = None
    weights: Path | None = None
    code: Path | None = None
    data_root: Path | None = None
    download: bool = False


@dataclass
class Account:
    """What was looked at, what lies on the boundary, and what could not be checked."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    boundary: list[str] = field(default_factory=list)
    networks: int = 0
    clean: int = 0
    pictures: int = 0
    picture_bytes: int = 0
    without_pictures: int = 0

    def lines(self) -> list[str]:
        """Tell it, a line for each."""
        told = list(self.checked)
        told += [f"on the boundary: {line}" for line in self.boundary]
        return told + [f"not checked: {line}" for line in self.unchecked]

    def networks_hold(self) -> None:
        """Add what was asked of networks to what was checked."""
        clean = f"all {self.clean:,} clean predictions hold"
        self.checked += [f"networks: {self.networks} with the weights that were measured; {clean}"]
        if self.pictures:
            size = f"{self.picture_bytes / self.pictures:,.0f} bytes each"
            told = f"all {self.pictures:,} lie in ball and pixel range and are misread as told"
            self.checked += [f"pictures: {told}; {size}"]
        if self.without_pictures:
            many = f"{self.without_pictures:,} verdicts of fooled images"
            self.unchecked += [f"{many}: their pictures were not saved (--save-adversarial)"]


def verify(report: Path, sources: Sources, *, tables_only: bool = False) -> int:
    """Recheck ``report`` and tell on stdout what holds; 1 where something does not, and the first of it on stderr.

    Raises:
        BadInput: when the folder, its evidence or manifest, weights, data or a user's file is not there.
    """
    if not report.is_dir():
        raise BadInput(f"expected a report folder, found nothing at {report}; run `atbench run SUITE` first")
    if not evidence.parts(report):
        raise BadInput(f"expected evidence, found no finished part under {report / 'evidence'}: only tables lie there")
    account = Account()
    try:
        with not_being_written(report):
            findings = next(filter(None, map(list, _stages(report, sources, account, tables_only))), [])
    finally:  # also where something is not there: what was checked until then stays checked
        for line in account.lines():
            print(line)
    if not findings:
        print(f"all holds: {report}")
        return 0
    more = f" (and {len(findings) - 1} more like it)" if len(findings) > 1 else ""
    print(f"does not hold: {findings[0]}{more}", file=sys.stderr)
    return 1


def _stages(report: Path, sources: Sources, account: Account, tables_only: bool) -> Iterator[Iterator[Finding]]:
    """Yield the stages, cheapest first; a later one is begun only where the earlier found nothing."""
    yield _files(report, account)
    yield _tables(report, account)
    if tables_only:
        account.unchecked.append("what the networks say: left out by --tables")
    else:
        yield _networks(report, sources, account)


def _files(report: Path, account: Account) -> Iterator[Finding]:
    if manifest.exists(report):
        altered = list(manifest.altered(report))
        account.checked += [] if altered else [f"files: all have the SHA-256 that {manifest.NAME} records"]
        yield from altered
    elif any(report.glob("evidence/*/*/*/*.pictures.npz")):
        raise BadInput(
            f"there is no {report / manifest.NAME}, which tells whether a file was altered: take it from a copy, or "
            f"`atbench report {report}` records the files as they are now"
        )
    else:
        account.unchecked.append(f"the files' SHA-256: the report was made before there was a {manifest.NAME}")


def _tables(report: Path, account: Account) -> Iterator[Finding]:
    from benchmark.report.folder import tables
    from benchmark.report.summary import summarise

    verdicts = evidence.read(report)
    findings = [*contradictions(verdicts), *unfounded(verdicts)]
    made = {name: text for name, text in tables(summarise(report)).items() if name.endswith(".csv")}
    expected = {name: text for name, text in made.items() if name not in _NOT_MEASURED}
    there = [name for name in expected if (report / name).is_file()]
    for name in there:
        findings += differences(report, name, expected[name])
        if others := other_columns(report, name, expected[name]):
            account.unchecked.append(f"{name}, {', '.join(others)}: the table is of another version of atbench")
    for name in expected.keys() - set(there):
        account.unchecked.append(f"{name}: it is not there")
    if there and not findings:
        account.checked.append(f"tables: {', '.join(there)} follow from {len(verdicts):,} verdicts")
    yield from findings


def _networks(report: Path, sources: Sources, account: Account) -> Iterator[Finding]:
    from benchmark.asking import asked_again
    from benchmark.display import bars

    cards = {str(card["experiment"]): card for card in read_cards(report).contents}
    with bars(Console(stderr=True)) as progress:
        line = progress.add_task("networks", total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(line, description=what, completed=done, total=total)

        findings = list(asked_again(report, cards, sources, account, tell))
    if not findings:
        account.networks_hold()
    yield from findings
