"""Free memory by size: bins of spans, best fit out of them, and merging back into them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from .blocks import Segment, Span

if TYPE_CHECKING:
    from .lanes import Lane


def _bin(size: int) -> int:
    """16 bins for each power of two, in order of size; the first 31 hold one size each."""
    units = size >> 8
    shift = max(units.bit_length() - 5, 0)
    return (shift << 4) + (units >> shift)


class _Bin:
    """Free spans of like size: their sizes in order, and for each size a heap by address.

    A span that is removed stays in its heap, to be skipped when it comes up: so thousands of spans of one size cost no
    more than a few.
    """

    __slots__ = ("counts", "heaps", "sizes")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.counts: dict[int, int] = {}  # spans of a size
        self.heaps: dict[int, list[tuple[int, int, Span]]] = {}  # address, identity, span; some removed since

    def add(self, span: Span) -> None:
        size = span.size
        if size not in self.counts:
            insort(self.sizes, size)
            self.counts[size], self.heaps[size] = 0, []
        self.counts[size] += 1
        heap = self.heaps[size]
        heappush(heap, (span.address, id(span), span))
        if len(heap) > 2 * self.counts[size] + 16:
            self.heaps[size] = sorted({entry[1]: entry for entry in heap if _holds(entry, size)}.values())

    def remove(self, size: int) -> None:
        """Count one span of a size less. Its entry no longer holds, as the span is no longer binned."""
        self.counts[size] -= 1
        if not self.counts[size]:
            del self.counts[size], self.heaps[size], self.sizes[bisect_left(self.sizes, size)]

    def lowest(self, size: int) -> Span:
        """The span of a size with the lowest address."""
        heap = self.heaps[size]
        while not _holds(heap[0], size):
            heappop(heap)
        return heap[0][2]


def _holds(entry: tuple[int, int, Span], size: int) -> bool:
    """Whether an entry of a heap still says what is so."""
    span = entry[2]
    return span.binned and span.address == entry[0] and span.size == size


class Bins:
    """Free spans: 16 bins for each power of two, and in each the best fit."""

    def __init__(self) -> None:
        self._bins: defaultdict[int, _Bin] = defaultdict(_Bin)
        self._occupied = 0  # bit i: bin i holds a span
        self.nbytes = 0

    def __iter__(self) -> Iterator[Span]:
        for held in self._bins.values():
            for size, heap in held.heaps.items():
                yield from {entry[1]: entry[2] for entry in heap if _holds(entry, size)}.values()

    def add(self, span: Span) -> None:
        i = _bin(span.size)
        span.binned = True
        self._bins[i].add(span)
        self._occupied |= 1 << i
        self.nbytes += span.size

    def remove(self, span: Span) -> None:
        i = _bin(span.size)
        held = self._bins[i]
        span.binned = False
        held.remove(span.size)
        if not held.sizes:
            self._occupied &= ~(1 << i)
        self.nbytes -= span.size

    def best_fit(self, size: int) -> Span | None:
        """Remove the smallest span of at least `size` bytes, the one with the lowest address."""
        first = _bin(size)
        larger = self._occupied >> first
        if larger & 1:
            held = self._bins[first]
            position = bisect_left(held.sizes, size)
            if position < len(held.sizes):
                return self._pop(held, held.sizes[position])
            larger -= 1
        if larger == 0:
            return None
        held = self._bins[first + (larger & -larger).bit_length() - 1]
        return self._pop(held, held.sizes[0])

    def largest(self) -> int:
        """Size of the largest span."""
        return self._bins[self._occupied.bit_length() - 1].sizes[-1] if self._occupied else 0

    def _pop(self, held: _Bin, size: int) -> Span:
        span = held.lowest(size)
        self.remove(span)
        return span


class Arena:
    """The segments for blocks of one kind in one lane, and what is free in them."""

    def __init__(self, lane: Lane, kind: str) -> None:
        self.lane = lane
        self.kind = kind  # "small" or "large"
        self.segments: dict[int, Segment] = {}  # by address
        self.bins = Bins()
        self.unmapped: set[Span] = set()  # addresses without memory, in segments that are virtual
        self.splits = 0
        self.merges = 0

    def add_segment(self, address: int, size: int) -> None:
        """Take in an allocation of the driver's."""
        segment = self.segments[address] = Segment(address, size, self)
        self.bins.add(segment.first)

    def drop_segment(self, segment: Segment) -> None:
        """Forget a segment that is free as a whole."""
        self.bins.remove(segment.first)
        del self.segments[segment.address]

    def take(self, size: int, split_threshold: int) -> Span | None:
        """The best-fitting free span, cut to `size`."""
        span = self.bins.best_fit(size)
        return None if span is None else self.cut(span, size, split_threshold)

    def cut(self, span: Span, size: int, split_threshold: int) -> Span:
        """Give back to the bins what a span holds beyond `size`."""
        rest = span.size - size
        # a block of 64 KiB or more never carries more than 1 % that nobody asked for
        if rest and (rest >= split_threshold or rest * 100 > size):
            self.bins.add(span.split(size))
            self.splits += 1
        return span

    def put(self, span: Span) -> Span:
        """Take back a span that nobody uses, merged with its free neighbours; the merged span."""
        before, after = span.prev, span.next
        if after is not None and after.binned:
            self.bins.remove(after)
            span.absorb(after)
            self.merges += 1
        if before is not None and before.binned:
            self.bins.remove(before)
            before.absorb(span)
            self.merges += 1
            span = before
        self.bins.add(span)
        segment = span.segment
        if segment is not None and segment.packed is not None and span.address < segment.packed.address:
            segment.packed = None
        return span
