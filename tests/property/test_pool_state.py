"""Any program of allocations, frees, pins, moves and trims: the books balance and no block touches another."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flame_numba.errors import OutOfMemory, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import check_books, simulated

KIB, MIB = 1 << 10, 1 << 20
SIZES = st.one_of(
    st.sampled_from([1, 256, 4 * KIB, 64 * KIB, MIB]),  # sizes that come again
    st.integers(1, 8 * KIB),
    st.integers(1, 3 * MIB),
)


class PoolMachine(RuleBasedStateMachine):
    """A pool on a small device, next to a plain dict of what must be live in it."""

    live: dict[Block, int | None]  # the address of a pinned block
    freed: list[Block]

    @initialize(
        limit=st.sampled_from([None, "7 MiB", 0.5]),
        segment=st.sampled_from([("2 MiB", "4 MiB"), ("256 KiB", "1 MiB"), (256, 256)]),
        split_threshold=st.sampled_from([256, 8 * KIB]),
        caching=st.sampled_from([True, True, True, False]),
    )
    def make(self, **config: object) -> None:
        self.pool = MemoryPool(simulated(12 * MIB), PoolConfig(**config))  # type: ignore[arg-type]
        self.live, self.freed = {}, []

    @rule(nbytes=SIZES)
    def allocate(self, nbytes: int) -> None:
        before = self.pool.stats()
        try:
            self.live[self.pool.allocate(nbytes)] = None
        except OutOfMemory:
            after = self.pool.stats()
            assert after.allocated_bytes == before.allocated_bytes
            assert after.allocations == before.allocations
            # nothing is in the way of moving blocks, and still there is no hole for it
            assert after.largest_free_bytes < nbytes

    @rule(nbytes=st.sampled_from([256, 5000, 70_000]), count=st.integers(2, 12))
    def allocate_many(self, nbytes: int, count: int) -> None:
        for _ in range(count):
            self.allocate(nbytes)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(list(self.live)))
        self._free(block)

    @precondition(lambda self: len(self.live) > 3)
    @rule(start=st.integers(0, 1), step=st.integers(2, 3))
    def free_every_other(self, start: int, step: int) -> None:
        for block in list(self.live)[start::step]:
            self._free(block)

    def _free(self, block: Block) -> None:
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
        if self.live[block] is None:
            self.live[block] = block.pin()
        else:
            block.unpin()
            self.live[block] = None

    @rule()
    def defragment(self) -> None:
        report = self.pool.defragment()
        assert report.segments_emptied or report.largest_free_after >= report.largest_free_before
        if not any(self.live.values()):
            for arena in self.pool._arenas:
                for segment in arena.segments.values():
                    holes = [span for span in segment if span.block is None]
                    assert len(holes) <= 1 and all(hole.next is None for hole in holes)

    @rule(keep=st.sampled_from([0, "3 MiB", 100 * MIB]))
    def trim(self, keep: int | str) -> None:
        before = self.pool.stats().reserved_bytes
        assert before - self.pool.trim(keep) == self.pool.stats().reserved_bytes
        if keep == 0:
            assert not self.pool._free_segments()

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        check_books(self.pool, self.live)
        assert all(block.address == address for block, address in self.live.items() if address is not None)
        stats, backend = self.pool.stats(), self.pool.backend
        assert stats.reserved_bytes == 12 * MIB - backend.memory_info().free
        limit = self.pool._reserve.limit
        assert limit is None or stats.peak_reserved_bytes <= limit
        if not self.pool.config.caching:
            assert stats.reserved_bytes == stats.allocated_bytes
            assert stats.segments == stats.live_blocks


TestPool = PoolMachine.TestCase
TestPool.settings = settings(stateful_step_count=40)
