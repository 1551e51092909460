"""Shapes and order: tile, repeat, roll, patchify, triangles and diagonals."""

from __future__ import annotations

__all__: list[str] = []
