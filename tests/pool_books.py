"""What the pool's tests share: what must hold of the books after any operation, and of the contents of blocks."""

from __future__ import annotations

import ctypes
import gc
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, pairwise

import pytest

from flame_numba.devices import Device
from flame_numba.devices.simulated import SimulatedBackend
from flame_numba.errors import OutOfMemory
from flame_numba.memory.arena import Arena
from flame_numba.memory.blocks import Segment, Span
from flame_numba.pool import Block, Event, MemoryPool, SegmentView


def simulated(memory: int = 1 << 40, backend: SimulatedBackend | None = None) -> Device:
    """A simulated device of its own: equal devices share a machine, which tests must not."""
    device = Device.simulated(memory)
    device._backend = backend or SimulatedBackend(memory)
    return device


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Collections, of which pools do one before they give up, need not look at all that was imported."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def check_books(pool: MemoryPool, live: Iterable[Block]) -> None:
    """Everything that must be true of a pool in which exactly `live` are live, whatever waits to be merged."""
    blocks = [block for block in live if block.nbytes]
    with pool.lock:
        with pool._exclusive():
            for arena in pool._ladder.arenas():
                _check_arena(pool, arena)
            _check_reserve(pool)
        _check_blocks(pool, blocks)
        _check_stats(pool, blocks)
        _check_views(pool, blocks)


# the structure: arenas, segments, spans


def state(span: Span) -> str:
    """The one thing that a span is."""
    if not span.mapped:
        found = "unmapped"
    elif span.binned:
        found = "free"
    elif span.pending:
        found = "pending"
    else:
        assert span.block is not None, "a span that is nothing"
        return "live" if span.block.alive else "waiting"
    assert span.block is None and (found == "free") == span.binned and (found == "pending") == span.pending
    return found


def _check_arena(pool: MemoryPool, arena: Arena) -> None:
    spans = [span for segment in arena.segments.values() for span in _checked_segment(segment, arena)]
    of = {kind: {s for s in spans if state(s) == kind} for kind in ("unmapped", "free", "pending", "live", "waiting")}
    binned = list(arena.bins)
    assert set(binned) == of["free"] and len(binned) == len(of["free"])
    counts: Counter[int] = Counter()
    for held in arena.bins._bins.values():
        assert held.sizes == sorted(held.counts) == sorted(held.heaps)
        counts.update(held.counts)
    assert counts == Counter(span.size for span in binned)
    assert arena.bins.nbytes == sum(span.size for span in of["free"])
    assert arena.bins.largest() == max((span.size for span in of["free"]), default=0)
    assert arena.unmapped == of["unmapped"]
    assert of["pending"] <= {span for _, span in pool._ladder.streams.pending}
    lane = next(lane for lane in pool._ladder.lanes.values() if any(arena is own for own in lane.arenas))
    assert (arena.stream, arena.scope, arena.home) == (lane.stream, lane.scope, lane.home)
    for span in of["live"] | of["waiting"]:
        assert span.home is not None and span.home is lane.ready.get(span.size), "a home that nobody looks into"
        assert (span in span.home) == (span in of["waiting"])
    assert {**lane.homes[0], **lane.homes[1]} == lane.ready
    assert lane.hits is lane.ready or not lane.hits


def _checked_segment(segment: Segment, arena: Arena) -> list[Span]:
    """The spans of a segment, which tile it, with merged neighbours and memory exactly where they say."""
    spans = list(segment)
    ends = list(accumulate((span.size for span in spans), initial=segment.address))
    assert [span.address for span in spans] == ends[:-1]
    assert ends[-1] == segment.address + segment.size
    assert segment.arena is arena
    assert all(span.segment is segment and span.size % 256 == 0 and span.size > 0 for span in spans)
    assert not any(a.binned and b.binned for a, b in pairwise(spans)), "not merged"
    assert not any(not a.mapped and not b.mapped for a, b in pairwise(spans)), "not merged"
    assert all(b.prev is a for a, b in zip([None, *spans], spans, strict=False))
    pages = sorted(segment.pages.items())
    assert all(a + size <= b for (a, size), (b, _) in pairwise(pages))
    assert _joined(pages) == _joined((span.address, span.size) for span in spans if span.mapped)
    return spans


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs (address, bytes) in order, those that touch as one."""
    result: list[tuple[int, int]] = []
    for address, size in runs:
        if result and sum(result[-1]) == address:
            address, size = result[-1][0], result.pop()[1] + size
        result.append((address, size))
    return result


def _check_reserve(pool: MemoryPool) -> None:
    """What the segments say, what the pool says and what the driver says that it holds is the same."""
    reserve, machine = pool._ladder.reserve, pool.backend
    held = reserve.growth.held
    pages = {}
    for arena in pool._ladder.arenas():
        for segment in arena.segments.values():
            pages.update(segment.pages)
            if segment.virtual:
                assert held.ranges[segment.address] == segment.size
    assert held.memory == pages
    assert sum(pages.values()) == reserve.nbytes <= reserve.peak_nbytes
    assert reserve.limit is None or reserve.peak_nbytes <= reserve.limit
    if reserve.backend == "virtual":
        for mapped in (getattr(machine, "_virtual", None),):
            assert mapped is None or pages.items() <= mapped.mapped.sizes.items()
    elif isinstance(machine, SimulatedBackend):
        assert pages.items() <= machine._allocations.sizes.items()


def check_driver(pool: MemoryPool) -> None:
    """All that is used of a simulated machine is this pool's."""
    machine = pool.backend
    assert isinstance(machine, SimulatedBackend)
    assert machine.memory - machine.memory_info().free == pool.stats().reserved_bytes


