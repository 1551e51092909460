"""A pool in words: who holds its memory, what stayed behind, and what to do when none is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .stats import format_bytes
from .views import BlockView, Frame, SegmentView, with_memory

_BAR = 60  # characters


class Holder(NamedTuple):
    """The live blocks that one line of code asked for under one tag."""

    blocks: int
    nbytes: int  # that they take up
    tag: str
    site: Frame | None  # None: not recorded

    @property
    def where(self) -> str:
        return f"{self.site.filename}:{self.site.line} in {self.site.name}" if self.site else "(not recorded)"


def live_blocks(segments: Iterable[SegmentView]) -> list[BlockView]:
    return [block for segment in segments for block in segment.blocks if block.state == "live"]


def holders(segments: Iterable[SegmentView], top: int | None = 10) -> list[Holder]:
    """Who holds the most: live blocks grouped by tag and innermost line. The `top` largest, or all for None."""
    return _grouped(live_blocks(segments), top)


def _grouped(blocks: Iterable[BlockView], top: int | None) -> list[Holder]:
    groups: defaultdict[tuple[str, Frame | None], list[int]] = defaultdict(list)
    for block in blocks:
        groups[block.tag, block.site[0] if block.site else None].append(block.size)
    rows = [Holder(len(sizes), sum(sizes), tag, site) for (tag, site), sizes in groups.items()]
    rows.sort(key=lambda row: (-row.nbytes, row.tag, row.site or Frame("", 0, "")))
    return rows[:top]


def holder_lines(rows: Sequence[Holder]) -> list[str]:
    """Rows as aligned text: bytes, blocks, tag, line."""
    if not rows:
        return []
    tags = max(len(row.tag) for row in rows)
    return [
        f"{format_bytes(row.nbytes):>12}  {row.blocks:>6} {'block ' if row.blocks == 1 else 'blocks'}"
        f"  {row.tag:<{tags}}  {row.where}"
        for row in rows
    ]


# --- leaks ------------------------------------------------------------------------------------------------------------
class Mark(NamedTuple):
    """How many blocks each line of code held at a moment; `pool_mark(segments)` takes it."""

    held: dict[tuple[str, Frame | None, int], int]  # (tag, innermost line, size) → blocks


def pool_mark(segments: Iterable[SegmentView]) -> Mark:
    """What is live now, to compare a later moment with. Addresses do not count: blocks move."""
    held: defaultdict[tuple[str, Frame | None, int], int] = defaultdict(int)
    for block in live_blocks(segments):
        held[_kind(block)] += 1
    return Mark(dict(held))


def _kind(block: BlockView) -> tuple[str, Frame | None, int]:
    return block.tag, block.site[0] if block.site else None, block.size


@dataclass(frozen=True)
class LeakReport:
    """What is live now and was not at the mark. Sizes in bytes."""

    nbytes: int
    blocks: int
    holders: tuple[Holder, ...]

    def __bool__(self) -> bool:
        return self.blocks > 0

    def __str__(self) -> str:
        if not self:
            return "no block more than at the mark"
        number = "1 block" if self.blocks == 1 else f"{self.blocks} blocks"
        lines = [f"{number} more than at the mark, {format_bytes(self.nbytes)}", *holder_lines(self.holders)]
        if any(row.site is None for row in self.holders):
            lines.append(HOW_TO_RECORD)
        return "\n".join(lines)


def leak_report(segments: Iterable[SegmentView], before: Mark | Iterable[SegmentView] | None = None) -> LeakReport:
    """Blocks that are live now beyond those of `before` (a mark, or segments; None: all that is live), by line."""
    mark = before if isinstance(before, Mark) else pool_mark(before or ())
    left = dict(mark.held)
    more = []
    for block in live_blocks(segments):
        kind = _kind(block)
        if left.get(kind, 0) > 0:
            left[kind] -= 1
        else:
            more.append(block)
    return LeakReport(sum(block.size for block in more), len(more), tuple(_grouped(more, None)))


# --- out of memory ----------------------------------------------------------------------------------------------------
HOW_TO_RECORD = "To see which lines of code hold it: pool.record_history(sites=True), then run again."


@dataclass(frozen=True)
class OutOfMemoryFacts:
    """What the pool knows when it gives up. Sizes in bytes."""

    device: str
    requested: int
    allocated: int  # of live blocks, as the pool rounds them
    reserved: int
    limit: int | None
    by_tag: dict[str, int]
    largest_free: int
    free: int  # reserved and not in use
    internal_waste: int  # allocated beyond what was asked for
    pinned: int  # in blocks that nothing may move
    device_free: int
    device_total: int
    holders: tuple[Holder, ...] = ()  # empty or without sites: not recorded
    tried: tuple[str, ...] = ()  # the rungs of the ladder, as words
    blocks: int = 0  # live
    segments: int = 0


def out_of_memory_text(facts: OutOfMemoryFacts) -> str:
    """The message of OutOfMemory: the numbers, who holds the memory, what was tried, what to do."""
    lines = [
        f"allocate: no room for {format_bytes(facts.requested)} ({facts.requested} bytes) on {facts.device}: "
        f"allocated {format_bytes(facts.allocated)} in {facts.blocks} blocks, "
        f"reserved {format_bytes(facts.reserved)} in {facts.segments} segments, "
        f"largest free block {format_bytes(facts.largest_free)}, "
        f"{'no limit' if facts.limit is None else f'limit {format_bytes(facts.limit)}'}, "
        f"device free {format_bytes(facts.device_free)} of {format_bytes(facts.device_total)}.",
        f"  {_fragmentation(facts)}",
    ]
    if facts.by_tag:
        tags = sorted(facts.by_tag.items(), key=lambda item: (-item[1], item[0]))
        lines.append("  By tag: " + ", ".join(f"{tag or 'untagged'} {format_bytes(nbytes)}" for tag, nbytes in tags))
    if any(row.site for row in facts.holders):
        lines += ["  Held by:", *(f"  {line}" for line in holder_lines(facts.holders))]
    else:
        lines.append(f"  {HOW_TO_RECORD}")
    if facts.tried:
        lines.append(f"  Tried without success: {', '.join(facts.tried)}.")
    lines.append(f"  {_advice(facts)}")
    return "\n".join(lines)


def _fragmentation(facts: OutOfMemoryFacts) -> str:
    """External: free bytes outside the largest hole. Internal: allocated beyond what was asked for."""
    external = 1 - facts.largest_free / facts.free if facts.free else 0.0
    internal = facts.internal_waste / facts.allocated if facts.allocated else 0.0
    pinned = "no block is pinned"
    if facts.pinned:
        pinned = f"{format_bytes(facts.pinned)} are pinned and could not be moved"
    return (
        f"Free in the pool {format_bytes(facts.free)}, external fragmentation {external:.1%}, "
        f"internal {internal:.1%}; {pinned}."
    )


def _advice(facts: OutOfMemoryFacts) -> str:
    """What to do, the likeliest first."""
    limit = facts.limit
    if limit is not None and facts.requested > limit:
        return "The request alone is over the limit: raise PoolConfig(limit=…), or work on smaller pieces."
    if facts.pinned and facts.free >= facts.requested:
        return (
            "There is room, but in pieces between pinned blocks: release exported arrays (DLPack, "
            "__cuda_array_interface__) and unpin blocks; or free tensors, or raise PoolConfig(limit=…)."
        )
    if limit is None and facts.reserved + facts.device_free < facts.device_total // 2:
        return "Most of the device is held outside this pool: end other programs on it, or trim() other pools."
    advice = "Free tensors that are no longer needed, work on smaller batches, or "
    return advice + ("use a device with more memory." if limit is None else "raise PoolConfig(limit=…).")


# --- segments ---------------------------------------------------------------------------------------------------------
_SIGNS = {"live": "#", "pinned": "P", "pending": "~", "free": "."}


def segment_table(segments: Sequence[SegmentView], top: int = 10) -> str:
    """Segments as text: a line each with a bar of what is in it, then bytes by tag and the largest holders."""
    parts = with_memory(segments)
    live = live_blocks(parts)
    if not parts:
        return "no segments"
    sizes = _by_state(parts)
    shown = ", ".join(f"{state} {format_bytes(nbytes)}" for state, nbytes in sizes.items() if nbytes)
    reserved = format_bytes(sum(part.size for part in parts))
    lines = [f"segments {len(parts)}, live blocks {len(live)}, reserved {reserved}: {shown}"]
    lines += [_segment_line(part) for part in parts]
    lines.append("  " + "   ".join(f"{sign} {state}" for state, sign in _SIGNS.items()))
    if live:
        tags = sorted(_by_tag(live).items(), key=lambda item: (-item[1], item[0]))
        lines += ["by tag", *(f"  {format_bytes(nbytes):>12}  {tag or 'untagged'}" for tag, nbytes in tags)]
        lines += ["largest holders", *(f"  {line}" for line in holder_lines(holders(parts, top)))]
    return "\n".join(lines)


def _segment_line(segment: SegmentView) -> str:
    used = sum(block.size for block in segment.blocks if block.state == "live") / segment.size
    scope = f" scope {segment.scope}" if segment.scope else ""
    return (
        f"  {segment.address:#014x} {format_bytes(segment.size):>11} {segment.kind} {used:>4.0%} "
        f"|{segment_bar(segment)}| stream {segment.stream}{scope}"
    )


def _by_state(segments: Iterable[SegmentView]) -> dict[str, int]:
    """Bytes live, those of them that are pinned, pending, and free."""
    sizes = dict.fromkeys(("live", "of which pinned", "pending", "free"), 0)
    for segment in segments:
        for block in segment.blocks:
            sizes[block.state] += block.size
            if shown_state(block) == "pinned":
                sizes["of which pinned"] += block.size
    return sizes


def _by_tag(blocks: Iterable[BlockView]) -> dict[str, int]:
    sizes: defaultdict[str, int] = defaultdict(int)
    for block in blocks:
        sizes[block.tag] += block.size
    return dict(sizes)


def shown_state(block: BlockView) -> str:
    """A block's state, with "pinned" for live blocks that nothing may move."""
    return "pinned" if block.state == "live" and block.pins else block.state


def segment_bar(segment: SegmentView, width: int = _BAR) -> str:
    """A segment in characters, each the state of most of its bytes."""
    cells: list[dict[str, float]] = [{} for _ in range(width)]
    scale = width / segment.size
    for block in segment.blocks:
        state = shown_state(block)
        start = (block.address - segment.address) * scale
        end = start + block.size * scale
        for i in range(int(start), min(width, int(end) + 1)):
            cells[i][state] = cells[i].get(state, 0.0) + min(end, i + 1) - max(start, i)
    return "".join(_SIGNS[max(cell, key=lambda state: round(cell[state], 6))] for cell in cells)
