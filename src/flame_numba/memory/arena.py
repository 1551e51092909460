"""Free memory by size: bins of spans, best fit out of them, and merging back into them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from .blocks import Segment, Span


def _bin(size: int) -> int:
    """16 bins for each power of two, in order of size; the first 31 hold one size each."""
    units = size >> 8
    shift = max(units.bit_length() - 5, 0)
    return (shift << 4) + (units >> shift)


class _Bin:
    """Sizes of like size: in order, with how many free spans have each, and a heap of their addresses.

    The address of a span that was removed stays in its heap, to be skipped when it comes up: so thousands of spans of
    one size cost no more than a few. The heaps hold numbers only, which Python's garbage collector never looks at.
    """

    __slots__ = ("counts", "heaps", "sizes")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.counts: dict[int, int] = {}
        self.heaps: dict[int, list[int]] = {}


class Bins:
    """Free spans: 16 bins for each power of two, and in each the best fit."""

    def __init__(self) -> None:
        self._bins: defaultdict[int, _Bin] = defaultdict(_Bin)
        self._occupied = 0  # bit i: bin i holds a span
        self._spans: dict[int, Span] = {}  # by address
        self.nbytes = 0

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans.values())

    def add(self, span: Span) -> None:
        size, address = span.size, span.address
        i = _bin(size)
        held = self._bins[i]
        if size not in held.counts:
            insort(held.sizes, size)
            held.counts[size], held.heaps[size] = 0, []
            self._occupied |= 1 << i
        held.counts[size] += 1
        self._spans[address] = span
        span.binned = True
        self.nbytes += size
        heap = held.heaps[size]
        heappush(heap, address)
        if len(heap) > 2 * held.counts[size] + 16:
            heap[:] = sorted({address for address in heap if self._has(address, size)})

    def remove(self, span: Span) -> None:
        size = span.size
        i = _bin(size)
        held = self._bins[i]
        del self._spans[span.address]
        span.binned = False
        self.nbytes -= size
        held.counts[size] -= 1
        if not held.counts[size]:
            del held.counts[size], held.heaps[size], held.sizes[bisect_left(held.sizes, size)]
            if not held.sizes:
                self._occupied &= ~(1 << i)

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
        heap = held.heaps[size]
        while not self._has(heap[0], size):
            heappop(heap)
        span = self._spans[heap[0]]
        self.remove(span)
        return span

    def _has(self, address: int, size: int) -> bool:
        span = self._spans.get(address)
        return span is not None and span.size == size


class Arena:
    """The segments for blocks of one kind, stream and scope, and what is free in them.

    home: where freed spans of a size wait.
    """

    def __init__(self, stream: int, scope: str, kind: str, home: Callable[[int], list[Span]]) -> None:
        self.stream = stream
        self.scope = scope
        self.kind = kind  # "small" or "large"
        self.home = home
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

    def take_over(self, other: Arena) -> None:
        """Make all segments of another arena of this kind ours."""
        for span in list(other.bins):
            other.bins.remove(span)
            self.bins.add(span)
        self.unmapped |= other.unmapped
        other.unmapped.clear()
        for segment in other.segments.values():
            segment.arena = self
        self.segments.update(other.segments)
        other.segments.clear()
        self.splits += other.splits
        self.merges += other.merges
        other.splits = other.merges = 0

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
