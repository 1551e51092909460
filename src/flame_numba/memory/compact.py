"""Moving live blocks together, so that what is free is in one piece.

Blocks are copied first and booked at their new place after, one batch at a time: whatever copy fails, every block is
still where its address says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from ..kernels.moves.mover import Mover
from .arena import Arena
from .blocks import ALIGNMENT, Segment, Span
from .join import joinable

Move = tuple[int, int, int]  # target, source, nbytes
_CHEAP = 4 << 20  # bytes
_FEW_SPANS = 64
_MOST_SPANS = 4096  # in one batch: its books take the host about as long as its copy takes the device


@dataclass
class Budget:
    """What one pass may still do."""

    nbytes: int = 1 << 62
    deadline: float = float("inf")  # in seconds of perf_counter
    begun: bool = False  # something was moved: a pass always does a little, so that some pass is the last

    def spent(self) -> bool:
        return self.nbytes <= 0 or (self.begun and self.late())

    def late(self) -> bool:
        return self.deadline < float("inf") and perf_counter() >= self.deadline

    @property
    def step(self) -> int:
        """Blocks and holes to work on before looking at the clock."""
        return _FEW_SPANS if self.deadline < float("inf") else _MOST_SPANS


class Compactor:
    """Compacts one arena. `slide` closes the holes inside segments, `evacuate` empties the segments that hold least,
    `make_room` moves as little as possible for one request, `join` moves blocks out of its way.

    mover: does a list of moves, in order, each as memmove. offset: where a block begins in its span. moved: is told of
    each block that has a new place, with its old address.
    """

    def __init__(
        self,
        arena: Arena,
        mover: Mover,
        offset: int = 0,
        moved: Callable[[Span, int], None] | None = None,
    ) -> None:
        self.arena = arena
        self.mover = mover
        self.offset = offset
        self.moved = moved
        self.bytes_moved = 0
        self.blocks_moved = 0
        self._shut: list[Span] = []  # holes of segments that are being emptied

    # inside a segment

    def slide(self, budget: Budget | None = None) -> bool:
        """Move blocks to the front of their segments, up to the next pinned one; False if the budget ran out."""
        budget = budget or Budget()
        most = _FEW_SPANS
        for segment in list(self.arena.segments.values()):
            bounded = budget.nbytes < 1 << 62 or budget.deadline < float("inf")
            span: Span | None = _resumed(segment, bounded)
            while (hole := _next_hole(span, budget)) is not None:
                if not hole.binned or budget.spent():
                    segment.packed = hole
                    return False
                window = _window(hole, max(budget.nbytes, 1), min(most, budget.step))
                span = hole.next
                if len(window) == 1:
                    continue
                most *= 4  # a small first batch, so that the device soon has work
                before = self.bytes_moved
                span = self._pack(window)
                budget.nbytes -= self.bytes_moved - before
                budget.begun = True
        return True

    def make_room(self, size: int) -> bool:
        """Join holes to one of `size` bytes where few bytes have to move; False if pins leave no such place."""
        best: tuple[Span, Span] | None = None
        least = 1 << 62
        for segment in self.arena.segments.values():
            for live, first, last in _windows(segment, size):
                if live < least:
                    least, best = live, (first, last)
                    if live <= max(size, _CHEAP):  # to look further would take longer than to move it
                        break
            if least <= max(size, _CHEAP):
                break
        if best is None:
            return False
        self._pack(_between(*best))
        return True

    def make_tail_room(self, size: int) -> bool:
        """The same for a hole that ends where unmapped addresses begin: what can then grow without a copy."""
        best: list[Span] = []
        least = 1 << 62
        for end in self.arena.unmapped:
            window, live, free = [], 0, 0
            span = end.prev
            while span is not None and free < size and live < least and (span.binned or span.movable):
                window.append(span)
                if span.binned:
                    free += span.size
                else:
                    live += span.size
                span = span.prev
            if free >= size and live < least:
                least, best = live, window[::-1]
        if best:
            self._pack(best)
        return bool(best)

    def _pack(self, window: list[Span]) -> Span:
        """Move the blocks of a window of neighbours to its front; what is free, as one span behind them."""
        try:
            self.mover.move(_moves(window))
        except BaseException:
            moved = _moved_part(window, self.mover.done_nbytes)
            if moved:
                self._book_packed(moved)
            raise
        return self._book_packed(window)

    def _book_packed(self, window: list[Span]) -> Span:
        """The blocks of a window have moved to its front."""
        bins = self.arena.bins
        blocks = [span for span in window if not span.binned]
        holes = [span for span in window if span.binned]
        address, before, after = window[0].address, window[0].prev, window[-1].next
        for hole in holes:
            bins.remove(hole)
        hole = holes[0]
        for other in holes[1:]:
            hole.size += other.size
            other.segment = None
        for span in (*blocks, hole):
            span.prev = before
            if before is not None:
                before.next = span
            elif span.segment is not None:
                span.segment.first = span
            before = span
            if span.address != address:
                old, span.address = span.address, address
                if span is not hole:
                    self._book(span, old)
            address += span.size
        hole.next = after
        if after is not None:
            after.prev = hole
        return self.arena.put(hole)

    # between segments

    def evacuate(self, budget: Budget | None = None) -> bool:
        """Empty segments while their blocks fit into fuller ones. A segment with a pinned block stays."""
        budget = budget or Budget()
        segments = self.arena.segments.values()
        room = self.arena.bins.nbytes
        try:
            for source in sorted(segments, key=lambda segment: segment.live_bytes):
                if any(span.mapped and not (span.binned or span.movable) for span in source):
                    continue
                live = source.live_bytes
                room -= sum(span.size for span in source if span.binned)
                if live > room:
                    break  # the next ones hold more, and have fewer segments to go to
                if budget.spent() or live > budget.nbytes:
                    return False
                moved = self._empty(source)
                budget.nbytes -= moved
                room -= moved
        finally:
            for hole in self._shut:
                self.arena.put(hole)
            self._shut.clear()
        return True

    def join(self, size: int, mappable: int) -> bool:
        """Make a hole of `size` bytes in one run by moving some of its blocks into holes elsewhere; False if that
        can't be.

        mappable: bytes that can still be mapped behind a run, where unmapped addresses are.
        """
        run = joinable(self.arena, size, mappable)
        if run is None:
            return False
        bins, lacking, blocks = self.arena.bins, run.lacking(size, mappable), run.by_size()
        for span in run.spans:
            if span.binned:  # so that no block moves in behind our back
                bins.remove(span)
                self._shut.append(span)
        pairs: list[tuple[Span, Span]] = []
        try:
            for span in blocks:
                hole = self.arena.take(span.size, ALIGNMENT) if lacking > 0 else None
                if hole is not None:
                    pairs.append((span, hole))
                    lacking -= span.size
            self._rehouse(pairs)
        finally:
            for hole in self._shut:
                self.arena.put(hole)
            self._shut.clear()
        self.slide()
        return True

    def _empty(self, source: Segment) -> int:
        """Move the blocks of a segment into holes of others, the largest first; the bytes moved."""
        for span in source:
            if span.binned:  # so that no block moves in behind our back
                self.arena.bins.remove(span)
                self._shut.append(span)
        before, slid = self.bytes_moved, False
        pairs: list[tuple[Span, Span]] = []  # blocks, and the holes they go to
        for span in sorted((span for span in source if span.movable), key=lambda span: span.size, reverse=True):
            hole = self.arena.take(span.size, ALIGNMENT)
            if hole is None and not slid:
                self._rehouse(pairs)
                self.slide()  # then the holes of a segment are one, and stay one
                slid = True
                hole = self.arena.take(span.size, ALIGNMENT)
            if hole is None:
                break
            pairs.append((span, hole))
        self._rehouse(pairs)
        return self.bytes_moved - before

    def _rehouse(self, pairs: list[tuple[Span, Span]]) -> None:
        """Move blocks to holes of their sizes in other segments."""
        try:
            self.mover.move([(hole.address, span.address, span.size) for span, hole in pairs])
        except BaseException:
            done = self.mover.done_nbytes
            for span, hole in pairs:
                done -= span.size
                if done >= 0:
                    self._book_rehoused(span, hole)
                else:
                    self.arena.put(hole)
            raise
        for span, hole in pairs:
            self._book_rehoused(span, hole)
        pairs.clear()

    def _book_rehoused(self, span: Span, hole: Span) -> None:
        _swap_places(span, hole)
        self._shut.append(hole)
        self._book(span, hole.address)

    def _book(self, span: Span, old: int) -> None:
        """A block has moved."""
        block = span.block
        assert block is not None
        block.address = span.address + self.offset
        if not block.alive:  # freed meanwhile, by a thread or finalizer that needs no lock for it
            with suppress(AttributeError):  # or freed only just now
                del block.address
        self.bytes_moved += span.size
        self.blocks_moved += 1
        if self.moved is not None:
            self.moved(span, old)


def _resumed(segment: Segment, bounded: bool) -> Span:
    """Where the last bounded pass ended, if no hole came up before that since. Else the start."""
    span, segment.packed = segment.packed, None
    return span if bounded and span is not None and span.segment is segment else segment.first


def _next_hole(span: Span | None, budget: Budget) -> Span | None:
    """The next hole from here on; where time ran out on the way to it, the span looked at last."""
    looked_at = 0
    while span is not None and not span.binned:
        looked_at += 1
        if looked_at % 1024 == 0 and budget.late():
            return span
        span = span.next
    return span


def _window(hole: Span, most_bytes: int, most_spans: int) -> list[Span]:
    """A hole, and the movable blocks and holes behind it, up to `most_bytes` of blocks."""
    window: list[Span] = []
    span: Span | None = hole
    while span is not None and (span.binned or span.movable) and len(window) < most_spans and most_bytes > 0:
        window.append(span)
        if not span.binned:
            most_bytes -= span.size
        span = span.next
    return window


def _windows(segment: Segment, size: int) -> Iterator[tuple[int, Span, Span]]:
    """(bytes of blocks, first, last) of the shortest runs of holes and movable blocks that hold `size` free bytes."""
    first: Span | None = None  # always a hole
    live = free = 0
    for span in segment:
        if span.binned:
            first = first or span
            free += span.size
            while first is not None and free >= size:
                yield live, first, span
                free -= first.size
                first = first.next if first is not span else None
                while first is not None and not first.binned:
                    live -= first.size
                    first = first.next
        elif first is not None and span.movable:
            live += span.size
        else:
            first, live, free = None, 0, 0


def _between(first: Span, last: Span) -> list[Span]:
    window, span = [first], first
    while span is not last:
        assert span.next is not None
        span = span.next
        window.append(span)
    return window


def _moves(window: list[Span]) -> list[Move]:
    """The copies that bring the blocks of a window to its front; neighbours in one."""
    moves: list[Move] = []
    target = window[0].address
    for span in window:
        if span.binned:
            continue
        if moves and moves[-1][1] + moves[-1][2] == span.address:
            to, of, nbytes = moves[-1]
            moves[-1] = (to, of, nbytes + span.size)
        else:
            moves.append((target, span.address, span.size))
        target += span.size
    return [move for move in moves if move[0] != move[1]]


def _moved_part(window: list[Span], done_nbytes: int) -> list[Span]:
    """The front of a window, up to the last block that had moved when the mover stopped."""
    front: list[Span] = []
    holes: list[Span] = []
    for span in window:
        if span.binned:
            holes.append(span)
            continue
        done_nbytes -= span.size if holes or front else 0
        if done_nbytes < 0:
            break
        front += [*holes, span]
        holes = []
    return front


def _swap_places(a: Span, b: Span) -> None:
    """Exchange the bytes that two spans, as large and in different segments, stand for. Each keeps its block."""
    a.address, b.address = b.address, a.address
    a.segment, b.segment = b.segment, a.segment
    a.prev, b.prev = b.prev, a.prev
    a.next, b.next = b.next, a.next
    a.relink()
    b.relink()
