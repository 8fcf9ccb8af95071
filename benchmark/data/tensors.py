"""Whole batches out of images that stay on one device."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from benchmark.data.images import Images
from methods.base import Batch


class TensorData(Dataset[Batch]):
    """Serve ``Images`` as batches ``(x, y, index)``: float32 pixels in [0, 1], int64 labels, int64 image numbers.

    The images stay as uint8 where they are and become pixels a batch at a time, on their own device, without a Python
    loop over images.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Batch:
        """Return one image ``(c, h, w)`` with its label and number, both scalars."""
        return Batch(*(rows[0] for rows in self.__getitems__([position])))

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Return the images at ``positions`` as one batch of shapes ``(n, c, h, w)``, ``(n,)``, ``(n,)``."""
        taken = self.images.take(torch.as_tensor(positions, device=self.images.images.device))
        return Batch(x=taken.pixels(), y=taken.labels, index=taken.index)
