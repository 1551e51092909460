"""Ops that change their first operand, and say so to the graph."""

from __future__ import annotations

__all__: list[str] = []