# the handles


def _check_blocks(pool: MemoryPool, blocks: list[Block]) -> None:
    zones = 2 * pool._ladder.offset
    step = int(pool._up) + 1
    ranges = sorted((block.address, block.address + block.size - zones) for block in blocks)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges)), "blocks overlap"
    for block in blocks:
        assert block.alive and block._span.block is block and block.pool is pool
        assert block.address == block._span.address + pool._ladder.offset
        assert block.address % 256 == 0 < block.address
        assert block.nbytes + zones <= block.size
        # a rest below the threshold stays with the block unless it is over 1 % of it
        assert block.nbytes < 1 << 16 or block.size - zones <= 1.01 * (block.nbytes + zones) + step <= 1.03 * block.size
    segments = sorted((s.address, s.address + s.size) for a in pool._ladder.arenas() for s in a.segments.values())
    for start, end in ranges:
        low, high = segments[bisect_right(segments, (start, 1 << 63)) - 1]
        assert low <= start and end <= high, "a block lies outside the segments"


def _check_stats(pool: MemoryPool, blocks: list[Block]) -> None:
    stats = pool.stats()
    sizes: Counter[str] = Counter()
    for span in pool._ladder.spans():
        sizes[state(span)] += span.size
    del sizes["unmapped"]
    assert stats.live_blocks == len(blocks) == stats.allocations - stats.frees
    assert stats.allocated_bytes == sum(block.size for block in blocks) == sizes["live"]
    assert stats.requested_bytes == sum(block.nbytes for block in blocks)
    assert stats.reserved_bytes == sizes.total()
    assert stats.pending_bytes == sizes["pending"]
    assert stats.pinned_bytes == sum(block.size for block in blocks if block.pins)
    assert stats.peak_reserved_bytes >= stats.reserved_bytes
    assert stats.peak_allocated_bytes >= stats.allocated_bytes
    assert stats.total_allocated_bytes >= stats.allocated_bytes
    assert sizes["free"] + sizes["waiting"] >= stats.largest_free_bytes >= pool._ladder.largest_free()
    assert stats.hits + stats.misses == stats.allocations and min(stats.hits, stats.misses) >= 0
    assert sum(tag.allocated_bytes for tag in stats.tags.values()) == stats.allocated_bytes
    assert sum(tag.live_blocks for tag in stats.tags.values()) == stats.live_blocks
    assert all(tag.peak_allocated_bytes >= tag.allocated_bytes >= 0 for tag in stats.tags.values())


def _check_views(pool: MemoryPool, blocks: list[Block]) -> None:
    """What `segments()` shows is what the books say."""
    tags: Counter[str] = Counter()
    shown = {}
    for segment in pool.segments():
        ends = list(accumulate((view.size for view in segment.blocks), initial=segment.address))
        assert ends[-1] == segment.address + segment.size
        for view in segment.blocks:
            if view.state == "live":
                tags[view.tag] += view.size
                shown[view.address] = (view.size, view.nbytes, view.pins)
    assert shown == {block._span.address: (block.size, block.nbytes, block.pins) for block in blocks}
    assert +tags == +Counter({tag: of.allocated_bytes for tag, of in pool.stats().tags.items()})


# what OutOfMemory says


def check_refused(pool: MemoryPool, nbytes: int) -> None:
    """A pool that just refused so many bytes could not have served them: what docs/memory.md promises.

    Read off the pool's views, where no other thread changes them.
    """
    reserve, page = pool._ladder.reserve, pool.backend.page_nbytes
    size = (nbytes + 2 * pool._ladder.offset + pool._up) & pool._down
    if size > reserve.most:
        return
    headroom, virtual = reserve.headroom(), reserve.backend == "virtual"
    headroom = headroom // page * page if virtual else headroom & -256
    views = pool.segments()
    unused = [] if virtual else [s.size for s in views if all(block.state == "free" for block in s.blocks)]
    assert headroom + sum(unused) < size, "the driver could have given it"
    runs = [run for segment in views for run in _runs(segment)]
    assert all(free < size for free, _, _ in runs), "it fits between two pinned blocks"
    holes = [free for free, _, _ in runs] + [0 if virtual else headroom]
    for i, (free, blocks, unmapped) in enumerate(runs if reserve.backend != "direct" else ()):
        free += min(headroom, unmapped) if virtual else 0
        if blocks and free + sum(blocks) >= size:
            lost = max(blocks) - 256  # at most so much of each hole cannot be filled with these blocks
            room = sum(max(hole - lost, 0) for j, hole in enumerate(holes) if j != i)
            assert free + room < size, "blocks could have moved out of its way"


