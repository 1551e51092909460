"""A pool as one page of HTML that needs nothing else: pictures as inline SVG, with what each block is on hovering."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from ..memory.stats import format_bytes
from .layout import Bar, Layout, Patch, Timeline, colours

_WIDTH = 1000
_ROW = 26
_HEIGHT = 260  # of the timeline
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222; }
svg { display: block; width: 100%; height: auto; background: #fff; }
svg rect:hover { opacity: .7; }
.segment { fill: #fff; stroke: #222; }
.block { stroke: #222; stroke-width: .3; }
.key { display: inline-block; margin-right: 1.2em; }
.key span { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid #222; }
"""
_PATTERNS = """
<defs>
<pattern id="pinned" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<line x1="0" y1="0" x2="0" y2="6" stroke="#000" stroke-width="2"/></pattern>
<pattern id="pending" width="5" height="5" patternUnits="userSpaceOnUse"><circle cx="2" cy="2" r="1"/></pattern>
</defs>
"""


def write_page(segments: Layout | None, events: Timeline | None, path: str | os.PathLike[str], title: str) -> Path:
    """The segments, the timeline, or both."""
    body = [f"<h1>{escape(title)}</h1>"]
    if segments is not None:
        body += ["<h2>Segments</h2>", *_segments(segments)]
    if events is not None:
        body += ["<h2>Timeline</h2>", *_timeline(events)]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )
    target.write_text("\n".join([head, *body, "</html>\n"]), encoding="utf-8")
    return target


def _key(palette: Iterable[tuple[str, str]]) -> str:
    keys = (f'<span class="key"><span style="background:{c}"></span>{escape(tag)}</span>' for tag, c in palette)
    return f"<p>{''.join(keys)}</p>"


# --- segments ---------------------------------------------------------------------------------------------------------
def _segments(segments: Layout) -> Iterator[str]:
    palette = colours(patch.tag for row in segments.rows for bar in row for patch in bar.patches)
    yield _key([*((tag or "untagged", colour) for tag, colour in palette.items()), ("free", "#fff")])
    yield "<p>Striped: pinned. Dotted: freed, but a stream may still use it. Hovering over a block says who has it.</p>"
    yield f'<svg viewBox="-1 0 {_WIDTH + 2} {_ROW * max(len(segments.rows), 1)}">{_PATTERNS}'
    scale = _WIDTH / segments.width
    for y, row in enumerate(segments.rows):
        for bar in row:
            yield _rectangle(bar, y, scale, 'class="segment"')
            for patch in bar.patches:
                yield from _block(patch, y, scale, palette[patch.tag])
    yield "</svg>"


def _block(patch: Patch, y: int, scale: float, colour: str) -> Iterator[str]:
    fill = "#fff" if patch.state == "pending" else colour
    yield _rectangle(patch, y, scale, f'class="block" fill="{fill}"')
    if patch.state in ("pinned", "pending"):
        yield _rectangle(patch, y, scale, f'fill="url(#{patch.state})"')


def _rectangle(shape: Bar | Patch, y: int, scale: float, style: str) -> str:
    return (
        f'<rect x="{shape.start * scale:.2f}" y="{y * _ROW + 3}" width="{shape.size * scale:.2f}" height="{_ROW - 6}" '
        f"{style}><title>{escape(shape.text)}</title></rect>"
    )


# --- timeline ---------------------------------------------------------------------------------------------------------
def _timeline(events: Timeline) -> Iterator[str]:
    by_tag = events.by_tag or {"allocated": events.allocated}
    palette = colours(by_tag)
    yield _key([*((tag or "untagged", palette[tag]) for tag in by_tag), ("reserved (line)", "#222")])
    yield (
        f"<p>Peak allocated {format_bytes(events.peak_allocated)}, peak reserved {format_bytes(events.peak_reserved)}, "
        f"over {events.seconds[-1] if events.seconds else 0.0:.3f} s.</p>"
    )
    yield f'<svg viewBox="-1 -1 {_WIDTH + 2} {_HEIGHT + 2}">'
    top = [0] * len(events.seconds)
    for tag, sizes in by_tag.items():
        bottom, top = top, [low + size for low, size in zip(top, sizes)]
        points = _steps(events, top) + _steps(events, bottom)[::-1]
        peak = f"{tag or 'untagged'}: peak {format_bytes(max(sizes, default=0))}"
        yield f'<polygon fill="{palette[tag]}" points="{_text(points)}"><title>{escape(peak)}</title></polygon>'
    yield f'<polyline fill="none" stroke="#222" points="{_text(_steps(events, events.reserved))}"/>'
    yield "</svg>"


def _steps(events: Timeline, sizes: list[int]) -> list[tuple[float, float]]:
    """A staircase: each moment's value holds until the next one."""
    start, end = (events.seconds[0], events.seconds[-1]) if events.seconds else (0.0, 0.0)
    highest = max(events.peak_reserved, events.peak_allocated, 1)
    points: list[tuple[float, float]] = []
    for second, size in zip(events.seconds, sizes):
        x = _WIDTH * (second - start) / ((end - start) or 1.0)
        y = _HEIGHT * (1 - size / highest)
        if points:
            points.append((x, points[-1][1]))
        points.append((x, y))
    return points


def _text(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
