"""PNG files by matplotlib, imported when the first one is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..extras import require
from .layout import Layout, Timeline, colours

MEBIBYTE = 1 << 20
_HATCHES = {"pinned": "////", "pending": "...."}


def loss_curve(
    points: Iterable[float | tuple[float, float]], path: str | os.PathLike[str], title: str = "training loss"
) -> Path:
    """Draw losses against steps. points: losses, one a step, or (step, loss) pairs. Returns the PNG's path."""
    pairs = [point if isinstance(point, tuple) else (step, point) for step, point in enumerate(points)]
    figure, (axes,) = _figure(title)
    _label(axes, x="step", y="loss")
    axes.plot([step for step, _ in pairs], [loss for _, loss in pairs], color="tab:blue", linewidth=1.2)
    return _save(figure, path)


def draw_pool(segments: Layout | None, events: Timeline | None, path: str | os.PathLike[str], title: str) -> Path:
    """The segments, the timeline, or one above the other."""
    heights = []
    if segments is not None:
        heights.append(min(max(1.5 + 0.3 * len(segments.rows), 3.0), 16.0))
    if events is not None:
        heights.append(4.5)
    figure, axes = _figure(title, heights)
    if segments is not None:
        _draw_segments(axes[0], segments)
    if events is not None:
        _draw_timeline(axes[-1], events)
    return _save(figure, path)


def _draw_segments(axes: Any, segments: Layout) -> None:
    patches = [patch for row in segments.rows for bar in row for patch in bar.patches]
    palette = colours(patch.tag for patch in patches)
    for y, row in enumerate(segments.rows):
        frames = [(bar.start / MEBIBYTE, bar.size / MEBIBYTE) for bar in row]
        axes.broken_barh(frames, (y - 0.4, 0.8), facecolors="white")
        for kind in sorted({(patch.tag, patch.state) for bar in row for patch in bar.patches}):
            alike = [patch for bar in row for patch in bar.patches if (patch.tag, patch.state) == kind]
            spans = [(patch.start / MEBIBYTE, patch.size / MEBIBYTE) for patch in alike]
            colour = "white" if kind[1] == "pending" else palette[kind[0]]
            # edges of blocks show only where there is room for them
            width = 0.4 if len(spans) <= 100 else 0.0
            axes.broken_barh(
                spans,
                (y - 0.4, 0.8),
                facecolors=colour,
                edgecolor="black",
                linewidth=width,
                hatch=_HATCHES.get(kind[1]),
            )
        axes.broken_barh(frames, (y - 0.4, 0.8), facecolors="none", edgecolor="black", linewidth=0.8)
    _draw_legend(axes, palette, {patch.state for patch in patches})
    names = [row[0].text if len(row) == 1 else f"{len(row)} segments" for row in segments.rows]
    axes.set_yticks(range(len(names)) if len(names) <= 50 else [], names if len(names) <= 50 else [], fontsize=7)
    axes.set(xlim=(0, segments.width / MEBIBYTE), ylim=(max(len(names), 1) - 0.4, -0.6), xlabel="MiB")


def _draw_legend(axes: Any, palette: dict[str, str], states: set[str]) -> None:
    patch = require("matplotlib.patches", extra="demo", purpose="drawing a picture").Patch
    handles = [patch(facecolor=colour, label=tag or "untagged") for tag, colour in palette.items()]
    handles += [
        patch(facecolor="white", edgecolor="black", hatch=hatch, label=state)
        for state, hatch in _HATCHES.items()
        if state in states
    ]
    handles.append(patch(facecolor="white", edgecolor="black", label="free"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _draw_timeline(axes: Any, events: Timeline) -> None:
    """Reserved and allocated memory in MiB against seconds, the allocated stacked by tag where tags are known."""
    _label(axes, x="seconds", y="MiB")
    reserved, allocated = (_mebibytes(sizes) for sizes in (events.reserved, events.allocated))
    _area(axes, events.seconds, reserved, "tab:gray", f"reserved{_peak(events.peak_reserved)}")
    if len(events.by_tag) > 1:
        palette = colours(events.by_tag)
        axes.stackplot(
            events.seconds, *map(_mebibytes, events.by_tag.values()), step="post", linewidth=0,
            colors=[palette[tag] for tag in events.by_tag], labels=[tag or "untagged" for tag in events.by_tag],
        )  # fmt: skip
        label = f"allocated{_peak(events.peak_allocated)}"
        axes.step(events.seconds, allocated, where="post", color="black", linewidth=0.8, label=label)
    else:
        _area(axes, events.seconds, allocated, "tab:orange", f"allocated{_peak(events.peak_allocated)}")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", fontsize=8)


def _area(axes: Any, seconds: list[float], sizes: list[float], colour: str, label: str) -> None:
    # a pool changes in steps: between two samples it has the earlier one's value
    axes.fill_between(seconds, sizes, step="post", alpha=0.35, color=colour)
    axes.step(seconds, sizes, where="post", color=colour, linewidth=1.2, label=label)


def _peak(nbytes: int) -> str:
    return f" (peak {nbytes / MEBIBYTE:,.1f} MiB)" if nbytes else ""


def _mebibytes(sizes: Iterable[int]) -> list[float]:
    return [nbytes / MEBIBYTE for nbytes in sizes]


def _figure(title: str, heights: Iterable[float] = (4.5,)) -> tuple[Any, list[Any]]:
    """A figure of axes one below the other, with their heights in inches."""
    heights = list(heights)
    # Figure itself, not pyplot: it needs no display and keeps no global state
    figure = require("matplotlib.figure", extra="demo", purpose="drawing a picture").Figure(
        figsize=(8 if len(heights) == 1 else 10, sum(heights)), layout="constrained"
    )
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes[0].set_title(title)
    return figure, list(axes)


def _label(axes: Any, *, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png", dpi=120)
    return target
