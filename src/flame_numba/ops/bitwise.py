"""Bits of integers: and, or, xor, not, shifts."""

from __future__ import annotations

__all__: list[str] = []
