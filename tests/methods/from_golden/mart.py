"""MART."""

from tests.methods.from_golden.trades import gaussian_start as build

__all__ = ["build"]
