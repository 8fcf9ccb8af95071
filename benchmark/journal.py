"""Keep what an attack in slots has found so far, so that a killed evaluation goes on at its queue."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from attacks.engine import Job, Outcome
from benchmark.errors import BadInput
from benchmark.storage import write_bytes


class Journal:
    """Outcomes of one part of the evidence, in a folder beside it that is there only until the part is finished.

    One small file for every few seconds of work, written under a temporary name and renamed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, list[Outcome]]:
        """Give what was kept, by attack.

        Raises:
            BadInput: for a damaged file, naming it.
        """
        kept: dict[str, list[Outcome]] = {}
        for path in self._files():
            kept.setdefault(path.stem.partition(".")[2], []).extend(_outcomes(path))
        return kept

    def keep(self, attack: str, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes of ``attack``."""
        pictures = [outcome.picture for outcome in outcomes if outcome.picture is not None]
        whole = [[*outcome.job, outcome.forward, outcome.backward, outcome.picture is not None] for outcome in outcomes]
        parts = {"jobs": torch.tensor(whole, dtype=torch.int64)}
        if pictures:
            parts["pictures"] = torch.stack(pictures).contiguous().cpu()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / f"{len(self._files()):06d}.{attack}.safetensors", save(parts))

    def close(self) -> None:
        """Take it away: its part is finished."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []


def _outcomes(path: Path) -> list[Outcome]:
    try:
        parts = load(path.read_bytes())
        jobs, pictures = parts["jobs"].tolist(), iter(parts.get("pictures", ()))
        return [
            Outcome(Job(row, phase), next(pictures) if fooled else None, forward, backward)
            for row, phase, forward, backward, fooled in jobs
        ]
    except (SafetensorError, KeyError, ValueError, StopIteration) as error:
        raise BadInput(
            f"{path} is no whole file of an attack in progress ({error}): delete it, only seconds of work are repeated"
        ) from error
