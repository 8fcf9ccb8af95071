"""Errors of the harness; nothing here imports torch, so that reading a report stays light."""

from attacks.errors import BadInput

__all__ = ["BadInput"]
