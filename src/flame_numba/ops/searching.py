"""Where elements are: nonzero, unique, counts."""

from __future__ import annotations

__all__: list[str] = []
