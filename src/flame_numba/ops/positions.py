"""What tells a network where and when: rotary embedding, timestep embedding."""

from __future__ import annotations

__all__: list[str] = []
