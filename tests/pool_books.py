"""What the pool's tests share: what must hold of the books after any operation, and of the contents of blocks."""

from __future__ import annotations

import ctypes
import hashlib
import random
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise

import pytest

from flame_numba.devices import Device
from flame_numba.devices.simulated import SimulatedBackend
from flame_numba.errors import OutOfMemory
from flame_numba.pool import Block, MemoryPool


def simulated(memory: int = 1 << 40) -> Device:
    """A simulated device of its own: equal devices share a machine, which tests must not."""
    device = Device.simulated(memory)
    device._backend = SimulatedBackend(memory)
    return device


def check_books(pool: MemoryPool, live: Iterable[Block]) -> None:
    """Live blocks do not overlap and lie in segments; neighbours are merged; all bytes are accounted for."""
    stats = pool.stats()
    blocks = [block for block in live if block.nbytes]
    _check_blocks(pool, blocks)
    free = []
    for arena in pool._arenas:
        for segment in arena.segments.values():
            spans = list(segment)
            ends = list(accumulate((span.size for span in spans), initial=segment.address))
            assert [span.address for span in spans] == ends[:-1]
            assert ends[-1] == segment.address + segment.size
            assert all((span.block is None) == span.binned for span in spans)
            assert all(span.segment is segment and span.size % 256 == 0 and span.size > 0 for span in spans)
            assert not any(a.binned and b.binned for a, b in pairwise(spans)), "not merged"
            assert all(b.prev is a for a, b in zip([None, *spans], spans, strict=False))
            free += [span.size for span in spans if span.binned]
    binned = [s for arena in pool._arenas for spans in arena.bins._spans.values() for s in spans]
    assert sorted(size for size, _, _ in binned) == sorted(free)
    assert all((span.size, span.address) == (size, address) for size, address, span in binned)
    assert stats.live_blocks == len(blocks) == stats.allocations - stats.frees
    assert stats.allocated_bytes == sum(block.size for block in blocks)
    assert stats.requested_bytes == sum(block.nbytes for block in blocks)
    assert stats.allocated_bytes + sum(free) == stats.reserved_bytes
    assert stats.largest_free_bytes == max(free, default=0)
    assert stats.peak_reserved_bytes >= stats.reserved_bytes
    assert stats.peak_reserved_bytes >= stats.peak_allocated_bytes >= stats.allocated_bytes
    assert stats.hits + stats.misses == stats.allocations


def _check_blocks(pool: MemoryPool, blocks: list[Block]) -> None:
    ranges = sorted((block.address, block.address + block.size) for block in blocks)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges)), "blocks overlap"
    for block in blocks:
        assert block.address % 256 == 0 < block.address
        assert block.nbytes <= block.size
        assert block.nbytes < 1 << 16 or block.size <= 1.03 * block.nbytes
    segments = sorted((s.address, s.address + s.size) for arena in pool._arenas for s in arena.segments.values())
    for start, end in ranges:
        low, high = segments[bisect_right(segments, (start, 1 << 63)) - 1]
        assert low <= start and end <= high, "a block lies outside the segments"


def filled(pool: MemoryPool, nbytes: int) -> list[Block]:
    """As many blocks as the limit allows."""
    blocks = []
    with pytest.raises(OutOfMemory):
        while True:
            blocks.append(pool.allocate(nbytes))
    return blocks


class Contents:
    """Random bytes written to each block, to find again wherever it went."""

    def __init__(self, pool: MemoryPool, seed: int = 0) -> None:
        self.pool = pool
        self.rng = random.Random(seed)
        self.written: dict[Block, bytes] = {}

    def allocate(self, nbytes: int) -> Block:
        block = self.pool.allocate(nbytes)
        data = hashlib.shake_128(self.rng.randbytes(16)).digest(nbytes)
        source = ctypes.create_string_buffer(data, nbytes)
        self.pool.backend.upload(block.address, ctypes.addressof(source), nbytes)
        self.written[block] = data
        return block

    def free(self, block: Block) -> None:
        del self.written[block]
        block.free()

    def check(self) -> None:
        for block, data in self.written.items():
            found = ctypes.create_string_buffer(block.nbytes)
            self.pool.backend.download(ctypes.addressof(found), block.address, block.nbytes)
            assert found.raw == data


class Owner:
    """Frees its block when collected; in a cycle with itself, so that only the collector finds it."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.cycle = self

    def __del__(self) -> None:
        self.block.free()
