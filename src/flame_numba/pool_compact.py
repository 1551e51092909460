"""Moving live blocks together, so that what is free is in one piece.

A block is copied first and booked at its new place after, one step at a time: whatever copy fails, every
block is still where its address says.
"""

from __future__ import annotations

from collections.abc import Callable

from .pool_arena import Arena
from .pool_blocks import ALIGNMENT, Segment, Span

Copy = Callable[[int, int, int], None]  # target, source, nbytes; as memmove


def _swap_places(a: Span, b: Span) -> None:
    """Exchange the bytes that two spans, as large and in different segments, stand for. Each keeps its block."""
    a.address, b.address = b.address, a.address
    a.segment, b.segment = b.segment, a.segment
    a.prev, b.prev = b.prev, a.prev
    a.next, b.next = b.next, a.next
    a.relink()
    b.relink()


class Compactor:
    """Compacts one arena: `evacuate` empties the segments that hold least, `slide` closes the holes inside each."""

    def __init__(self, arena: Arena, copy: Copy) -> None:
        self.arena = arena
        self.copy = copy
        self.bytes_moved = 0
        self.blocks_moved = 0
        self._slid = False
        self._shut: list[Span] = []  # holes of segments that are being emptied

    def slide(self) -> None:
        """Move blocks to the front of their segments, up to the next pinned one."""
        for segment in self.arena.segments.values():
            span: Span | None = segment.first
            while span is not None:
                span = self._close_gap(span) if span.binned else span.next

    def evacuate(self) -> None:
        """Empty segments while their blocks fit into fuller ones. A segment with a pinned block stays."""
        segments = self.arena.segments.values()
        room = sum(span.size for segment in segments for span in segment if span.binned)
        try:
            for source in sorted(segments, key=lambda segment: segment.live_bytes):
                if any(span.block is not None and not span.movable for span in source):
                    continue
                live = source.live_bytes
                room -= sum(span.size for span in source if span.binned)
                if live > room:
                    break  # the next ones hold more, and have fewer segments to go to
                room -= self._empty(source)
        finally:
            for hole in self._shut:
                self.arena.put(hole)
            self._shut.clear()

    def _empty(self, source: Segment) -> int:
        """Move the blocks of a segment into holes of others, the largest first; the bytes moved."""
        for span in source:
            if span.binned:  # so that no block moves in behind our back
                self.arena.bins.remove(span)
                self._shut.append(span)
        moved = 0
        for span in sorted((s for s in source if s.movable), key=lambda s: s.size, reverse=True):
            if not self._rehouse(span):
                break
            moved += span.size
        return moved

    def _rehouse(self, span: Span) -> bool:
        """Move a block to the best-fitting hole of another segment."""
        hole = self.arena.take(span.size, ALIGNMENT)
        if hole is None and not self._slid:
            self.slide()  # then the holes of a segment are one, and stay one
            self._slid = True
            hole = self.arena.take(span.size, ALIGNMENT)
        if hole is None:
            return False
        try:
            self.copy(hole.address, span.address, span.size)
        except BaseException:
            self.arena.put(hole)
            raise
        _swap_places(span, hole)
        self._shut.append(hole)
        self._moved(span)
        return True

    def _close_gap(self, hole: Span) -> Span | None:
        """Move the blocks right behind a hole to its front, as one copy. The hole, behind them, or where to go on."""
        run = []
        span = hole.next
        while span is not None and span.movable:
            run.append(span)
            span = span.next
        if not run:
            return hole.next
        self.copy(hole.address, run[0].address, sum(moving.size for moving in run))
        self.arena.bins.remove(hole)
        first, last = run[0], run[-1]
        first.prev, last.next, hole.prev, hole.next = hole.prev, hole, last, last.next
        first.relink()
        hole.relink()
        hole.address += sum(moving.size for moving in run)
        for moving in run:
            moving.address -= hole.size
            self._moved(moving)
        return self.arena.put(hole)

    def _moved(self, span: Span) -> None:
        assert span.block is not None
        span.block.address = span.address
        self.bytes_moved += span.size
        self.blocks_moved += 1