def _runs(segment: SegmentView) -> Iterator[tuple[int, list[int], int]]:
    """(free bytes, sizes of blocks, bytes without memory behind it) of what lies between pinned blocks."""
    free, blocks = 0, []
    for view in (*segment.blocks, None):
        if view is not None and view.state == "free":
            free += view.size
        elif view is not None and view.state == "live" and not view.pins:
            blocks.append(view.size)
        else:
            assert view is None or view.state != "pending", "a stream was waited for"
            yield free, blocks, view.size if view is not None and view.state == "unmapped" else 0
            free, blocks = 0, []


# the events


def check_events(
    events: list[Event],
    pool: MemoryPool,
    reserved: int = 0,
    earlier: Mapping[int, int] | None = None,
    exact: bool = False,
) -> None:
    """Doing again what the events tell gives the blocks that are live now, and the bytes reserved.

    reserved, earlier: the bytes, and the blocks (address → size), that there were when recording began. exact: the
    books in each event agree, too, as they do where no finalizer freed anything in the middle of an operation.
    """
    live = dict(earlier or {})
    for event in events:
        if event.action == "alloc":
            assert event.address not in live and event.requested <= event.nbytes
            live[event.address] = event.nbytes
        elif event.action == "free":
            assert live.pop(event.address) == event.nbytes
        elif event.action == "move":
            size = live.pop(event.address)
            assert event.target not in live and size == event.nbytes
            live[event.target] = size
        elif event.action == "segment_alloc":
            reserved += event.nbytes
        elif event.action == "segment_free":
            reserved -= event.nbytes
        else:
            assert event.action in ("free_completed", "oom")
        ranges = sorted((address, address + size) for address, size in live.items()) if len(live) < 50 else []
        assert event.action == "move" or all(end <= start for (_, end), (start, _) in pairwise(ranges))
        if exact:
            assert event.allocated_bytes == sum(live.values())
            assert event.reserved_bytes == reserved
    assert all(a.seconds <= b.seconds for a, b in pairwise(events))
    stats = pool.stats()
    assert sum(live.values()) == stats.allocated_bytes and reserved == stats.reserved_bytes
    assert live == {s.address: s.size for s in pool._ladder.spans() if s.live}


# contents


def filled(pool: MemoryPool, nbytes: int) -> list[Block]:
    """As many blocks as the limit allows."""
    blocks = []
    with pytest.raises(OutOfMemory):
        while True:
            blocks.append(pool.allocate(nbytes))
    return blocks


_NOISE = random.Random(0).randbytes(1 << 22)


class Contents:
    """Random bytes written to each block, to find again wherever it went. On a machine without memory: only where."""

    def __init__(self, pool: MemoryPool, seed: int = 0) -> None:
        self.pool = pool
        self.rng = random.Random(seed)
        self.written: dict[Block, int] = {}  # where its bytes begin in the noise
        self._real = pool.backend.kind != "simulated"

    def allocate(self, nbytes: int) -> Block:
        block = self.pool.allocate(nbytes)
        if nbytes:
            self.write(block)
        return block

    def write(self, block: Block) -> None:
        """Give it other bytes."""
        self.written[block] = start = self.rng.randrange(len(_NOISE))
        source = ctypes.create_string_buffer(_noise(start, block.nbytes) if self._real else b"", block.nbytes)
        with self.pool.lock:
            self.pool.backend.upload(block.address, ctypes.addressof(source), block.nbytes)

    def free(self, block: Block) -> None:
        del self.written[block]
        block.free()

    def check(self, blocks: Iterable[Block] | None = None) -> None:
        for block in self.written if blocks is None else blocks:
            found = ctypes.create_string_buffer(block.nbytes)
            with self.pool.lock:
                self.pool.backend.download(ctypes.addressof(found), block.address, block.nbytes)
            assert not self._real or found.raw == _noise(self.written[block], block.nbytes), block


def _noise(start: int, nbytes: int) -> bytes:
    data = _NOISE[start : start + nbytes]
    while len(data) < nbytes:
        data += _NOISE[: nbytes - len(data)]
    return data


class Owner:
    """Frees its block when collected; in a cycle with itself, so that only the collector finds it."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.cycle = self

    def __del__(self) -> None:
        self.block.free()
