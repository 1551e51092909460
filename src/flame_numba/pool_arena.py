"""Free memory by size: bins of spans, best fit out of them, and merging back into them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict

from .pool_blocks import Segment, Span


def _bin(size: int) -> int:
    """16 bins for each power of two, in order of size; the first 31 hold one size each."""
    units = size >> 8
    shift = max(units.bit_length() - 5, 0)
    return (shift << 4) + (units >> shift)


class Bins:
    """Free spans, sorted by size and then by address."""

    def __init__(self) -> None:
        self._spans: defaultdict[int, list[tuple[int, int, Span]]] = defaultdict(list)
        self._occupied = 0  # bit i: bin i holds a span

    def add(self, span: Span) -> None:
        i = _bin(span.size)
        insort(self._spans[i], (span.size, span.address, span))
        self._occupied |= 1 << i
        span.binned = True

    def remove(self, span: Span) -> None:
        i = _bin(span.size)
        self._pop(i, bisect_left(self._spans[i], (span.size, span.address)))

    def best_fit(self, size: int) -> Span | None:
        """Remove the smallest span of at least `size` bytes, the one with the lowest address."""
        first = _bin(size)
        larger = self._occupied >> first
        if larger & 1:
            spans = self._spans[first]
            position = bisect_left(spans, (size,))
            if position < len(spans):
                return self._pop(first, position)
            larger -= 1
        if larger == 0:
            return None
        return self._pop(first + (larger & -larger).bit_length() - 1, 0)

    def largest(self) -> int:
        """Size of the largest span."""
        return self._spans[self._occupied.bit_length() - 1][-1][0] if self._occupied else 0

    def _pop(self, i: int, position: int) -> Span:
        spans = self._spans[i]
        span = spans.pop(position)[2]
        if not spans:
            self._occupied &= ~(1 << i)
        span.binned = False
        return span


class Arena:
    """The segments for blocks of one kind, and what is free in them."""

    def __init__(self, segment_nbytes: int) -> None:
        self.segment_nbytes = segment_nbytes
        self.segments: dict[int, Segment] = {}  # by address
        self.bins = Bins()
        self.splits = 0
        self.merges = 0

    def add_segment(self, address: int, size: int) -> None:
        segment = self.segments[address] = Segment(address, size, self)
        self.bins.add(segment.first)

    def drop_segment(self, segment: Segment) -> None:
        """Forget a segment that is free as a whole."""
        self.bins.remove(segment.first)
        del self.segments[segment.address]

    def take(self, size: int, split_threshold: int) -> Span | None:
        """The best-fitting free span, cut to `size`."""
        span = self.bins.best_fit(size)
        if span is None:
            return None
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
        return span
