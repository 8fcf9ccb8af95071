"""Classifiers by name: small networks for the quick presets, the literature's for the full ones, torchvision's too."""

from benchmark.architectures.build import build, describe, names
from benchmark.architectures.normalise import Normalise

__all__ = ["Normalise", "build", "describe", "names"]
