"""What diffusion transformers put between their layers: modulate, gate, and the like."""

from __future__ import annotations

__all__: list[str] = []
