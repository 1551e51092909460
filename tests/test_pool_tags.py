"""Bytes by tag: what for a block was allocated, from the `with` blocks around it."""

from __future__ import annotations

import contextvars
import threading

import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.pool import Block, MemoryPool, PoolConfig, memory_tag
from pool_books import check_books, simulated

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(params=["virtual", "segments", "direct"])
def pool(request: pytest.FixtureRequest) -> MemoryPool:
    return MemoryPool(simulated(), PoolConfig(backend=request.param))


def held(pool: MemoryPool) -> dict[str, int]:
    """Bytes by tag, of the tags that have any."""
    return {tag: of.allocated_bytes for tag, of in pool.stats().tags.items() if of.allocated_bytes}


def test_the_innermost_tag_counts(pool: MemoryPool) -> None:
    blocks = [pool.allocate(1024)]
    with pool.tag("parameters"):
        blocks.append(pool.allocate(2048))
        with memory_tag("workspace"):
            blocks.append(pool.allocate(4096))
            with memory_tag("activations", weak=True):  # there is one already
                blocks.append(pool.allocate(512))
        blocks.append(pool.allocate(256))
    with memory_tag("activations", weak=True):
        blocks.append(pool.allocate(768))
    assert held(pool) == {"user": 1024, "parameters": 2304, "workspace": 4608, "activations": 768}
    check_books(pool, blocks)
    for block in blocks:
        block.free()
    assert held(pool) == {}
    check_books(pool, [])


def test_a_block_that_is_used_again_has_the_new_tag(pool: MemoryPool) -> None:
    for tag in ("parameters", "gradients", "user", "gradients"):
        with pool.tag(tag):
            block = pool.allocate(5000)
        assert held(pool) == {tag: block.size}
        block.free()
    block = pool.allocate(5000)
    assert held(pool) == {"user": block.size}


def test_retagging_moves_the_bytes(pool: MemoryPool) -> None:
    block, other = pool.allocate(1024), pool.allocate(256)
    for tag in ("gradients", "gradients", "optimizer"):
        block.retag(tag)
        assert held(pool) == {tag: 1024, "user": 256}
    check_books(pool, [block, other])
    for nothing in (None, "user"):
        block.retag("optimizer")
        block.retag(nothing)
        assert held(pool) == {"user": 1280}
    block.retag("gradients")
    pool.defragment()
    block.free()
    assert held(pool) == {"user": 256}
    check_books(pool, [other])


def test_each_tag_has_its_own_peak(pool: MemoryPool) -> None:
    with pool.tag("a"):
        pool.allocate(MIB).free()
        kept = pool.allocate(1024)
    with pool.tag("b"):
        pool.allocate(4 * MIB).free()
    tags = pool.stats().tags
    assert (tags["a"].peak_allocated_bytes, tags["b"].peak_allocated_bytes) == (MIB, 4 * MIB)
    assert (tags["a"].allocated_bytes, tags["a"].live_blocks, tags["b"].live_blocks) == (1024, 1, 0)
    assert pool.stats().peak_allocated_bytes == 4 * MIB + 1024
    check_books(pool, [kept])


def test_a_tag_belongs_to_its_thread_or_task(pool: MemoryPool) -> None:
    blocks: list[Block] = []
    with pool.tag("a"):
        thread = threading.Thread(target=lambda: blocks.append(pool.allocate(256)))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
    copied.run(lambda: blocks.append(pool.allocate(512)))
    blocks.append(pool.allocate(1024))
    assert held(pool) == {"user": 1280, "a": 512}
    check_books(pool, blocks)


def test_an_exception_ends_a_tag(pool: MemoryPool) -> None:
    with pytest.raises(ZeroDivisionError), pool.tag("a"):
        raise ZeroDivisionError
    pool.allocate(256)
    assert held(pool) == {"user": 256}


def test_a_tag_holds_in_every_pool(pool: MemoryPool) -> None:
    other = MemoryPool(simulated())
    with fn.memory_tag("optimizer"):
        pool.allocate(256)
        other.allocate(512)
    assert (held(pool), held(other)) == ({"optimizer": 256}, {"optimizer": 512})


def test_tensors_are_tagged(device: Device) -> None:
    with MemoryPool(device).use() as pool:
        with pool.tag("parameters"):
            weights = fn.ones((100, 100))
        x = weights + 1
        assert held(pool)["parameters"] == weights.storage.block.size
        assert sum(held(pool).values()) == pool.stats().allocated_bytes > weights.storage.block.size
        del x, weights
        assert held(pool) == {}
