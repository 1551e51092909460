"""The pool that every tensor's bytes come from: cached driver memory, cut up, merged and, when needed, moved.

A block that is freed is first set aside for a request of exactly its size (training repeats its sizes), and
merges with its neighbours when memory is short. See `pool_arena.py` for the bins, `pool_compact.py` for the moves.
"""

from __future__ import annotations

import gc
import operator
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

from .devices import Backend, Device, DeviceOutOfMemory
from .errors import ConfigError, OutOfMemory, PoolError
from .pool_arena import Arena
from .pool_blocks import Block, Segment, Span, round_up
from .pool_compact import Compactor
from .pool_config import PoolConfig, parse_bytes
from .pool_reserve import Reserve, give_back
from .pool_stats import DefragmentReport, HistoryPoint, PoolStats, format_bytes

__all__ = [
    "Block",
    "DefragmentReport",
    "HistoryPoint",
    "MemoryPool",
    "PoolConfig",
    "PoolStats",
    "current_pool",
    "default_pool",
    "parse_bytes",
]

_SMALL = 1 << 20  # smaller blocks live in segments of their own, so that they do not break up the large ones

_ENTERED: ContextVar[tuple[MemoryPool, ...]] = ContextVar("flame_numba_pool", default=())
_DEFAULTS: dict[Backend, MemoryPool] = {}

_new_block = Block.__new__


