"""`MemoryPool`: the pool that every tensor's bytes come from.

`allocate` and `free` are here, as short as they can be. What happens when no block of the right size waits is
`memory/ladder.py`'s; the other parts lie beside it in `memory/`.
"""

from __future__ import annotations

import gc
import operator
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from .devices import Backend, Device, DeviceOutOfMemory, current_stream
from .devices.contexts import CONTEXTS
from .errors import ConfigError, OutOfMemory, PoolError
from .memory.accounts import ENOUGH, Account
from .memory.blocks import NOTHING, Block, Span
from .memory.books import explain_failure
from .memory.compact import Budget
from .memory.config import PoolConfig, parse_bytes
from .memory.context import PLACEMENT, Placement, current_placement, memory_tag, placed
from .memory.guard import Guard
from .memory.ladder import Ladder
from .memory.lanes import Lane
from .memory.observed import Observed
from .memory.recorder import Recorder
from .memory.report import LeakReport, Mark
from .memory.scope import Scope
from .memory.stats import DefragmentReport, PoolStats, TagStats
from .memory.views import BlockView, Event, Frame, SegmentView

__all__ = [
    "Block",
    "BlockView",
    "DefragmentReport",
    "Event",
    "Frame",
    "LeakReport",
    "Mark",
    "MemoryPool",
    "PoolConfig",
    "PoolStats",
    "Scope",
    "SegmentView",
    "TagStats",
    "current_pool",
    "default_pool",
    "memory_tag",
    "parse_bytes",
]

_DEFAULTS: dict[Backend, MemoryPool] = {}
_RELIEVED: ContextVar[tuple[MemoryPool, ...]] = ContextVar("flame_numba_relieved", default=())
_BUSY = "pool: used by a finalizer in the middle of another operation (only `free` may be)"
_TRIED = ("free blocks", "blocks of other streams", "the driver", "returning free segments to the driver",
          "collecting garbage", "moving blocks")  # fmt: skip


