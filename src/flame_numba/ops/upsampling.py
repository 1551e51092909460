"""Images made larger or smaller: nearest, bilinear, bicubic."""

from __future__ import annotations

__all__: list[str] = []