class MemoryPool:
    """Blocks of bytes on one device, 256-byte aligned.

    Any thread may use it. `free` takes no lock, so that a finalizer may call it at any moment, also in the middle
    of another operation: it queues the block, and the next operation books it. Whoever needs addresses to stay
    what they are for a while (a kernel launch) holds `lock`.
    """

    def __init__(self, device: Device, config: PoolConfig | None = None) -> None:
        self.device = device
        self.config = config = config or PoolConfig()
        self.backend = device.backend
        self.lock = self.backend.lock  # re-entrant, and the machine's, as a launch may use blocks of several pools
        self._acquire, self._unlock = self.lock.acquire, self.lock.release
        self._busy = False  # the books are half written: only while `lock` is held
        self._freed: deque[Span] = deque()  # but not yet booked
        self._ready: dict[int, list[Span]] = {}  # freed and set aside, by size
        small, large = config.segment_bytes()
        self._arenas = (Arena(round_up(small)), Arena(round_up(large)))
        self._split_threshold = parse_bytes(config.split_threshold)
        self._reserve = Reserve(device, config)
        self._allocated = self._requested = self._peak_allocated = 0
        self._allocations = self._frees = self._moves = 0
        self._history: deque[HistoryPoint] | None = None
        self._history_start = 0.0
        self._prompt = not config.caching  # book frees at once: something watches, or waits for the memory
        weakref.finalize(self, give_back, self._reserve).atexit = False  # the end of a process frees all anyway

    @classmethod
    def with_config(cls, device: Device, config: PoolConfig) -> MemoryPool:
        return cls(device, config)

    # allocate and free: the two that must be fast

    def allocate(self, nbytes: int) -> Block:
        """A block of `nbytes` bytes; for 0, one with address 0 and no memory, which no book mentions.

        Raises OutOfMemory, with the pool as it was, when the limit or the device leaves no room even after
        what is cached was given back, garbage collected and live blocks moved together.
        """
        if nbytes.__class__ is not int:
            nbytes = operator.index(nbytes)
        size = (nbytes + 255) & -256
        if size <= 0:
            return self._empty_block(nbytes)
        self._acquire()
        try:
            if self._freed:
                self._drain()
            ready = self._ready.get(size)
            span = ready.pop() if ready else self._find(nbytes)
            block = _new_block(Block)
            block.pool = self
            block._span = span
            block.address = span.address
            block.nbytes = nbytes
            block.pins = 0
            span.block = block
            self._allocations += 1
            self._requested += nbytes
            self._allocated = allocated = self._allocated + span.size
            if allocated > self._peak_allocated:  # max() takes twice as long
                self._peak_allocated = allocated
            if self._history is not None:
                self._note()
            return block
        finally:
            self._unlock()

    def free(self, block: Block) -> None:
        """Take a block back. Raises PoolError, changing nothing, if it was freed already or is another pool's."""
        if block.pool is not self:
            raise PoolError(f"free: the block belongs to another pool, on {block.pool.device}")
        span = block._span
        try:
            del block._span, block.address
        except AttributeError:
            raise PoolError("free: another thread freed the block at the same time") from None
        if span is not None:
            self._freed.append(span)
            if self._prompt and not self._busy and self._acquire(False):
                try:
                    self._drain()
                finally:
                    self._unlock()

    def _empty_block(self, nbytes: int) -> Block:
        if nbytes < 0:
            raise PoolError(f"allocate: nbytes must be ≥ 0, got {nbytes}")
        block = _new_block(Block)
        block.pool, block._span, block.address, block.nbytes, block.pins = self, None, 0, 0, 0
        return block

    def _drain(self) -> None:
        """Book the queued frees: set their spans aside for requests of the same size."""
        if self._busy:
            return
        freed, ready = self._freed, self._ready
        while freed:
            span = freed.popleft()
            block, size = span.block, span.size
            assert block is not None
            span.block = None
            self._frees += 1
            self._requested -= block.nbytes
            self._allocated -= size
            try:
                ready[size].append(span)
            except KeyError:
                ready[size] = [span]
            if self._prompt:
                self._after_free(span.segment)

    def _after_free(self, segment: Segment) -> None:
        self._note()
        if not self.config.caching:
            self._busy = True
            try:
                self._settle()
                if segment.is_free:
                    self._shrink([segment])
            finally:
                self._busy = False

    # a miss: one rung after the other

    def _find(self, nbytes: int) -> Span:
        """A span for `nbytes` bytes, by all means. Called with `lock` held once by the allocation."""
        size, limit = round_up(nbytes), self._reserve.limit
        if limit is not None and size > limit:
            raise self._out_of_memory(nbytes)
        with self._exclusive():
            span = self._serve(size)
        if span is None:
            self._unlock()  # finalizers may want locks of their own
            try:
                gc.collect()
            finally:
                self._acquire()
            with self._exclusive():
                span = self._serve(size) or self._serve_compacted(size)
        if span is None:
            raise self._out_of_memory(nbytes)
        return span

    def _serve(self, size: int) -> Span | None:
        """From the bins, from the driver, or from both after the driver got its free segments back."""
        small, large = self._arenas
        arena, other = (small, large) if size < _SMALL else (large, small)
        # among large blocks, merging what is set aside comes before cutting: of a recorded distributed training it
        # reserves 1.06 × the live bytes, cutting first 1.27 ×. Small ones take little room, so speed comes first
        span = arena.take(size, self._split_threshold) if arena is small else None
        if span is None:
            self._settle()
            span = arena.take(size, self._split_threshold) or self._grow(arena, size)
        if span is None:
            span = other.take(size, self._split_threshold)
        if span is None and self._shrink(self._free_segments()):
            span = self._grow(arena, size)
        return span

    def _serve_compacted(self, size: int) -> Span | None:
        """As `_serve`, after moving live blocks together; but not where no move can make room."""
        if self._reserve.nbytes - self._allocated + self._reserve.headroom() < size:
            return None
        # closing holes first: emptying a small segment may use up the very room that a large one could have made
        for evacuate in (False, True):
            try:
                self._compact(evacuate)
            except DeviceOutOfMemory:
                return None  # the machine had no room left to copy through
            span = self._serve(size)
            if span is not None:
                return span
        return None

    def _grow(self, arena: Arena, size: int) -> Span | None:
        return arena.take(size, self._split_threshold) if self._reserve.grow(arena, size) else None

    # giving back and moving

    def trim(self, keep: int | str = 0) -> int:
        """Return whole free segments to the driver until at most `keep` bytes are reserved; the bytes returned."""
        with self._exclusive():
            self._settle()
            return self._shrink(self._free_segments(), parse_bytes(keep, "keep"))

    def defragment(self) -> DefragmentReport:
        """Move live blocks together: into fewer segments, and to the front of them. Pinned blocks stay.

        The copies are queued on the device's default stream. Segments that become free stay with the pool
        until `trim()`.
        """
        with self._exclusive():
            return self._compact()

    def _compact(self, evacuate: bool = True) -> DefragmentReport:
        start = perf_counter()
        self._settle()
        before, free_before = self._largest_free(), len(self._free_segments())
        nbytes = blocks = 0
        for arena in self._arenas:
            compactor = Compactor(arena, self.backend.copy)
            try:
                if evacuate:
                    compactor.evacuate()
                compactor.slide()
            finally:
                self._moves += compactor.blocks_moved
            nbytes += compactor.bytes_moved
            blocks += compactor.blocks_moved
        emptied = len(self._free_segments()) - free_before
        return DefragmentReport(nbytes, blocks, before, self._largest_free(), emptied, perf_counter() - start)

    def _free_segments(self) -> list[Segment]:
        return [segment for arena in self._arenas for segment in arena.segments.values() if segment.is_free]

    def _shrink(self, segments: list[Segment], keep: int = 0) -> int:
        released = self._reserve.release(segments, keep)
        self._note()
        return released

    # the books

    def stats(self) -> PoolStats:
        """The books. Merges all free neighbours first, so the next allocations are a little slower."""
        with self._exclusive():
            self._settle()
            arenas = self._arenas
            return PoolStats(
                allocated_bytes=self._allocated,
                requested_bytes=self._requested,
                reserved_bytes=self._reserve.nbytes,
                peak_allocated_bytes=self._peak_allocated,
                peak_reserved_bytes=self._reserve.peak_nbytes,
                live_blocks=self._allocations - self._frees,
                segments=sum(len(arena.segments) for arena in arenas),
                largest_free_bytes=self._largest_free(),
                allocations=self._allocations,
                frees=self._frees,
                hits=self._allocations - self._reserve.grown,
                misses=self._reserve.grown,
                splits=sum(arena.splits for arena in arenas),
                merges=sum(arena.merges for arena in arenas),
                moves=self._moves,
                driver_calls=self._reserve.driver_calls,
            )

    def record_history(self, enabled: bool = True, max_events: int = 100_000) -> None:
        """Start to record the books at every event, forgetting what was recorded; or stop."""
        if enabled and max_events < 1:
            raise ConfigError(f"max_events={max_events}: must be ≥ 1")
        with self._exclusive():
            self._history = deque(maxlen=max_events) if enabled else None
            self._history_start = perf_counter()
            self._prompt = enabled or not self.config.caching
            self._note()

    def history(self) -> list[HistoryPoint]:
        """The last events, oldest first; empty unless recording."""
        with self.lock:
            return list(self._history or ())

    @contextmanager
    def use(self) -> Iterator[MemoryPool]:
        """`with pool.use():` makes this the pool of new tensors on its device, in this thread or task."""
        _ENTERED.set((*_ENTERED.get(), self))
        try:
            yield self
        finally:
            _ENTERED.set(_ENTERED.get()[:-1])

    def __repr__(self) -> str:
        return f"MemoryPool({self.device!r}, {self.config!r})"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Nobody else, not even a finalizer of this thread, touches the books meanwhile."""
        with self.lock:
            if self._busy:
                raise PoolError("pool: used by a finalizer in the middle of another operation (only `free` may be)")
            self._drain()
            self._busy = True
            try:
                yield
            finally:
                self._busy = False
                self._drain()

    def _settle(self) -> None:
        """Give up the blocks set aside by size: merge them with their neighbours."""
        for spans in self._ready.values():
            while spans:
                span = spans.pop()
                span.segment.arena.put(span)
        self._ready.clear()

    def _largest_free(self) -> int:
        return max(arena.bins.largest() for arena in self._arenas)

    def _note(self) -> None:
        if self._history is not None:
            seconds = perf_counter() - self._history_start
            self._history.append(HistoryPoint(seconds, self._allocated, self._reserve.nbytes))

    def _out_of_memory(self, nbytes: int) -> OutOfMemory:
        free, total = self.backend.memory_info()
        limit = self._reserve.limit
        return OutOfMemory(
            f"allocate: no room for {format_bytes(nbytes)} ({nbytes} bytes) on {self.device}: {self.stats().summary}, "
            f"{'no limit' if limit is None else f'limit {format_bytes(limit)}'}, "
            f"device free {format_bytes(free)} of {format_bytes(total)}. "
            "Free tensors that are no longer needed, work on smaller batches, or raise PoolConfig(limit=…)."
        )


def default_pool(device: Device) -> MemoryPool:
    """The pool that a device has unless `use()` says otherwise; made at first use."""
    backend = device.backend
    pool = _DEFAULTS.get(backend)
    # two threads may both make one here; both get the first that was stored, and the other holds no memory
    return _DEFAULTS.setdefault(backend, MemoryPool(device)) if pool is None else pool


def current_pool(device: Device) -> MemoryPool:
    """The innermost pool in `use()` on this device, else the device's default pool."""
    entered = _ENTERED.get()
    if entered:
        backend = device.backend
        for pool in reversed(entered):
            if pool.backend is backend:
                return pool
    return default_pool(device)
