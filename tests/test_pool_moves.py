"""The memory pool when memory is scarce: limits, what is tried before giving up, and moving live blocks."""

from __future__ import annotations

import gc
import threading

import pytest

from flame_numba.devices import Device, DeviceOutOfMemory
from flame_numba.errors import OutOfMemory, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import Contents, Owner, check_books, filled, simulated

KIB, MIB = 1 << 10, 1 << 20
ONE_SEGMENT = PoolConfig(segment=("1 MiB", "1 MiB"), limit="1 MiB")


# running out


def test_out_of_memory_says_what_is_where_and_leaves_the_pool_usable() -> None:
    pool = MemoryPool(simulated(), PoolConfig(limit="8 MiB"))
    blocks = [pool.allocate(3 * MIB), pool.allocate(1000)]
    before = pool.stats()
    with pytest.raises(OutOfMemory) as caught:
        pool.allocate(6 * MIB)
    text = str(caught.value)
    for part in ("6.00 MiB (6291456 bytes)", "allocated 3.00 MiB in 2 blocks", "reserved", "largest free block",
                 "limit 8.00 MiB", "device free 1023.", "Free tensors"):  # fmt: skip
        assert part in text
    after = pool.stats()
    assert (after.allocated_bytes, after.allocations, after.live_blocks) == (
        before.allocated_bytes, before.allocations, before.live_blocks)  # fmt: skip
    blocks.append(pool.allocate(2 * MIB))
    check_books(pool, blocks)


def test_a_limit_rejects_before_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated(), PoolConfig(limit="8 MiB"))
    pool.allocate(MIB).free()

    def never(*args: object) -> None:
        raise AssertionError("the driver was called")

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        for name in ("allocate", "free", "copy", "synchronize"):
            patch.setattr(pool.backend, name, never)
        pool.allocate(8 * MIB + 1)


def test_a_limit_is_used_to_the_last_block() -> None:
    pool = MemoryPool(simulated(), PoolConfig(limit=5 * MIB, segment=("2 MiB", "2 MiB")))
    blocks = filled(pool, 256 * KIB)
    assert len(blocks) == 20 and pool.stats().reserved_bytes == 5 * MIB


def test_a_fraction_is_of_the_whole_device() -> None:
    pool = MemoryPool(simulated(64 * MIB), PoolConfig(limit=0.25))
    assert len(filled(pool, MIB)) == 16


def test_cached_segments_are_given_back_for_a_request_of_another_kind() -> None:
    pool = MemoryPool(simulated(64 * MIB))
    pool.allocate(64 * MIB).free()
    small = pool.allocate(1000)
    small.free()
    assert pool.allocate(64 * MIB).size == 64 * MIB


def test_a_small_block_may_use_a_large_segment_when_nothing_else_is_left() -> None:
    pool = MemoryPool(simulated(64 * MIB))
    blocks = [pool.allocate(20 * MIB), pool.allocate(1000)]
    assert pool.stats().segments == 1
    check_books(pool, blocks)


