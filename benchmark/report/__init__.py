"""The report: tables, figures and a page from evidence alone; needs pandas and matplotlib, never PyTorch."""

from benchmark.report.folder import build

__all__ = ["build"]
