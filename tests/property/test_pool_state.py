"""Any program of a pool: the books balance, no block touches another, and no work meets another's memory.

The machine is `pool_machines.AsyncMachine`: work ends only when the program says so, and it raises when memory is used
that somebody else may still be using.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flame_numba.errors import OutOfMemory, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import check_books, check_driver, check_events, simulated
from pool_machines import AsyncMachine

KIB, MIB = 1 << 10, 1 << 20
MEMORY = 12 * MIB
SIZES = st.one_of(
    st.sampled_from([1, 256, 4 * KIB, 64 * KIB, MIB]),  # sizes that come again
    st.integers(1, 8 * KIB),
    st.integers(1, 3 * MIB),
)
STREAMS = st.integers(0, 2)
TAGS = st.sampled_from([None, None, "activations", "optimizer"])


class PoolMachine(RuleBasedStateMachine):
    """A pool on a small device, next to a plain dict of what must be live in it."""

    @initialize(
        backend=st.sampled_from(["virtual", "virtual", "segments", "segments", "direct"]),
        page=st.sampled_from([64 * KIB, 2 * MIB]),
        limit=st.sampled_from([None, "7 MiB", 0.5]),
        segment=st.sampled_from([("2 MiB", "4 MiB"), ("256 KiB", "1 MiB"), (256, 256)]),
        split_threshold=st.sampled_from([256, 8 * KIB]),
        size_class=st.sampled_from([256, 1024]),
        slack=st.sampled_from([0.03, 0, None]),
        initial=st.sampled_from([0, 0, "3 MiB"]),
        recording=st.booleans(),
    )
    def make(self, page: int, recording: bool, **config: Any) -> None:
        self.machine = AsyncMachine(MEMORY, page)
        self.pool = MemoryPool(simulated(MEMORY, self.machine), PoolConfig(**config))
        self.streams = [0, self.machine.new_stream(), self.machine.new_stream()]
        self.live: dict[Block, str | None] = {}  # with their tags
        self.pins: dict[Block, int] = {}  # with their addresses
        self.freed: list[Block] = []
        self.peak = self.total = 0
        self.reserved = self.pool.stats().reserved_bytes
        self.recording = recording
        if recording:
            self.pool.record_history()

    # allocating and freeing

    @rule(nbytes=SIZES, stream=STREAMS, tag=TAGS, scope=st.sampled_from(["", "", "", "validation", "test"]))
    def allocate(self, nbytes: int, stream: int, tag: str | None, scope: str) -> None:
        before = self.pool.stats()
        with ExitStack() as around:
            if tag is not None:
                around.enter_context(self.pool.tag(tag))
            if scope:
                around.enter_context(self.pool.scope(scope))
            try:
                block = self.pool.allocate(nbytes, self.streams[stream])
            except OutOfMemory:
                self._check_failure(before, nbytes, self.streams[stream])
                return
        self.live[block] = tag
        self.freed = self.freed[-20:]
        self.total += block.size
        self.peak = max(self.peak, sum(b.size for b in self.live))
        self._use(block, self.streams[stream])

    def _check_failure(self, before: Any, nbytes: int, stream: int) -> None:
        after = self.pool.stats()
        for name in (
            "allocated_bytes",
            "requested_bytes",
            "allocations",
            "frees",
            "live_blocks",
            "tags",
            "pinned_bytes",
        ):
            assert getattr(after, name) == getattr(before, name)
        with pytest.raises(OutOfMemory):
            self.pool.allocate(nbytes, stream)
        engine = self.pool._ladder
        if not self.pins and len(engine.lanes) == 1:
            # nothing is in the way of moving blocks, and still there is no hole for it
            assert after.largest_free_bytes < nbytes
            if engine.reserve.backend == "virtual":
                # each kind of block may leave a page unfinished; the limit, too
                room = min(engine.reserve.limit or MEMORY, MEMORY) - after.allocated_bytes
                assert room < nbytes + self.pool._up + 3 * self.machine.page_nbytes

    @rule(nbytes=st.sampled_from([256, 5000, 70_000]), count=st.integers(2, 12), stream=STREAMS)
    def allocate_many(self, nbytes: int, count: int, stream: int) -> None:
        for _ in range(count):
            self.allocate(nbytes, stream, None, "")

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self._free(data.draw(st.sampled_from(list(self.live))))

    @precondition(lambda self: len(self.live) > 3)
    @rule(start=st.integers(0, 1), step=st.integers(2, 3))
    def free_every_other(self, start: int, step: int) -> None:
        for block in list(self.live)[start::step]:
            self._free(block)

    def _free(self, block: Block) -> None:
        if block in self.pins:
            with pytest.raises(PoolError, match="pinned"):
                block.free()
            return
        del self.live[block]
        block.free()
        self.freed.append(block)

    @precondition(lambda self: self.freed)
    @rule(data=st.data())
    def free_again(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.freed))
        before = self.pool.stats()
        with pytest.raises(PoolError):
            block.free()
        assert self.pool.stats() == before

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(list(self.live)))
        if block in self.pins:
            block.unpin()
            del self.pins[block]
        else:
            self.pins[block] = block.pin()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tag=TAGS)
    def retag(self, data: st.DataObject, tag: str | None) -> None:
        block = data.draw(st.sampled_from(list(self.live)))
        block.retag(tag)
        self.live[block] = tag

    # streams

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stream=STREAMS)
    def use(self, data: st.DataObject, stream: int) -> None:
        self._use(data.draw(st.sampled_from(list(self.live))), self.streams[stream])

    def _use(self, block: Block, stream: int) -> None:
        with self.pool.lock:
            if stream != block.stream:
                block.record_stream(stream)
                event = self.machine.record_event(block.stream)
                self.machine.wait_event(stream, event)
                self.machine.destroy_event(event)
            self.machine.use(stream, block.address, block.nbytes, block)

    @rule(stream=STREAMS, pieces=st.integers(1, 20))
    def advance(self, stream: int, pieces: int) -> None:
        self.machine.advance(self.streams[stream], pieces)

    @rule(stream=st.integers(1, 2))
    def end_or_begin_stream(self, stream: int) -> None:
        """Blocks and queued work may outlive it; the number comes again. Meanwhile, stream 0 does its work."""
        if self.streams[stream]:
            self.machine.destroy_stream(self.streams[stream])
            self.streams[stream] = 0
        else:
            self.streams[stream] = self.machine.new_stream()
        assert max(self.streams) <= 2

    # moving and giving back

    @rule()
    def defragment(self) -> None:
        report = self.pool.defragment()
        assert report.complete
        assert report.segments_emptied or report.largest_free_after >= report.largest_free_before
        if not self.pins and not self.pool.stats().pending_bytes:
            for segment in self.pool.segments():
                states = [block.state for block in segment.blocks if block.state != "unmapped"]
                assert "live" not in states[states.index("free") :] if "free" in states else True, "not dense"

    @rule(max_bytes=st.sampled_from([1, 100_000, MIB]))
    def defragment_some(self, max_bytes: int) -> None:
        largest = max((block.size for block in self.live), default=0)
        report = self.pool.defragment(max_bytes=max_bytes)
        assert report.bytes_moved <= max_bytes + largest
        assert report.complete or report.bytes_moved > 0

    @rule(keep=st.sampled_from([0, "3 MiB", 100 * MIB]))
    def trim(self, keep: int | str) -> None:
        before = self.pool.stats().reserved_bytes
        assert before - self.pool.trim(keep) == self.pool.stats().reserved_bytes
        if keep == 0:
            assert not self.pool._ladder._free_segments()
        for lane in self.pool._ladder.lanes.values():
            assert lane.stream in self.streams and (not lane.scope or lane.live)

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        stats = self.pool.stats()
        assert stats.pending_bytes == 0 and (self.live or stats.reserved_bytes == 0)

    @rule()
    def reset_peaks(self) -> None:
        self.pool.reset_peaks()
        self.peak = sum(block.size for block in self.live)

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        check_books(self.pool, self.live)
        check_driver(self.pool)
        assert all(block.address == address for block, address in self.pins.items())
        stats = self.pool.stats()
        assert (stats.peak_allocated_bytes, stats.total_allocated_bytes) == (self.peak, self.total)
        for tag in (None, "activations", "optimizer"):
            of = [block.size for block, its in self.live.items() if its == tag]
            found = stats.tags.get(tag or "user")
            assert (found.allocated_bytes, found.live_blocks) == (sum(of), len(of)) if found else not of
        if self.pool._ladder.reserve.backend == "direct" and not self.pool.config.initial:
            assert stats.reserved_bytes == stats.allocated_bytes + stats.pending_bytes

    def teardown(self) -> None:
        if hasattr(self, "pool") and self.recording:
            check_events(self.pool.history(), self.pool, self.reserved, exact=True)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(stateful_step_count=25)
