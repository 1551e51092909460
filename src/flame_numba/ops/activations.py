"""Activation functions, each a formula."""

from __future__ import annotations

__all__: list[str] = []
