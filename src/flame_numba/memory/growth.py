"""Two ways to hold driver memory: allocations that stay where they are, and pages mapped into ranges of addresses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol
from weakref import WeakMethod

from ..devices import DeviceOutOfMemory
from .blocks import ALIGNMENT, Segment, Span, round_up

if TYPE_CHECKING:
    from ..devices import Backend
    from .arena import Arena

_DRIVER_PAGE = 2 << 20  # drivers hand out memory in such pages anyway
_LARGEST_PAGE = 64 << 20
_PAGES = 128  # a pool is made of at least so many: then a page that is partly used keeps little from being given back


class Held:
    """All that the driver has to get back one day. Outlives the pool, whose finalizer empties it."""

    def __init__(self, machine: Backend) -> None:
        self.machine = machine
        self.memory: dict[int, int] = {}  # address → bytes
        self.ranges: dict[int, int] = {}  # of virtual addresses
        self.nbytes = 0
        self.given_back = False
        self.driver_calls = 0
        # is told (action, address, bytes). Weak, since it is the pool's, which would live as long as we do
        self.watcher: WeakMethod[Callable[[str, int, int], None]] | None = None

    def gained(self, pieces: dict[int, int]) -> None:
        """Book memory that the driver gave."""
        self.memory.update(pieces)
        try:
            for address, nbytes in pieces.items():
                self.nbytes += nbytes
                self._tell("segment_alloc", address, nbytes)
        except BaseException:
            self.nbytes = sum(self.memory.values())
            raise

    def free(self, address: int) -> None:
        """Give back one piece of memory; nothing if the pool's finalizer was here before."""
        nbytes = self.memory.get(address, 0)
        if nbytes:
            self.driver_calls += 1
            self.machine.unmap(address, nbytes) if self.ranges else self.machine.free(address)
            del self.memory[address]
            self.nbytes -= nbytes
            self._tell("segment_free", address, nbytes)

    def _tell(self, action: str, address: int, nbytes: int) -> None:
        watcher = None if self.watcher is None else self.watcher()
        if watcher is not None:
            watcher(action, address, nbytes)

    def give_back(self) -> None:
        """Return everything, once queued work is done with it."""
        self.given_back = True
        if self.memory:
            self.machine.synchronize()
        while self.memory:
            address, nbytes = self.memory.popitem()
            self.machine.unmap(address, nbytes) if self.ranges else self.machine.free(address)
        while self.ranges:
            self.machine.unreserve(*self.ranges.popitem())


class Growth(Protocol):
    """How an arena gets memory and loses it."""

    held: Held

    def price(self, arena: Arena, size: int) -> int:
        """The least that `grow` would reserve."""

    def grow(self, arena: Arena, size: int, extra: int, reserved: int, room: int) -> int:
        """Make a free span of `size` bytes out of at most `room` new bytes, and `extra` bytes if that is no trouble;
        the bytes gained, 0 if it can't be.
        """

    def release(self, arenas: Iterable[Arena], nbytes: int) -> int:
        """Give back free memory until it is `nbytes` bytes or more; the bytes given back."""

    def tidy(self, arenas: Iterable[Arena]) -> None:
        """Give back addresses that no memory is mapped under, if an arena has others."""


class Allocations:
    """A segment is one allocation of the driver's, given back when it is free as a whole."""

    def __init__(self, machine: Backend, small: int, large: int, caching: bool) -> None:
        self.held = Held(machine)
        self.machine = machine
        self.caching = caching  # else every block is an allocation of its own
        self.sizes = {"small": round_up(small), "large": round_up(large)}

    def price(self, arena: Arena, size: int) -> int:
        if not self.caching:
            return size
        segment = self.sizes[arena.kind]
        # a large request gets a segment that leaves no odd rest
        return segment if size <= segment // 2 else round_up(size, _DRIVER_PAGE)

    def grow(self, arena: Arena, size: int, extra: int, reserved: int, room: int) -> int:
        wanted = min(self.price(arena, size), room & -ALIGNMENT)
        for nbytes in dict.fromkeys((wanted, size)) if wanted >= size else ():
            self.held.driver_calls += 1
            try:
                address = self.machine.allocate(nbytes)
            except DeviceOutOfMemory:
                continue
            arena.add_segment(address, nbytes)
            self.held.gained({address: nbytes})
            return nbytes
        return 0

    def release(self, arenas: Iterable[Arena], nbytes: int) -> int:
        free = [segment for arena in arenas for segment in arena.segments.values() if segment.is_free]
        if free:
            self.machine.synchronize()  # queued work may still use what was freed
        released = 0
        for segment in sorted(free, key=lambda segment: segment.size, reverse=True):
            if released >= nbytes:
                break
            self.free(segment)
            released += segment.size
        return released

    def tidy(self, arenas: Iterable[Arena]) -> None:
        """There are none without memory."""

    def free(self, segment: Segment) -> None:
        """Give back one segment. The caller has waited for queued work."""
        self.held.free(segment.address)
        segment.arena.drop_segment(segment)


