"""Scaled dot-product attention in O(n) memory."""

from __future__ import annotations

__all__: list[str] = []