class MemoryPool(Observed):
    """Blocks of bytes on one device, 256-byte aligned.

    Any thread may use it. A request for which a freed block of its size waits is served without a lock, as each of its
    steps is atomic; so is `free`, which a finalizer may call at any moment, also in the middle of another operation.
    Whoever needs addresses to stay what they are for a while (a kernel launch) holds `lock`.
    """

    def __init__(self, device: Device | str, config: PoolConfig | None = None) -> None:
        self.device = device = Device.parse(device)
        self.config = config = config or PoolConfig()
        self.backend = device.backend
        self.lock = self.backend.lock  # re-entrant, and the machine's, as a launch may use blocks of several pools
        self._acquire, self._unlock = self.lock.acquire, self.lock.release
        self._busy = False  # the books are half written: only while `lock` is held
        self._freed: deque[Span] = deque()  # whose booking needs the lock
        step = parse_bytes(config.size_class)
        self._up, self._down = step - 1, -step
        if config.guard and self.backend.kind == "simulated":
            raise ConfigError("guard=True: a simulated device has no memory to look at")
        self._guard = Guard(self.backend) if config.guard else None
        self._ladder = Ladder(device, config, self._guard)
        # moves begun and ended: a block that was handed out while they differ has to look again where it is
        self._begun = self._ended = 0
        self._total = self._ladder.total
        self._log = self._total.log
        self._lane = self._ladder.lane(0, "")
        self._hits = self._lane.hits
        self._accounts: dict[str, Account] = {}
        self._pressure: list[Callable[[MemoryPool, int], Any]] = []
        weakref.finalize(self, self._ladder.reserve.growth.held.give_back).atexit = False  # a process's end frees all
        initial = parse_bytes(config.initial)
        if initial and not self._ladder.reserve.grow(self._lane.large, -(-initial // step) * step):
            raise self._out_of_memory(initial)

    @classmethod
    def with_config(cls, device: Device | str, config: PoolConfig) -> MemoryPool:
        return cls(device, config)

    # allocate and free: the two that must be fast

    def allocate(self, nbytes: int, stream: int | None = None) -> Block:
        """A block of `nbytes` bytes for work on `stream` (default: the current one of the device).

        For 0, one with address 0 and no memory, which no book mentions.

        Raises OutOfMemory, with the pool as it was, when the limit or the device leaves no room even after
        what is cached was given back, garbage collected, live blocks moved together and `on_pressure` called.
        """
        if CONTEXTS.open or stream is not None:
            return self._allocate_placed(nbytes, stream)
        if type(nbytes) is not int:
            nbytes = operator.index(nbytes)
        ended = self._ended
        block = Block()  # before the span is taken out, which an interrupt would lose
        try:
            span = self._hits[(nbytes + self._up) & self._down].pop()
        except LookupError:
            return self._allocate(nbytes, stream)
        span.block = block
        span.account = None
        block._span = span
        block.pool = self
        block.nbytes = nbytes
        block.address = span.address
        if self._begun != ended:
            self._look_again(block)
        self._log.append(span.size)
        return block

    def _allocate_placed(self, nbytes: int, stream: int | None) -> Block:
        """The same where a stream, scope or tag says more."""
        lane, account = self._place(stream)
        if type(nbytes) is not int:
            nbytes = operator.index(nbytes)
        ended = self._ended
        block = Block()
        try:
            span = lane.hits[(nbytes + self._up) & self._down].pop()
        except LookupError:
            return self._allocate(nbytes, stream)
        span.block = block
        span.account = account
        block._span, block.pool, block.nbytes, block.address = span, self, nbytes, span.address
        if self._begun != ended:
            self._look_again(block)
        self._log.append(span.size)
        if account is not None:
            account.log.append(span.size)
        return block

    def free(self, block: Block) -> None:
        """Take a block back. Raises PoolError, changing nothing, if it is freed, pinned or another pool's."""
        span = block._span
        if span.held or block.pool is not self:
            self._free_carefully(block, span)
            return
        try:
            del block._span, block.address
        except AttributeError:
            raise PoolError("free: another thread freed the block at the same time") from None
        log = self._log
        log.append(-span.size)
        if span.account is not None:
            span.account.log.append(-span.size)
        span.home.append(span)  # type: ignore[union-attr]
        if len(log) > ENOUGH:
            self._add_up()

    def _look_again(self, block: Block) -> None:
        with self.lock:
            if block.alive:
                block.address = block._span.address

    def _add_up(self) -> None:
        """Add up the books now and then, so that they do not grow without end."""
        if self._acquire(False):
            try:
                self._total.settle()
                for account in list(self._accounts.values()):
                    account.settle()
            finally:
                self._unlock()

    def _free_carefully(self, block: Block, span: Span) -> None:
        if block.pool is not self:
            raise PoolError(f"free: the block belongs to another pool, on {block.pool.device}")
        if span.pins:
            raise PoolError(f"free: the block is pinned {span.pins} times: whoever took its address may still use it")
        damage = ""
        if self._guard is not None:
            with self.lock:  # nothing moves meanwhile
                damage = "" if self._busy else self._guard.damage(block)
        try:
            del block._span, block.address
        except AttributeError:
            raise PoolError("free: another thread freed the block at the same time") from None
        if span is NOTHING:
            return
        self._log.append(-span.size)
        if span.account is not None:
            span.account.log.append(-span.size)
        self._freed.append(span)
        if not self._busy and self._acquire(False):
            try:
                self._drain()
            finally:
                self._unlock()
        if damage:
            raise PoolError(f"free: {damage}")

    def _drain(self) -> None:
        """Book the frees that needed the lock."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._freed:
                span = self._freed.popleft()
                self._ladder.note("free", span)
                if self._guard is not None:
                    self._guard.poison(span)
                self._ladder.take_back(span)
        finally:
            self._busy = False

    # a miss

    def _place(self, stream: int | None) -> tuple[Lane, Account | None]:
        """The lane and the account of an allocation here and now."""
        placement = PLACEMENT.get()
        if stream is None:
            stream = current_stream(self.backend)
        scope = placement.scope_of(self) if placement is not None and placement.scopes else ""
        lane = self._ladder.lanes.get((stream, scope))
        if lane is None:
            with self._exclusive():
                lane = self._ladder.lane(int(stream), scope)
        tag = None if placement is None else placement.tag
        return lane, None if tag is None else self._account(tag)

    def _account(self, tag: str) -> Account | None:
        if tag == "user":
            return None
        found = self._accounts.get(tag)
        return self._accounts.setdefault(tag, Account(tag)) if found is None else found

    def _allocate(self, nbytes: int, stream: int | None) -> Block:
        """A block by all means."""
        block = Block()
        block.pool, block.nbytes = self, nbytes
        if nbytes <= 0:
            if nbytes < 0:
                raise PoolError(f"allocate: nbytes must be ≥ 0, got {nbytes}")
            block._span, block.address = NOTHING, 0
            return block
        self._acquire()
        try:
            lane, account = self._place(stream)
            span = self._find(lane, nbytes)
            block._span = span
            span.block = block
            span.account = account
            span.stream = lane.stream
            span.watched = self._ladder.watching
            span.held = bool(span.watched or span.streams)
            block.address = span.address + self._ladder.offset
            assert span.segment is not None
            span.home = span.segment.arena.home(span.size)
            self._log.append(span.size)
            if account is not None:
                account.log.append(span.size)
            if self._ladder.recorder is not None:
                span.site = self._ladder.recorder.site()
                self._ladder.note("alloc", span)
            if self._guard is not None:
                self._prepare(block)
        finally:
            self._unlock()
        return block

    def _prepare(self, block: Block) -> None:
        """What a guarded pool does with a new block. If it finds damage, nobody gets the block."""
        assert self._guard is not None
        try:
            damage = self._guard.prepare(block._span)
        except BaseException:
            self._guard.forgive(block._span)
            block.free()
            raise
        if damage:
            self._guard.forgive(block._span)
            block.free()
            raise PoolError(f"allocate: {damage}")

    def _find(self, lane: Lane, nbytes: int) -> Span:
        """A span for `nbytes` bytes. Called with `lock` held once by the allocation."""
        ladder = self._ladder
        size = (nbytes + 2 * ladder.offset + self._up) & self._down
        if size > ladder.reserve.most:
            raise self._out_of_memory(nbytes, tried=())
        with self._exclusive():
            span = ladder.serve_at_once(lane, size)
        if span is None:
            if ladder.waiting_helps:
                self._without_lock(self.backend.synchronize)  # so that under the lock there is little left to wait for
            with self._exclusive():
                lane = ladder.lane(lane.stream, lane.scope)  # it may have been handed over meanwhile
                span = ladder.serve(lane, size)
        if span is None:
            self._without_lock(gc.collect)  # finalizers may want locks of their own
            with self._exclusive():
                lane = ladder.lane(lane.stream, lane.scope)
                span = ladder.serve(lane, size) or ladder.serve_compacted(lane, size)
        if span is None and self._can_be_relieved:
            self._without_lock(lambda: self._relieve(nbytes))
            with self._exclusive():
                lane = ladder.lane(lane.stream, lane.scope)
                span = ladder.serve(lane, size) or ladder.serve_compacted(lane, size)
        if span is None:
            raise self._out_of_memory(nbytes)
        return span

    def _without_lock(self, call: Callable[[], Any]) -> None:
        self._unlock()
        try:
            call()
        finally:
            self._acquire()

    @property
    def _can_be_relieved(self) -> bool:
        """Whether there are callbacks to ask: not from within one of them, which would ask itself without end."""
        return bool(self._pressure) and self not in _RELIEVED.get()

    def _relieve(self, nbytes: int) -> None:
        before = _RELIEVED.get()
        try:
            _RELIEVED.set((*before, self))
            for callback in tuple(self._pressure):
                callback(self, nbytes)
        finally:
            _RELIEVED.set(before)

    # giving back and moving

    def trim(self, keep: int | str = 0) -> int:
        """Return free memory to the driver, in whole segments or pages, until at most `keep` bytes are reserved; the
        bytes returned. Waits for the device.
        """
        wanted = parse_bytes(keep, "keep")
        self.backend.synchronize()  # with the lock in hand only for what others queue from here on
        with self._exclusive():
            before = self._ladder.reserve.nbytes
            self._ladder.settle()
            self._ladder.reclaim()
            self._ladder.retire()
            self._ladder.release(wanted)
            return before - self._ladder.reserve.nbytes

    def clear(self) -> int:
        """Return all that can be returned: collects garbage, waits for the device, moves live blocks together, trims.

        The bytes returned to the driver.
        """
        gc.collect()
        self.backend.synchronize()  # with the lock in hand only for what others queue from here on
        with self._exclusive(), _as_out_of_memory("clear"):
            before = self._ladder.reserve.nbytes
            self.backend.synchronize()
            self._ladder.reclaim_all()
            self._ladder.retire()
            self._ladder.compact()
            self._ladder.release()
            return before - self._ladder.reserve.nbytes

    def defragment(self, max_bytes: int | str | None = None, max_pause: float | None = None) -> DefragmentReport:
        """Move live blocks together: into fewer segments, and to the front of them. Pinned blocks stay.

        The copies are queued on the device's default stream; other streams wait for them, the host does not. What
        becomes free stays with the pool until `trim()`.

        max_bytes: about how many bytes to move at most. max_pause: how many seconds to take at most, of the host or
        of the device. A pass that they end does whole blocks; `complete` in the report is then False.
        """
        budget = Budget()
        if max_bytes is not None:
            budget.nbytes = parse_bytes(max_bytes, "max_bytes")
        if max_pause is not None:
            if not max_pause > 0:
                raise ConfigError(f"max_pause={max_pause!r}: expected seconds > 0")
            budget.deadline = perf_counter() + max_pause / 2
            budget.nbytes = min(budget.nbytes, int(max_pause / 2 * self.backend.copy_rate))
        with self._exclusive(), _as_out_of_memory("defragment"):
            self._ladder.retire()
            return self._ladder.compact(max_pause is None and max_bytes is None, budget)

    # where things go

    def use(self) -> AbstractContextManager[MemoryPool]:
        """`with pool.use():` makes this the pool of new tensors on its device, in this thread or task."""
        return self._used(lambda here: here._replace(pools=(*here.pools, self)))

    @contextmanager
    def _used(self, change: Callable[[Placement], Placement]) -> Iterator[MemoryPool]:
        with placed(change(current_placement())):
            yield self

    @contextmanager
    def scope(self, name: str) -> Iterator[Scope]:
        """`with pool.scope("validation"):` keeps what is allocated inside apart from the rest, so that neither breaks
        up the memory of the other, and measures it.
        """
        if not name:
            raise ConfigError("scope: the name must not be empty")
        here = current_placement()
        scope = Scope(self, name)
        with placed(here._replace(pools=(*here.pools, self), scopes=(*here.scopes, (self, name)))):
            try:
                yield scope
            finally:
                scope.close()

    def tag(self, name: str) -> AbstractContextManager[None]:
        """`with pool.tag("activations"):` counts blocks allocated inside under this tag."""
        return memory_tag(name)

    def on_pressure(self, callback: Callable[[MemoryPool, int], Any]) -> Callable[[], None]:
        """Have `callback(pool, nbytes)` called before OutOfMemory would be raised: it may free or offload tensors.

        Called once a request, without the pool's lock; what it raises goes to the caller of the allocation. What it
        allocates in this pool itself calls no callback. The result undoes it.
        """
        self._pressure.append(callback)
        return lambda: self._pressure.remove(callback) if callback in self._pressure else None

    def record_history(self, enabled: bool = True, max_events: int = 100_000, sites: bool = False) -> None:
        """Start to record every event, with the call sites if `sites`, forgetting what was recorded; or stop."""
        recorder = Recorder(max_events, sites) if enabled else None
        with self._exclusive():
            if recorder is not None or self._ladder.recorder is not None:
                self._recorded = recorder or self._ladder.recorder
            self._ladder.watch(recorder)
            self._hits = self._lane.hits
            self._ladder.settle()

    def __repr__(self) -> str:
        return f"MemoryPool({self.device!r}, {self.config!r})"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Nobody else, not even a finalizer of this thread, touches the books meanwhile."""
        with self.lock:
            if self._busy:
                raise PoolError(_BUSY)
            self._drain()
            self._busy = True
            self._begun += 1
            try:
                yield
            finally:
                self._ended = self._begun
                self._busy = False
                self._drain()

    def _pinned(self, span: Span, change: int) -> None:
        """Count a pin more or less. Called under `lock`."""
        was = span.pins > 0
        span.pins += change
        span.held = bool(span.pins or span.streams or span.watched)
        self._ladder.pinned_bytes += span.size * ((span.pins > 0) - was)

    def _know_stream(self, stream: int) -> None:
        self._ladder.streams.know(stream)

    def _scope_opened(self, name: str) -> None:
        self._ladder.idle.opened(name)

    def _scope_closed(self, name: str) -> None:
        self._ladder.idle.closed(name)

    def _retag(self, block: Block, tag: str | None) -> None:
        with self.lock:
            span = block._span
            if span is NOTHING:
                return
            account = None if tag is None else self._account(tag)
            if span.account is not None:
                span.account.log.append(-span.size)
            if account is not None:
                account.log.append(span.size)
            span.account = account

    def _out_of_memory(self, nbytes: int, tried: tuple[str, ...] = _TRIED) -> OutOfMemory:
        with self._exclusive():
            self._ladder.note_failure(nbytes)
            if tried and self._can_be_relieved:
                tried = (*tried, "pressure callbacks")
            return OutOfMemory(explain_failure(self.device, self._ladder, self._accounts, nbytes, tried))


@contextmanager
def _as_out_of_memory(op: str) -> Iterator[None]:
    try:
        yield
    except DeviceOutOfMemory as error:
        raise OutOfMemory(f"{op}: the device has no memory left to work with: {error}") from error


def default_pool(device: Device) -> MemoryPool:
    """The pool that a device has unless `use()` says otherwise; made at first use."""
    backend = device.backend
    pool = _DEFAULTS.get(backend)
    # two threads may both make one here; both get the first that was stored, and the other holds no memory
    return _DEFAULTS.setdefault(backend, MemoryPool(device)) if pool is None else pool


def current_pool(device: Device) -> MemoryPool:
    """The innermost pool in `use()` on this device, else the device's default pool."""
    backend = device.backend
    if CONTEXTS.open:
        pools: tuple[Any, ...] = current_placement().pools
        for pool in reversed(pools):
            if pool.backend is backend:
                return pool  # type: ignore[no-any-return]
    found = _DEFAULTS.get(backend)
    return default_pool(device) if found is None else found
