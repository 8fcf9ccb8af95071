"""A data set that is not there, and one that is there but broken: two mistakes with two remedies."""

from pathlib import Path

from benchmark.errors import BadInput


class MissingData(BadInput, FileNotFoundError):
    """A data set, or one of its files, is not in the folder."""


class CorruptData(BadInput):
    """A file of a data set is in the folder, but is not the published one."""


def missing(name: str, folder: Path, expected: str) -> MissingData:
    """Say where ``expected`` was looked for and the three ways on."""
    return MissingData(
        f"{name} is not in {folder.absolute()}: found no {expected}\n"
        f"  you have it elsewhere:   --data-root FOLDER   (the folder that holds {expected})\n"
        f"  you want it downloaded:  --download\n"
        f"  you only want a look:    atbench run quickstart   (needs no data set)"
    )


def corrupt(name: str, file: Path, reason: str) -> CorruptData:
    """Name the broken file and the mend."""
    return CorruptData(
        f"{name} is damaged: {file.absolute()} {reason}\n"
        f"  you have a good copy:    put it there\n"
        f"  you want it downloaded:  delete the file, then --download"
    )


def unreadable(name: str) -> MissingData:
    """Say what can be done with a data set that is only described."""
    return MissingData(
        f"{name} is described, but not readable yet: only `atbench train --recipe RECIPE --dry` works, on random "
        "images of its shape"
    )