class Pages:
    """A segment is a range of addresses; memory is mapped where it is needed and unmapped where it is free.

    So free pages in one place can serve a request in another without a copy.
    """

    def __init__(self, machine: Backend) -> None:
        self.held = Held(machine)
        self.machine = machine
        self.page = machine.page_nbytes

    def price(self, arena: Arena, size: int) -> int:
        return round_up(min((_missing(hole, size) for hole in arena.unmapped), default=size), self.page)

    def grow(self, arena: Arena, size: int, extra: int, reserved: int, room: int) -> int:
        hole = min(arena.unmapped, key=lambda span: (_missing(span, size), span.address), default=None)
        if hole is None or _missing(hole, size) > hole.size:
            hole = self._new_range(arena, size)
            if hole is None:
                return 0
        need = round_up(_missing(hole, size), self.page)
        page = self._page_size(reserved + need)
        most = min(hole.size, room // self.page * self.page)
        for nbytes in dict.fromkeys((min(round_up(need + extra, page), most), need)) if need <= most else ():
            if self._map(arena, hole, nbytes, page):
                return nbytes
        return 0

    def _page_size(self, reserved: int) -> int:
        """A power of two times the smallest page, growing with the pool: mapping costs as much for any size."""
        return min(self.page << max((reserved // _PAGES // self.page).bit_length() - 1, 0), _LARGEST_PAGE)

    def _new_range(self, arena: Arena, size: int) -> Span | None:
        """A range of addresses for all that the device could hold, and more: holes among them are not used up."""
        total = self.machine.memory_info().total
        for nbytes in (2 * total, total, size):
            nbytes = round_up(max(nbytes, size), self.page)
            self.held.driver_calls += 1
            try:
                address = self.machine.reserve(nbytes)
            except DeviceOutOfMemory:
                continue
            self.held.ranges[address] = nbytes
            segment = arena.segments[address] = Segment(address, nbytes, arena, virtual=True)
            arena.unmapped.add(segment.first)
            return segment.first
        return None

    def _map(self, arena: Arena, hole: Span, nbytes: int, page: int) -> bool:
        """Put memory under the first bytes of a hole, and those into the bins; False if there is too little."""
        pages: dict[int, int] = {}
        end = hole.address + nbytes
        try:
            for address in range(hole.address, end, page):
                self.held.driver_calls += 1
                self.machine.map(address, min(page, end - address))
                pages[address] = min(page, end - address)
        except BaseException as error:
            self._take_back(arena, hole, pages)
            if isinstance(error, DeviceOutOfMemory):
                return False
            raise
        self._book(arena, hole, pages)
        return True

    def _take_back(self, arena: Arena, hole: Span, pages: dict[int, int]) -> None:
        """Unmap what nothing has used yet, from the top. If the driver refuses that, too, the rest is ours."""
        try:
            while pages:
                self.held.driver_calls += 1
                address = next(reversed(pages))
                self.machine.unmap(address, pages[address])
                del pages[address]
        finally:
            if pages:
                self._book(arena, hole, pages)

    def _book(self, arena: Arena, hole: Span, pages: dict[int, int]) -> None:
        """The first bytes of a hole have memory now."""
        nbytes = sum(pages.values())
        segment = hole.segment
        assert segment is not None
        segment.pages.update(pages)
        arena.unmapped.discard(hole)
        if nbytes < hole.size:
            arena.unmapped.add(hole.split(nbytes))
        hole.mapped = True
        arena.put(hole)
        self.held.gained(pages)

    def release(self, arenas: Iterable[Arena], nbytes: int) -> int:
        free = [
            (span, address, arena)
            for arena in arenas
            for segment in arena.segments.values()
            for span, address in _free_pages(segment)
        ]
        if free:
            self.machine.synchronize()  # queued work may still use what was freed
        released = 0
        # from the top: what is left is dense
        for span, address, arena in sorted(free, key=lambda piece: piece[1], reverse=True):
            if released >= nbytes:
                break
            assert span.segment is not None
            size = span.segment.pages[address]
            self.held.free(address)
            del span.segment.pages[address]
            _take_out(arena, span, address, size)
            released += size
        return released

    def tidy(self, arenas: Iterable[Arena]) -> None:
        for arena in arenas:
            for segment in list(arena.segments.values()):
                if not segment.pages and len(arena.segments) > 1:
                    self.held.driver_calls += 1
                    self.machine.unreserve(segment.address, segment.size)
                    del self.held.ranges[segment.address], arena.segments[segment.address]
                    arena.unmapped.discard(segment.first)


def _missing(hole: Span, size: int) -> int:
    """Bytes to map at the start of a hole for a free span of `size`; beyond any hole's size if it can't be."""
    before, after = hole.prev, hole.next
    missing = size - (before.size if before is not None and before.binned else 0)
    if missing <= hole.size:
        return missing
    # the whole hole, if what is free behind it makes up the rest
    rest = after.size if after is not None and after.binned else 0
    return hole.size if missing <= hole.size + rest else 1 << 62


def _free_pages(segment: Segment) -> Iterator[tuple[Span, int]]:
    """Pages of which every byte is free, with the span that holds them."""
    starts = sorted(segment.pages)
    for span in segment:
        if span.binned:
            i = bisect_left(starts, span.address)
            while i < len(starts) and starts[i] + segment.pages[starts[i]] <= span.address + span.size:
                yield span, starts[i]
                i += 1


def _take_out(arena: Arena, span: Span, address: int, nbytes: int) -> None:
    """Book a page of a free span as unmapped, merged with its unmapped neighbours."""
    arena.bins.remove(span)
    if address > span.address:
        front, span = span, span.split(address - span.address)
        arena.bins.add(front)
    if span.size > nbytes:
        arena.bins.add(span.split(nbytes))
    span.mapped = False
    if span.next is not None and not span.next.mapped:
        arena.unmapped.discard(span.next)
        span.absorb(span.next)
    if span.prev is not None and not span.prev.mapped:
        span.prev.absorb(span)
    else:
        arena.unmapped.add(span)
