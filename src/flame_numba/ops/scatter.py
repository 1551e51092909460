"""Writing to computed places: scatter, index_add, put_along_axis."""

from __future__ import annotations

__all__: list[str] = []
