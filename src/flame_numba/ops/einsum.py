"""Sums of products along named axes: einsum, tensordot and their kin."""

from __future__ import annotations

__all__: list[str] = []
