"""Sorting, the largest k, and search in sorted values."""

from __future__ import annotations

__all__: list[str] = []
