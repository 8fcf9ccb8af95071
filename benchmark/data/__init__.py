"""Data sets by name, split as the protocol says, and the Lightning module that feeds them to training."""

from benchmark.data.description import Description, describe, described_only, names
from benchmark.data.errors import CorruptData, MissingData
from benchmark.data.hidden_labels import HiddenLabels, LabelChoice
from benchmark.data.images import Images, Splits, check, fixed_order
from benchmark.data.load import load
from benchmark.data.module import ImageData
from benchmark.data.tensors import TensorData

__all__ = [
    "CorruptData",
    "Description",
    "HiddenLabels",
    "ImageData",
    "Images",
    "LabelChoice",
    "MissingData",
    "Splits",
    "TensorData",
    "check",
    "describe",
    "described_only",
    "fixed_order",
    "load",
    "names",
]
