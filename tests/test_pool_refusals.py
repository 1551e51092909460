"""`OutOfMemory` means that there is no memory: what is free and may be joined serves any request."""

from __future__ import annotations

import random

import pytest

from flame_numba.errors import OutOfMemory
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import check_books, check_refused, frozen_heap, simulated

KIB, MIB = 1 << 10, 1 << 20


def _pool(**settings) -> tuple[MemoryPool, int]:
    """A pool, and the number of a second stream."""
    pool = MemoryPool(simulated(1 << 30), PoolConfig(**settings))
    return pool, pool.backend.new_stream()


@pytest.mark.parametrize(("held", "asked"), [(36 * MIB, 4), (4, 40 * MIB)])
def test_another_stream_has_it_in_its_other_arena(held: int, asked: int) -> None:
    pool, stream = _pool(limit="64 MiB", backend="segments")
    first = pool.allocate(held)
    cached = pool.allocate(28 * MIB)
    cached.free()
    wanted = [pool.allocate(2 * MIB, stream), pool.allocate(asked, stream)]
    check_books(pool, [first, *wanted])


@pytest.mark.parametrize("backend", ["segments", "virtual"])
def test_what_lies_apart_on_many_streams_is_joined(backend: str) -> None:
    """Each stream and scope has a small block in a segment of its own: only together are they free."""
    pool, _ = _pool(limit="16 MiB", backend=backend)
    held = []
    for i in range(8):
        with pool.scope("odd" if i % 2 else "even"):
            held.append(pool.allocate(KIB, pool.backend.new_stream()))
    large = pool.allocate(13 * MIB)
    check_books(pool, [*held, large])


def test_blocks_move_out_of_the_way_of_a_request() -> None:
    """Two allocations, each half full: neither has the bytes, and neither can be emptied into the other."""
    pool, stream = _pool(limit="16 MiB", backend="segments", segment=("2 MiB", "8 MiB"))
    blocks = [pool.allocate(256 * KIB, [0, stream][i % 2]) for i in range(64)]
    for i in range(0, 64, 5):
        blocks[i].free()
    kept = [block for i, block in enumerate(blocks) if i % 5]
    kept.append(pool.allocate(13 * 256 * KIB - 8 * 256 * KIB))
    check_books(pool, kept)


@pytest.mark.parametrize("backend", ["segments", "virtual", "direct"])
@pytest.mark.parametrize("seed", range(6))
def test_a_refused_request_could_not_be_served(backend: str, seed: int) -> None:
    rng = random.Random(seed)
    pool, stream = _pool(limit=rng.choice(["8 MiB", "64 MiB"]), backend=backend, segment=("256 KiB", "2 MiB"))
    streams, held = [0, stream, pool.backend.new_stream()], []
    with frozen_heap():
        for _ in range(300):
            try:
                with pool.scope(f"scope {rng.randrange(3)}"):
                    held.append(pool.allocate(int(2 ** rng.uniform(0, 24)), rng.choice(streams)))
            except OutOfMemory:
                check_books(pool, held)
                _ask_for_the_rest(pool, rng, streams)
                _free_half(held, rng)
            if held and seed % 3 == 0 and rng.random() < 0.1 and not (block := rng.choice(held)).pins:
                block.pin()
        check_books(pool, held)


def _ask_for_the_rest(pool: MemoryPool, rng: random.Random, streams: list[int]) -> None:
    free = pool.stats().free_bytes + max(pool._ladder.reserve.room(), 0)
    nbytes = int(free * rng.uniform(0.1, 1.0))
    try:
        pool.allocate(nbytes, rng.choice(streams)).free()
    except OutOfMemory:
        check_refused(pool, nbytes)


def _free_half(held: list[Block], rng: random.Random) -> None:
    for _ in range(len(held) // 2 + 1):
        block = held.pop(rng.randrange(len(held)))
        if block.pins:
            block.unpin()
        block.free()
        if not held:
            break
