"""A tensor for every row of this device's batch, kept between batches whichever images stand there."""

import torch
from torch import Tensor

from attacks.errors import BadInput


class PerRow:
    """Noise that belongs to the position in the batch, zero at first (Free-AT; Fast-AT's ``previous``).

    Each rank has its own, and no buffer of a module, which DDP would overwrite with rank 0's. The base saves those of
    all ranks with the checkpoint. A smaller batch uses the first rows and leaves the others as they are.

    Attributes:
        table: ``(rows, c, h, w)``, or None before the first batch.
        resizes: whether a resumed run may go on with another batch size per device; rows are dropped or begin at zero.
    """

    def __init__(self) -> None:
        self.table: Tensor | None = None
        self.resizes = False
        self._resumed = False

    def of(self, x: Tensor) -> Tensor:
        """Give a copy of the first ``len(x)`` rows, shaped like images ``x`` ``(n, c, h, w)``.

        Raises:
            BadInput: in the first step after a resumption, when the batch size per device is another one.
        """
        if self.table is None:
            self.table = torch.zeros_like(x)
        if self._resumed and len(self.table) != len(x) and not self.resizes:
            raise BadInput(
                f"the checkpoint keeps noise for {len(self.table)} images a batch and device, but found a batch of "
                f"{len(x)}: resume with the batch size and number of devices that it was written with"
            )
        self._resumed = False
        self.table = self.table.to(x)
        if len(self.table) < len(x):
            self.table = torch.cat([self.table, torch.zeros_like(x[len(self.table) :])])
        return self.table[: len(x)].clone()

    def store(self, rows: Tensor) -> None:
        """Replace the first ``len(rows)`` rows."""
        assert self.table is not None
        self.table[: len(rows)] = rows.detach()

    def resume(self, tables: Tensor | None, rank: int, ranks: int) -> None:
        """Take up the table of ``rank`` among those ``(ranks, rows, c, h, w)`` of a checkpoint.

        Raises:
            BadInput: when the checkpoint was written by another number of devices.
        """
        if tables is None:
            return
        if len(tables) != ranks and not self.resizes:
            raise BadInput(
                f"the checkpoint keeps noise for each of {len(tables)} devices, but found {ranks}: "
                f"resume with --devices {len(tables)}"
            )
        self.table = tables[rank].clone() if rank < len(tables) else torch.zeros_like(tables[0])
        self._resumed = True
