"""Pictures of a pool: PNG, or HTML where the path ends in .html."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..memory.views import SegmentView
from .layout import MemorySample, layout, timeline
from .page import write_page
from .png import draw_pool

__all__ = ["pool_picture", "pool_timeline"]


def pool_picture(
    segments: Sequence[SegmentView],
    path: str | os.PathLike[str],
    history: Sequence[MemorySample] = (),
    title: str = "memory pool",
) -> Path:
    """Draw a pool's segments as bars, blocks coloured by tag, and below them its history if there is one.

    Free bytes are white, pinned blocks striped, pending ones dotted. `.html` gives a page that says on hovering
    what a block is and who asked for it; anything else a PNG. Returns the path.
    """
    drawn = layout(segments)
    events = timeline(history) if history else None
    return write_page(drawn, events, path, title) if _is_page(path) else draw_pool(drawn, events, path, title)


def pool_timeline(
    history: Sequence[MemorySample],
    path: str | os.PathLike[str],
    title: str = "memory pool",
    *,
    by_tag: bool = True,
) -> Path:
    """Draw a pool's reserved and allocated memory in MiB against seconds. Returns the path (.html: a page, else PNG).

    With `pool.history()`, what is allocated is stacked by tag.
    """
    events = timeline(history)
    if not by_tag:
        events = replace(events, by_tag={})
    return write_page(None, events, path, title) if _is_page(path) else draw_pool(None, events, path, title)


def _is_page(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() in (".html", ".htm")
