"""Cases of robust_overfitting are PGD training with another recipe."""

from tests.methods.from_golden.pgd_at import build

__all__ = ["build"]
