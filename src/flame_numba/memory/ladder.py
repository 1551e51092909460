"""What a pool does when no freed block of the right size waits: one rung after the other until there is memory.

Everything here runs under the pool's lock, and never while another of its operations is half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakMethod

from ..devices import Backend, DeviceOutOfMemory
from ..errors import OutOfMemory
from ..kernels.moves.mover import Mover
from .accounts import Account
from .arena import Arena
from .blocks import ALIGNMENT, Span
from .compact import Budget, Compactor
from .config import PoolConfig, parse_bytes
from .guard import ZONE, Guard
from .idle import FEW, Idle
from .join import can_join
from .lanes import Lane
from .reserve import Reserve
from .stats import DefragmentReport
from .streams import Streams

if TYPE_CHECKING:
    from ..devices import Device
    from .recorder import Recorder
    from .views import Frame

_LEAST_SLACK = 8 << 20  # bytes, of a pool that has as much as this sixteen times

_MOVERS: dict[Backend, Mover] = {}


def _mover(machine: Backend) -> Mover:
    """The mover of a machine. Made with the first pool: when memory is short, it is too late."""
    found = _MOVERS.get(machine)
    if found is None:
        try:
            found = Mover(machine)
        except DeviceOutOfMemory as error:
            raise OutOfMemory(
                f"pool: the device has no room for the tables that blocks are moved by: {error}"
            ) from error
        found.prepare()
        _MOVERS[machine] = found
    return found


class Ladder:
    """Lanes, what is reserved for them, and the moves between."""

    def __init__(self, device: Device, config: PoolConfig, guard: Guard | None) -> None:
        self.machine = device.backend
        self.config = config
        self.small = parse_bytes(config.small)
        self.split_threshold = parse_bytes(config.split_threshold)
        self.guard = guard
        self.offset = ZONE if guard is not None else 0  # where a block begins in its span
        self.reserve = Reserve(device, config)
        self.caching = self.reserve.backend != "direct" and not config.guard
        self.streams = Streams(self.machine)
        self.total = Account("")
        self.lanes: dict[tuple[int, str], Lane] = {}
        self.idle = Idle(self.machine, self.lanes, self.streams, self._new_lane, self._merge)
        self.moves = 0
        self.recorder: Recorder | None = None
        self.mover = _mover(self.machine)
        self.bytes_moved = 0
        self.pinned_bytes = 0
        if guard is not None:
            held = self.reserve.growth.held
            guard.gone = lambda: held.given_back
        self.reserve.growth.held.watcher = WeakMethod(self._memory_changed)

    @property
    def watching(self) -> bool:
        """Whether every allocation and free is to come by here."""
        return not self.caching or self.recorder is not None

    def lane(self, stream: int, scope: str) -> Lane:
        found = self.lanes.get((stream, scope))
        if found is None:
            self.streams.know(stream)
            found = self._new_lane(stream, scope)
            self.idle.give_spare(found)
        return found

    def _new_lane(self, stream: int, scope: str) -> Lane:
        lane = self.lanes[stream, scope] = Lane(stream, scope, self.small, self.watching)
        return lane

    def retire(self, closed: bool = True, keep: Lane | None = None, few: int = 0) -> bool:
        """Let those that are in use have the memory of lanes that are not. False if there are none. See `Idle`."""
        found = self.idle.retire(closed, keep, few)
        if found:
            self.reserve.tidy(self.arenas())
        return found

    def arenas(self) -> Iterator[Arena]:
        for lane in self.lanes.values():
            yield from lane.arenas

    def watch(self, recorder: Recorder | None) -> None:
        """Have every allocation and free come by here, to be recorded; or no longer."""
        self.recorder = recorder
        for lane in self.lanes.values():
            lane.hits = {} if self.watching else lane.ready
        if recorder is not None:
            for span in self.spans():
                span.watched = span.held = True

    # freed spans

    def take_back(self, span: Span) -> None:
        """A span whose block was freed."""
        if span.streams:
            self.streams.defer(span)
            return
        span.watched = span.held = False
        span.site = ()
        if not self.watching and span.home is not None:
            span.home.append(span)
            return
        self._merge(span)

    def settle(self, budget: Budget | None = None) -> bool:
        """Merge the freed blocks that wait for requests of their size with their neighbours; False if time ran out."""
        if not self._some_wait():
            return True
        self.idle.late()
        for lane in self.lanes.values():
            for small in (True, False):
                if budget is None:
                    self._settle(lane, small)
                elif not self._settle_some(lane, small, budget):
                    return False
        return True

    def _some_wait(self) -> bool:
        """Whether freed blocks may be waiting: their bytes are in no other book. Saves looking at each size's list."""
        if self.streams.pending:
            return True
        self.total.settle()
        return self.reserve.nbytes > self.total.current + sum(arena.bins.nbytes for arena in self.arenas())

    def _settle_some(self, lane: Lane, small: bool, budget: Budget) -> bool:
        for count, span in enumerate(lane.waiting(small), 1):
            self._merge(span)
            if count % budget.step == 0 and budget.late():
                return False
        return True

    def _settle(self, lane: Lane, small: bool) -> None:
        for span in lane.waiting(small):
            self._merge(span)

    def reclaim(self) -> bool:
        """Merge what other streams are done with; whether there was anything."""
        found = False
        for span in self.streams.finished():
            self._completed(span)
            found = True
        return found

    def reclaim_all(self) -> None:
        """The same for all that waits, where no stream uses it any more."""
        for span in self.streams.all_finished():
            self._completed(span)

    def _completed(self, span: Span) -> None:
        self.note("free_completed", span)
        self._merge(span)

    def _merge(self, span: Span) -> None:
        span.block = span.home = None
        span.streams, span.held = (), False  # noted after it was freed, by a lane's end
        segment = span.segment
        assert segment is not None
        segment.arena.put(span)
        if self.reserve.backend == "direct" and segment.is_free:
            self.reserve.free(segment)

    # requests

    @property
    def waiting_helps(self) -> bool:
        """Whether `serve` may have to wait for the device: for other streams, or to give memory back."""
        return bool(self.streams.pending) or len(self.lanes) > 1 or any(arena.bins.nbytes for arena in self.arenas())

    def serve_at_once(self, lane: Lane, size: int) -> Span | None:
        """A span of `size` bytes without waiting for the device, but where blocks move; None if there is none."""
        arena = lane.arena(small := size < self.small)
        # among large blocks, merging what waits comes before cutting: of a recorded distributed training it
        # reserves 1.06 × the live bytes, cutting first 1.27 ×. Small ones take little room, so speed comes first
        span = self._take(arena, size) if small else None
        if span is None:
            self._settle(lane, small)
            span = self._take(arena, size)
        if span is None and self.reclaim():
            span = self._take(arena, size)
        if span is None:
            self.settle()
            span = self._take(arena, size) or self._extend(lane, arena, size)
        return span

    def serve(self, lane: Lane, size: int) -> Span | None:
        """A span of `size` bytes without moving more than the slack asks for; None if there is none."""
        small = size < self.small
        arena, other = lane.arena(small), lane.arena(not small)
        span = self.serve_at_once(lane, size)
        if span is None and (self.streams.pending or len(self.lanes) > 1):
            self.machine.synchronize()
            self.reclaim_all()
            self.retire(keep=lane)
            span = self._take(arena, size) or self._borrow(lane, size, arena.kind, scopes=True)
        span = span or self._take(other, size) or self._borrow(lane, size, other.kind, scopes=True)
        if span is None and self.release():
            span = self._take_grown(arena, size)
        return span

    def _extend(self, lane: Lane, arena: Arena, size: int) -> Span | None:
        """From other streams, or from the driver. While the live bytes reach a new peak, streams keep apart."""
        self.total.settle()
        apart = self.total.current + size > self.total.peak
        span = None
        if self.retire(closed=False, keep=lane, few=FEW):
            span = self._take(arena, size)
        if span is None and not apart:
            span = self._borrow(lane, size, arena.kind)
        if span is None and self.retire(closed=False, keep=lane):
            span = self._take(arena, size)
        span = span or self._grow(lane, arena, size)
        return span or (self._borrow(lane, size, arena.kind) if apart else None)

    def _take(self, arena: Arena, size: int) -> Span | None:
        return arena.take(size, self.split_threshold)

    def _borrow(self, lane: Lane, size: int, kind: str, scopes: bool = False) -> Span | None:
        """A span of another lane. Where that is another stream's, this one waits for it, and gives back later.

        kind: of the arenas to ask. scopes: also of other scopes, which are to be kept apart while that is possible.
        """
        small = kind == "small"
        for other in sorted(
            self.lanes.values(), key=lambda other: (other.scope != lane.scope, other.stream != lane.stream)
        ):
            usable = other is not lane and (scopes or other.scope == lane.scope)
            span = self._take(other.arena(small), size) if usable else None
            if span is None:
                continue
            if other.stream != lane.stream:
                try:
                    self.streams.wait(lane.stream, other.stream)
                except BaseException:
                    other.arena(small).put(span)
                    raise
                span.streams = (lane.stream,)
                span.held = True
            return span
        return None

    def _grow(self, lane: Lane, arena: Arena, size: int) -> Span | None:
        """From the driver, with some slack, as long as the live bytes reach a new peak; else by moving blocks.

        So a program that repeats itself gets its memory in its first round, and the driver is left alone after that.
        """
        slack = self.config.slack
        if slack is None or not self.caching:
            return self._take_grown(arena, size)
        self.total.settle()
        live = max(self.total.peak, self.total.current + size)
        spare = live + max(int(slack * live), min(live >> 4, _LEAST_SLACK)) - self.reserve.nbytes
        price = self.reserve.price(arena, size)
        if live == self.total.peak or price > spare:
            for place in lane.arenas if arena.kind == "small" else reversed(lane.arenas):
                span = self._take(place, size)
                if span is None and self._make_room(place, size, spare):
                    span = self._take(place, size)
                if span is not None:
                    return span
        most = self.machine.page_nbytes if arena.kind == "small" else spare
        return self._take_grown(arena, size, min(spare - price, most))

    def _take_grown(self, arena: Arena, size: int, extra: int = 0) -> Span | None:
        if not self.reserve.grow(arena, size, max(extra, 0)):
            return None
        self.reserve.grown += 1
        return self._take(arena, size)

    def _make_room(self, arena: Arena, size: int, allowed: int = 0) -> bool:
        """Move blocks so that a request can be served from what is free, or from that and `allowed` new bytes."""
        page = self.machine.page_nbytes
        try:
            if arena.bins.nbytes >= size:
                return self._compact(arena, lambda compactor: compactor.make_room(size))
            rest = size - max(allowed // page * page, 0) if self.reserve.backend == "virtual" else size
            if 0 < rest <= arena.bins.nbytes:
                return self._compact(arena, lambda compactor: compactor.make_tail_room(rest))
        except DeviceOutOfMemory:
            pass  # the machine had no room left to copy through
        return False

    def serve_compacted(self, lane: Lane, size: int) -> Span | None:
        """As `serve`, after moving live blocks together; but not where no move can make room."""
        self.total.settle()
        if self.reserve.nbytes - self.total.current + self.reserve.headroom() < size:
            return None
        self.settle()
        try:
            for arena in lane.arenas:
                if arena.bins.nbytes >= size and self._make_room(arena, size):
                    return self._take(arena, size)
            # closing holes first: emptying a small segment may use up the very room that a large one could have made
            for evacuate in (False, True):
                self.compact(evacuate)
                span = self.serve(lane, size)
                if span is not None:
                    return span
            return self._serve_joined(lane, size)
        except DeviceOutOfMemory:
            pass  # the machine had no room left to copy through
        return None

    def _serve_joined(self, lane: Lane, size: int) -> Span | None:
        """From free bytes that lie apart: in the arenas of several streams and scopes, of small and of large blocks.

        Blocks move within an arena only, so all of them become one. Streams, scopes and kinds come apart again with
        what is allocated from then on.
        """
        first = self.lanes[0, ""]
        if len(self.lanes) > 1 or (first.small.segments and first.large.segments):
            self.idle.unite(first)
            first.large.take_over(first.small)
            self.compact()
        span = self.serve(self.lane(lane.stream, lane.scope), size)
        if span is None and self.reserve.backend != "direct":
            self.release()
            if self._join(first.large, size):
                self._grow_missing(first.large, size)
                span = self.serve(self.lane(lane.stream, lane.scope), size)
        return span

    def _join(self, arena: Arena, size: int) -> bool:
        """Move blocks out of one run into holes elsewhere, until the run has room for a request, or for all of it but
        what can still be mapped behind the run.
        """
        headroom = self.reserve.headroom()
        if self.reserve.backend == "virtual":
            mappable = headroom // self.machine.page_nbytes * self.machine.page_nbytes
            return self._compact(arena, lambda compactor: compactor.join(size, mappable))
        spare = min(headroom & -ALIGNMENT, size)  # what could be one more allocation, to move blocks to
        if spare > 0 and can_join(arena, size, 0, spare):
            self.reserve.grow(arena, spare)
        return self._compact(arena, lambda compactor: compactor.join(size, 0))

    def _grow_missing(self, arena: Arena, size: int) -> None:
        """Map what a joined run lacks."""
        if arena.bins.largest() < size:
            self.reserve.grow(arena, size)

    # moving and giving back

    def compact(self, evacuate: bool = True, budget: Budget | None = None) -> DefragmentReport:
        """Move blocks together in every arena."""
        start, budget = perf_counter(), budget or Budget()
        complete = self.settle(budget)
        largest, free = self.largest_free(), self._free_segments()
        nbytes = blocks = 0
        self.streams.gather()
        self.reclaim_all()  # the moves wait for all streams, and all streams for the moves
        try:
            for arena in self.arenas() if complete else ():
                compactor = self._compactor(arena)
                try:
                    if evacuate and len(arena.segments) > 1 and self.reserve.backend != "direct":
                        complete &= compactor.evacuate(budget)
                    complete &= compactor.slide(budget)
                finally:
                    self._count(compactor)
                    nbytes += compactor.bytes_moved
                    blocks += compactor.blocks_moved
        finally:
            self.streams.scatter()
            self._poison_free()
        return DefragmentReport(
            bytes_moved=nbytes,
            blocks_moved=blocks,
            largest_free_before=largest,
            largest_free_after=self.largest_free(),
            segments_emptied=self._free_segments() - free,
            pinned_bytes=self.pinned_bytes,
            complete=complete,
            seconds=perf_counter() - start,
        )

    def _compactor(self, arena: Arena) -> Compactor:
        return Compactor(arena, self.mover, self.offset, None if self.recorder is None else self._note_move)

    def _count(self, compactor: Compactor) -> None:
        self.moves += compactor.blocks_moved
        self.bytes_moved += compactor.bytes_moved

    def _note_move(self, span: Span, old: int) -> None:
        tag = span.account.name if span.account is not None else "user"
        self._note("move", old, span.size, span.stream, tag, span.site, target=span.address)

    def _compact(self, arena: Arena, step: Callable[[Compactor], bool]) -> bool:
        compactor = self._compactor(arena)
        self.streams.gather()
        self.reclaim_all()
        try:
            return step(compactor)
        finally:
            self.streams.scatter()
            self._count(compactor)
            self._poison_free()

    def _poison_free(self) -> None:
        """Where blocks moved away from, a guarded pool keeps nothing of them."""
        if self.guard is not None:
            for span in self.spans():
                if span.binned:
                    self.guard.poison(span)

    def _memory_changed(self, action: str, address: int, nbytes: int) -> None:
        """The driver gave memory, or got it back."""
        if self.guard is not None and action == "segment_alloc":
            self.guard.fill(address, nbytes)
        self._note(action, address, nbytes)

    def release(self, keep: int = 0) -> int:
        """Give free memory back to the driver until `keep` bytes are reserved; the bytes given back."""
        return self.reserve.release(self.arenas(), keep)

    # the books

    def spans(self) -> Iterator[Span]:
        for lane in self.lanes.values():
            yield from lane.spans()

    def largest_free(self) -> int:
        return max((arena.bins.largest() for arena in self.arenas()), default=0)

    def _free_segments(self) -> int:
        return sum(segment.is_free for arena in self.arenas() for segment in arena.segments.values())

    def note_failure(self, nbytes: int) -> None:
        """Record an allocation that could not be served."""
        if self.recorder is not None:
            self._note("oom", 0, 0, target=self.machine.memory_info().free, requested=nbytes)

    def note(self, action: str, span: Span) -> None:
        if self.recorder is not None:
            requested = span.block.nbytes if action == "alloc" and span.block is not None else 0
            tag = span.account.name if span.account is not None else "user"
            self._note(action, span.address, span.size, span.stream, tag, span.site, requested=requested)

    def _note(
        self, action: str, address: int, nbytes: int, stream: int = 0, tag: str = "", site: tuple[Frame, ...] = (),
        target: int = 0, requested: int = 0,
    ) -> None:  # fmt: skip
        if self.recorder is not None:
            self.total.settle()
            self.recorder.note(
                action, address, nbytes, stream, tag, self.total.current, self.reserve.nbytes, site, target, requested
            )
