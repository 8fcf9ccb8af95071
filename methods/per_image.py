"""One value per training image, remembered by sample index between epochs: a radius, a pseudo-label."""

import torch
from torch import Tensor


class PerImage:
    """A table over sample indices that grows as images turn up; every image starts at ``initial``.

    A method keeps one as a plain attribute. The base saves it with the checkpoint, and because it is no buffer, DDP's
    broadcast of rank 0's buffers passes it by. Write to it through
    :meth:`methods.base.AdversarialTraining.remember`, which gathers what all ranks found, so that they agree.

    Args:
        initial: its type decides the table's: int64 for an ``int``, float64 for a ``float``.

    Attributes:
        table: a value for each sample index so far. known: which of them were ever written.
    """

    def __init__(self, initial: int | float) -> None:
        self.initial = initial
        self.table = torch.empty(0, dtype=torch.int64 if isinstance(initial, int) else torch.float64)
        self.known = torch.empty(0, dtype=torch.bool)

    def of(self, index: Tensor) -> Tensor:
        """Give the values ``(n,)`` of the images numbered ``index`` ``(n,)``, int64, on its device."""
        self.table = self.table.to(index.device)
        found = self.table.new_full(index.shape, self.initial)
        seen = index < len(self.table)
        found[seen] = self.table[index[seen]]
        return found

    def store(self, index: Tensor, values: Tensor) -> None:
        """Write ``values`` ``(n,)`` for the images ``index`` ``(n,)``; of a repeated index the FIRST occurrence counts.

        An epoch that is dealt out to several devices repeats some images to fill the last batch (protocol.md).
        """
        self._make_room(index)
        order = index.argsort(stable=True)
        again = torch.zeros_like(order, dtype=torch.bool)
        again[1:] = index[order][1:] == index[order][:-1]
        first = order[~again]
        self.table[index[first]] = values[first].detach().to(self.table)
        self.known[index] = True

    def written(self) -> Tensor:
        """Give the values of the images that were ever written, in the order of their indices."""
        return self.table[self.known]

    def spread(self, name: str) -> dict[str, float]:
        """Give mean, 10th and 90th percentile and maximum of :meth:`written`, as ``name_mean`` and so on, for a row."""
        values = self.written().double()
        if len(values) == 0:
            return {}
        low, high = values.quantile(values.new_tensor([0.1, 0.9])).tolist()
        found = {"mean": values.mean().item(), "p10": low, "p90": high, "max": values.max().item()}
        return {f"{name}_{what}": value for what, value in found.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Give what a checkpoint needs."""
        return {"table": self.table, "known": self.known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.table, self.known = state["table"], state["known"]

    def _make_room(self, index: Tensor) -> None:
        self.table, self.known = self.table.to(index.device), self.known.to(index.device)
        missing = int(index.max()) + 1 - len(self.table) if len(index) else 0
        if missing > 0:
            self.table = torch.cat([self.table, self.table.new_full((missing,), self.initial)])
            self.known = torch.cat([self.known, self.known.new_zeros(missing)])
