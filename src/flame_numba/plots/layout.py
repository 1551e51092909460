"""Where things go in a picture of a pool, in bytes and seconds: the same for PNG and HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

from ..memory.report import shown_state
from ..memory.stats import format_bytes
from ..memory.views import BlockView, Event, SegmentView, with_memory

COLOURS = {
    "parameters": "#4477aa", "gradients": "#ee6677", "activations": "#228833", "optimizer": "#ccbb44",
    "workspace": "#66ccee", "user": "#aa3377",
}  # fmt: skip
OTHER_COLOURS = ("#997700", "#7a6fac", "#44bb99", "#ee8866", "#bbcc33", "#77aadd", "#ffaabb", "#99ddff")
NO_TAG = "#bbbbbb"
EARLIER = "not recorded"  # blocks from before the recording
_POINTS = 2000  # of a timeline
_GAP = 0.01  # between segments in a row, of its width


class MemorySample(Protocol):
    """One moment of a pool: what is in use, and what is held from the driver."""

    @property
    def seconds(self) -> float: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def reserved_bytes(self) -> int: ...


def colours(tags: Iterable[str]) -> dict[str, str]:
    """A colour for each tag, the same in every picture that has the same tags."""
    found = sorted(set(tags))
    others = [tag for tag in found if tag not in COLOURS and tag not in ("", EARLIER)]
    by_tag = {tag: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, tag in enumerate(others)}
    return {tag: COLOURS.get(tag) or by_tag.get(tag, NO_TAG) for tag in found}


# --- segments ---------------------------------------------------------------------------------------------------------
class Patch(NamedTuple):
    """Something to draw as one rectangle: a block, or neighbours that are alike and too narrow to tell apart."""

    start: float  # bytes from the left
    size: int
    tag: str
    state: str  # "live", "pinned" or "pending"
    text: str


class Bar(NamedTuple):
    """A segment in its row."""

    start: float
    size: int
    text: str
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Layout:
    rows: tuple[tuple[Bar, ...], ...]
    width: float  # bytes


def layout(segments: Sequence[SegmentView], columns: int = 1000) -> Layout:
    """Segments in rows, the largest first, small ones side by side. columns: how many things a row can tell apart."""
    parts = sorted(with_memory(segments), key=lambda part: (-part.size, part.address))
    width = float(parts[0].size) if parts else 1.0
    rows: list[list[Bar]] = []
    start = width
    for part in parts:
        if start + part.size > width:
            rows.append([])
            start = 0.0
        rows[-1].append(_bar(part, start, width / columns))
        start += part.size + _GAP * width
    return Layout(tuple(tuple(row) for row in rows), width)


def _bar(segment: SegmentView, start: float, narrow: float) -> Bar:
    shift = start - segment.address
    patches: list[Patch] = []
    for (state, tag, small), run in groupby(segment.blocks, key=lambda b: (shown_state(b), b.tag, b.size < narrow)):
        if state == "free":
            continue
        blocks = list(run)
        together = [blocks] if small else [[block] for block in blocks]
        patches += (_patch(some, shift, state, tag) for some in together)
    return Bar(start, segment.size, _segment_text(segment), tuple(patches))


def _patch(blocks: list[BlockView], shift: float, state: str, tag: str) -> Patch:
    size = sum(block.size for block in blocks)
    if len(blocks) > 1:
        text = f"{len(blocks)} blocks, {format_bytes(size)}"
    else:
        text = f"{format_bytes(blocks[0].nbytes or size)} at {blocks[0].address:#x}"
    lines = [f"{text} · {tag or 'untagged'} · {state}"]
    lines += [f"{frame.filename}:{frame.line} {frame.name}" for frame in blocks[0].site]
    return Patch(blocks[0].address + shift, size, tag, state, "\n".join(lines))


def _segment_text(segment: SegmentView) -> str:
    live = sum(block.size for block in segment.blocks if block.state == "live")
    words = [f"{format_bytes(segment.size)} {segment.kind}", f"{live / segment.size:.0%} used", f"{segment.address:#x}"]
    words += [f"stream {segment.stream}"] * bool(segment.stream) + [f"scope {segment.scope}"] * bool(segment.scope)
    return " · ".join(words)


# --- timeline ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Timeline:
    """Bytes over time, in steps: between two moments, what the earlier one says."""

    seconds: list[float]
    allocated: list[int]
    reserved: list[int]
    by_tag: dict[str, list[int]]  # sums to `allocated`; empty if the history knows no tags
    peak_allocated: int
    peak_reserved: int


def timeline(history: Sequence[MemorySample]) -> Timeline:
    """A pool's history, thinned to what a picture can show; no peak is lost."""
    kept = _thinned(history)
    samples = [history[i] for i in kept]
    events = [sample for sample in history if isinstance(sample, Event)]
    return Timeline(
        [sample.seconds for sample in samples],
        [sample.allocated_bytes for sample in samples],
        [sample.reserved_bytes for sample in samples],
        _by_tag(events, kept) if events and len(events) == len(history) else {},
        max((sample.allocated_bytes for sample in history), default=0),
        max((sample.reserved_bytes for sample in history), default=0),
    )


def _thinned(history: Sequence[MemorySample]) -> list[int]:
    """Positions to keep: of each stretch, where most is allocated, where most is reserved, and the end."""
    if len(history) <= _POINTS:
        return list(range(len(history)))
    step = -(-len(history) * 3 // _POINTS)
    kept = {0}
    for first in range(0, len(history), step):
        stretch = range(first, min(first + step, len(history)))
        kept.add(max(stretch, key=lambda i: history[i].allocated_bytes))
        kept.add(max(stretch, key=lambda i: history[i].reserved_bytes))
        kept.add(stretch[-1])
    return sorted(kept)


def _by_tag(events: Sequence[Event], kept: list[int]) -> dict[str, list[int]]:
    """Allocated bytes of each tag at the kept events."""
    live: dict[int, tuple[str, int]] = {}
    sizes: defaultdict[str, int] = defaultdict(int)
    wanted = set(kept)
    moments: list[dict[str, int]] = []
    for i, event in enumerate(events):
        if event.action == "alloc":
            live[event.address] = event.tag, event.nbytes
            sizes[event.tag] += event.nbytes
        elif event.action == "free" and event.address in live:
            tag, nbytes = live.pop(event.address)
            sizes[tag] -= nbytes
        elif event.action == "move" and event.address in live:
            live[event.target] = live.pop(event.address)
        if i in wanted:
            earlier = max(event.allocated_bytes - sum(sizes.values()), 0)
            moments.append({EARLIER: earlier} | sizes)
    tags = sorted({tag for moment in moments for tag, nbytes in moment.items() if nbytes}, key=_stacking)
    return {tag: [moment.get(tag, 0) for moment in moments] for tag in tags}


def _stacking(tag: str) -> tuple[int, str]:
    """What lasts is at the bottom: it gives the rest a level ground."""
    lasting = (EARLIER, "parameters", "optimizer", "gradients")
    return (lasting.index(tag) if tag in lasting else len(lasting), tag)