def test_a_machine_without_room_to_copy_through_gets_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the slack asks for moving blocks, but there is another way."""
    pool = MemoryPool(simulated(), PoolConfig(backend="segments", slack=0))
    blocks = [pool.allocate(MIB) for _ in range(64)]
    for block in blocks[::2]:
        block.free()

    def copy(*args: object) -> None:
        raise DeviceOutOfMemory

    monkeypatch.setattr(pool.backend, "copy", copy)
    check_books(pool, [*blocks[1::2], pool.allocate(20 * MIB)])


def test_garbage_is_collected_before_giving_up() -> None:
    pool = MemoryPool(simulated(64 * MIB))
    gc.disable()
    try:
        Owner(pool.allocate(64 * MIB))
        assert pool.allocate(48 * MIB).size == 48 * MIB
    finally:
        gc.enable()


def test_an_allocation_that_fits_does_not_fail_from_fragmentation() -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    for block in blocks[::2]:
        block.free()
    assert pool.stats().largest_free_bytes == 64 * KIB
    blocks = [*blocks[1::2], pool.allocate(512 * KIB)]
    assert pool.stats().moves > 0
    check_books(pool, blocks)


def test_emptying_a_small_segment_does_not_use_up_the_room_of_a_large_one() -> None:
    pool = MemoryPool(simulated(), PoolConfig(segment=("1 MiB", "1 MiB"), limit="1280 KiB"))
    blocks = filled(pool, 128 * KIB)
    assert len(blocks) == 10 and pool.stats().segments == 2  # of 1 MiB and of 256 KiB
    for i in (0, 2, 4, 6, 8):
        blocks[i].free()
    assert pool.allocate(512 * KIB).size == 512 * KIB


def test_no_block_is_moved_for_a_request_that_cannot_fit() -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    for block in blocks[::2]:
        block.free()
    with pytest.raises(OutOfMemory):
        pool.allocate(600 * KIB)
    assert pool.stats().moves == 0


# moving


def holes_between(pool: MemoryPool, count: int, nbytes: int = 64 * KIB) -> tuple[Contents, list[Block]]:
    contents = Contents(pool)
    blocks = [contents.allocate(nbytes) for _ in range(count)]
    for block in blocks[::2]:
        contents.free(block)
    return contents, blocks[1::2]


def test_defragment_slides_blocks_to_the_front(device: Device) -> None:
    pool = MemoryPool(device, ONE_SEGMENT)
    contents, blocks = holes_between(pool, 16)
    report = pool.defragment()
    assert (report.blocks_moved, report.bytes_moved) == (8, 512 * KIB)
    assert (report.largest_free_before, report.largest_free_after) == (64 * KIB, 512 * KIB)
    assert report.seconds > 0 and report.complete and pool.stats().moves == 8
    contents.check()
    check_books(pool, blocks)
    assert pool.defragment().blocks_moved == 0


def test_defragment_empties_segments_that_trim_returns(device: Device) -> None:
    pool = MemoryPool(device, PoolConfig(backend="segments", segment=("1 MiB", "1 MiB")))
    contents, blocks = holes_between(pool, 64)
    assert pool.stats().segments == 4
    assert pool.defragment().segments_emptied == 2
    assert pool.trim() == 2 * MIB
    contents.check()
    check_books(pool, blocks)


def test_a_pinned_block_stays_until_it_is_unpinned_as_often(device: Device) -> None:
    pool = MemoryPool(device, ONE_SEGMENT)
    contents, blocks = holes_between(pool, 16)
    pinned = blocks[3]
    address = pinned.pin()
    assert pinned.pin() == address
    pool.defragment()
    assert pinned.address == address
    pinned.unpin()
    pool.defragment()
    assert pinned.address == address
    contents.check()
    pinned.unpin()
    pool.defragment()
    assert pinned.address < address
    contents.check()
    check_books(pool, blocks)
    with pytest.raises(PoolError, match="not pinned"):
        pinned.unpin()


def two_segments(first: list[int], second: list[int]) -> tuple[MemoryPool, list[Block], list[Block]]:
    """Two segments of 1 MiB, cut into blocks of so many KiB; those of negative size are freed."""
    pool = MemoryPool(simulated(), PoolConfig(backend="segments", segment=("1 MiB", "1 MiB")))
    halves = [[pool.allocate(abs(n) * KIB) for n in sizes] for sizes in (first, second)]
    for sizes, blocks in zip((first, second), halves, strict=True):
        for n, block in zip(sizes, blocks, strict=True):
            if n < 0:
                block.free()
    assert pool.stats().segments == 2
    return pool, *([block for n, block in zip(first, halves[0]) if n > 0],
                   [block for n, block in zip(second, halves[1]) if n > 0])  # fmt: skip


def test_holes_are_joined_where_no_single_one_takes_a_block() -> None:
    pool, fuller, emptier = two_segments([400, -200, 200, -200, 24], [250, -774])
    report = pool.defragment()
    assert (report.segments_emptied, report.largest_free_after) == (1, MIB)
    check_books(pool, fuller + emptier)


def test_no_block_leaves_a_segment_that_cannot_be_emptied() -> None:
    pool, *_ = two_segments([350, 350, -324], [300, 300, -424])
    assert pool.defragment().bytes_moved == 0


def test_a_segment_with_a_pinned_block_takes_blocks_and_gives_none() -> None:
    pool, fuller, emptier = two_segments([500, -524], [100, 100, -824])
    emptier[1].pin()
    report = pool.defragment()
    assert (report.blocks_moved, report.segments_emptied) == (1, 1)
    start = emptier[0].address
    assert start < fuller[0].address < start + MIB
    check_books(pool, fuller + emptier)


def test_a_finalizer_that_allocates_while_blocks_move_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    for block in blocks[::2]:
        block.free()

    def copy(*args: object) -> None:  # stands for a finalizer that runs at this moment
        if len(victims) == 8:
            victims.pop().free()
            with pytest.raises(PoolError, match="finalizer"):
                pool.allocate(5000)
            with pytest.raises(PoolError, match="finalizer"):
                pool.allocate(5000, stream=7)  # one that the pool has not met
            with pytest.raises(PoolError, match="finalizer"):
                pool.defragment()

    victims = blocks[1::2]
    monkeypatch.setattr(pool.backend, "copy", copy)
    pool.defragment()
    check_books(pool, victims)


def test_a_block_freed_from_another_thread_while_blocks_move(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    for block in blocks[::2]:
        block.free()
    victims = blocks[1::2]

    def copy(*args: object) -> None:
        if victims:
            thread = threading.Thread(target=victims.pop().free)
            thread.start()
            thread.join()

    monkeypatch.setattr(pool.backend, "copy", copy)
    pool.defragment()
    check_books(pool, victims)
    with pytest.raises(PoolError):
        blocks[-1].free()


def test_a_machine_without_room_to_copy_through_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    for block in blocks[::2]:
        block.free()

    def copy(*args: object) -> None:
        raise DeviceOutOfMemory

    monkeypatch.setattr(pool.backend, "copy", copy)
    with pytest.raises(OutOfMemory):
        pool.allocate(512 * KIB)
    check_books(pool, blocks[1::2])


def test_a_driver_that_is_out_of_memory_is_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated(), PoolConfig(backend="segments"))
    allocate = pool.backend.allocate

    def nearly_full(nbytes: int) -> int:
        if nbytes > 4 * MIB:
            raise DeviceOutOfMemory
        return allocate(nbytes)

    monkeypatch.setattr(pool.backend, "allocate", nearly_full)
    check_books(pool, [pool.allocate(3 * MIB)])
    assert pool.stats().reserved_bytes == 3 * MIB
