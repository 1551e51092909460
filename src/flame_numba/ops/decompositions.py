"""Linear systems and decompositions of small matrices."""

from __future__ import annotations

__all__: list[str] = []
