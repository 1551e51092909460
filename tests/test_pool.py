"""The memory pool, example by example; `property/test_pool_state.py` holds what must be true of every program."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from flame_numba.devices import Device, DeviceOutOfMemory
from flame_numba.errors import ConfigError, DeviceError, KernelError, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig, current_pool, default_pool, parse_bytes
from pool_books import Contents, Owner, check_books, filled, simulated

KIB, MIB = 1 << 10, 1 << 20
ONE_SEGMENT = PoolConfig(segment=("1 MiB", "1 MiB"), limit="1 MiB")


@pytest.fixture(params=["simulated", "device"])
def machine(request: pytest.FixtureRequest) -> Device:
    """A device without memory, and the device of the run."""
    return simulated() if request.param == "simulated" else request.getfixturevalue("device")


@pytest.fixture(params=[True, False], ids=["caching", "passing through"])
def pool(request: pytest.FixtureRequest, machine: Device) -> Iterator[MemoryPool]:
    pool = MemoryPool.with_config(machine, PoolConfig(caching=request.param))
    yield pool
    pool.trim()
    assert pool.stats().reserved_bytes == pool.stats().allocated_bytes


# what every pool does, on every machine


def test_blocks_are_aligned_and_apart(pool: MemoryPool) -> None:
    blocks = [pool.allocate(n) for n in (1, 255, 256, 257, 70_000, MIB, 3 * MIB + 1)]
    assert [block.size for block in blocks[:4]] == [256, 256, 256, 512]
    check_books(pool, blocks)
    for block in blocks[::2]:
        block.free()
    check_books(pool, blocks[1::2])
    for block in blocks[1::2]:
        pool.free(block)
    check_books(pool, [])


def test_double_free_raises_and_changes_nothing(pool: MemoryPool) -> None:
    kept, freed = pool.allocate(1000), pool.allocate(1000)
    freed.free()
    before = pool.stats()
    for use in (freed.free, freed.pin, freed.unpin, lambda: freed.address, lambda: freed.size):
        with pytest.raises(PoolError, match="freed"):
            use()
    assert pool.stats() == before
    assert "freed" in repr(freed)
    reused = pool.allocate(1000)  # the stale handle must not free its successor either
    with pytest.raises(PoolError):
        freed.free()
    check_books(pool, [kept, reused])
    kept.free()
    reused.free()


def test_a_foreign_block_raises(pool: MemoryPool) -> None:
    other = MemoryPool(pool.device)
    block = other.allocate(100)
    with pytest.raises(PoolError, match="another pool"):
        pool.free(block)
    check_books(other, [block])


def test_a_block_of_no_bytes_is_valid(pool: MemoryPool) -> None:
    block = pool.allocate(0)
    assert (block.address, block.nbytes, block.size) == (0, 0, 0)
    assert pool.stats().live_blocks == 0
    block.free()
    with pytest.raises(PoolError):
        block.free()


def test_sizes_that_make_no_sense(pool: MemoryPool) -> None:
    with pytest.raises(PoolError, match="≥ 0, got -1"):
        pool.allocate(-1)
    with pytest.raises(TypeError):
        pool.allocate(1.5)  # type: ignore[arg-type]
    check_books(pool, [])


def test_an_index_is_a_size(pool: MemoryPool) -> None:
    import numpy as np

    block = pool.allocate(np.int64(300))  # type: ignore[arg-type]
    assert type(block.nbytes) is int and type(pool.stats().requested_bytes) is int
    block.free()


def test_contents_survive_what_the_pool_does(device: Device, pool: MemoryPool) -> None:
    if pool.device.kind == "simulated":
        pytest.skip("there are no contents")
    contents, rng = Contents(pool), random.Random(1)
    for step in range(300):
        if contents.written and rng.random() < 0.4:
            contents.free(rng.choice(list(contents.written)))
        else:
            contents.allocate(rng.choice([rng.randint(1, 4 * KIB), rng.randint(1, 300 * KIB)]))
        if step % 30 == 0:
            pool.defragment()
            contents.check()
            check_books(pool, contents.written)
    for block in list(contents.written):
        contents.free(block)


def test_threads_share_a_pool(pool: MemoryPool) -> None:
    kept: list[Block] = []
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng, mine = random.Random(seed), []
        try:
            for step in range(200):
                mine.append(pool.allocate(rng.randint(1, 100 * KIB)))
                if rng.random() < 0.5:
                    mine.pop(rng.randrange(len(mine))).free()
                if step % 50 == seed % 50:
                    pool.defragment()
        except BaseException as error:
            errors.append(error)
        kept.extend(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    check_books(pool, kept)
    for block in kept:
        block.free()
    check_books(pool, [])


def test_of_racing_frees_one_wins(pool: MemoryPool) -> None:
    for _ in range(50):
        block, barrier, outcome = pool.allocate(100), threading.Barrier(4), []

        def race(block: Block = block, barrier: threading.Barrier = barrier, outcome: list[str] = outcome) -> None:
            barrier.wait()
            try:
                block.free()
                outcome.append("freed")
            except PoolError:
                outcome.append("raised")

        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome) == ["freed", "raised", "raised", "raised"]
    check_books(pool, [])


def test_a_finalizer_frees_in_the_middle_of_an_allocation(pool: MemoryPool) -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(1)  # collect at nearly every object made, also inside the pool
    try:
        blocks = []
        for i in range(300):
            Owner(pool.allocate(256 * (i % 7) + 1))
            blocks.append(pool.allocate(5000 + 256 * i))
            if i % 3 == 0:
                blocks.pop(0).free()
            if i % 50 == 0:
                pool.defragment()
                pool.trim()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    check_books(pool, blocks)
    for block in blocks:
        block.free()


class Watched:
    """A machine that knows which memory it has handed out."""

    def __init__(self, device: Device) -> None:
        self.backend, self.taken = device.backend, set[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def allocate(self, nbytes: int) -> int:
        address = self.backend.allocate(nbytes)
        self.taken.add(address)
        return address

    def free(self, address: int) -> None:
        self.taken.remove(address)
        self.backend.free(address)


@pytest.mark.parametrize("caching", [True, False])
def test_a_pool_gives_its_memory_back_when_collected(
    machine: Device, caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    device, watched = Device(machine.kind, machine.ordinal, machine.memory), Watched(machine)
    device._backend = watched  # type: ignore[assignment]
    pool = MemoryPool(device, PoolConfig(caching=caching))
    blocks = [pool.allocate(1000), pool.allocate(2 * MIB)]
    Owner(pool.allocate(5 * MIB))  # its finalizer may run after the pool's
    assert watched.taken
    del pool, blocks
    gc.collect()
    assert not watched.taken and not errors


# reuse, splitting, merging, giving back


def test_a_freed_size_is_reused_at_once() -> None:
    pool = MemoryPool(simulated())
    block = pool.allocate(1000)
    address, calls = block.address, pool.stats().driver_calls
    block.free()
    for _ in range(5):
        again = pool.allocate(1000)
        assert again.address == address
        again.free()
    assert pool.stats().driver_calls == calls == 1
    assert (pool.stats().hits, pool.stats().misses) == (5, 1)


def test_best_fit_takes_the_smallest_hole() -> None:
    pool = MemoryPool(simulated())
    holes = []
    for size in (8 * KIB, 2 * KIB, 4 * KIB):
        holes.append(pool.allocate(size))
        pool.allocate(256)
    address = holes[2].address
    for hole in holes:
        hole.free()
    pool.stats()  # until then they wait for requests of their own size
    assert pool.allocate(3 * KIB).address == address
    assert pool.allocate(KIB).address == address + 3 * KIB


def test_neighbours_merge_into_what_was_split() -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    assert len(blocks) == 16
    for block in random.Random(0).sample(blocks, 16):
        block.free()
    stats = pool.stats()
    assert stats.largest_free_bytes == MIB and stats.fragmentation == 0
    assert stats.merges == stats.splits == 15


def test_a_small_rest_stays_with_the_block_unless_it_is_large_for_it() -> None:
    pool = MemoryPool(simulated(), PoolConfig(split_threshold="16 KiB"))
    hole = pool.allocate(512 * KIB)
    pool.allocate(256)
    hole.free()
    pool.stats()
    block = pool.allocate(510 * KIB)
    assert block.size == 512 * KIB
    block.free()
    pool.stats()
    block = pool.allocate(500 * KIB)
    assert block.size == 500 * KIB


def test_large_and_small_blocks_live_apart() -> None:
    pool = MemoryPool(simulated())
    pool.allocate(1000)
    pool.allocate(4 * MIB)
    pool.allocate(100 * MIB)
    stats = pool.stats()
    assert (stats.segments, stats.reserved_bytes) == (3, (2 + 64 + 100) * MIB)


def test_trim_returns_whole_free_segments_down_to_keep() -> None:
    pool = MemoryPool(simulated())
    kept = pool.allocate(1000)
    for block in [pool.allocate(40 * MIB), pool.allocate(80 * MIB), pool.allocate(3 * MIB)]:
        block.free()
    assert pool.stats().reserved_bytes == (2 + 40 + 80 + 64) * MIB
    assert pool.trim(keep="110 MiB") == 80 * MIB
    assert pool.trim() == 104 * MIB
    assert pool.trim() == 0
    check_books(pool, [kept])
    with pytest.raises(ConfigError, match="keep"):
        pool.trim(keep=-1)


def test_the_device_is_synchronised_before_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated())
    calls: list[str] = []
    free = pool.backend.free
    monkeypatch.setattr(pool.backend, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(pool.backend, "free", lambda address: (calls.append("free"), free(address)))
    for block in [pool.allocate(40 * MIB), pool.allocate(1000)]:
        block.free()
    pool.trim()
    assert calls == ["synchronize", "free", "free"]


# settings, scopes, reports


def test_the_innermost_pool_of_the_device_is_current(device: Device) -> None:
    other, a, b = simulated(), MemoryPool(device), MemoryPool(device)
    assert current_pool(device) is default_pool(device) is default_pool(Device.parse(str(device)))
    with a.use() as entered, MemoryPool(other).use():
        assert entered is current_pool(device) is a
        with pytest.raises(ZeroDivisionError), b.use():
            assert current_pool(device) is b
            raise ZeroDivisionError
        assert current_pool(device) is a
        seen: list[MemoryPool] = []
        thread = threading.Thread(target=lambda: seen.append(current_pool(device)))
        thread.start()
        thread.join()
        assert seen == [default_pool(device)]
    assert current_pool(device) is default_pool(device)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("64 MiB", 64 * MIB), ("2GiB", 2 << 30), ("1.5 kB", 1500), ("3 MB", 3_000_000), ("7", 7), (9, 9), ("8 B", 8)],
)
def test_parse_bytes(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"limit": "a lot"}, r"limit='a lot': expected a number"),
        ({"limit": "3 mib"}, r"limit='3 mib'.*MiB"),
        ({"limit": 0}, r"limit=0: nothing could be allocated"),
        ({"limit": -5}, r"limit=-5: bytes must be ≥ 0"),
        ({"limit": 1.5}, r"limit=1.5: a fraction"),
        ({"limit": float("nan")}, r"limit=nan: a fraction"),
        ({"limit": True}, r"limit=True: expected bytes"),
        ({"segment": "2 MiB"}, r"segment='2 MiB': expected two sizes"),
        ({"segment": ("2 MiB", 0)}, r"segment=.*at least one block"),
        ({"split_threshold": 1}, r"split_threshold=1: .*256"),
        ({"caching": "no"}, r"caching='no': expected True or False"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PoolConfig(**settings)


def test_stats_read_as_a_table() -> None:
    pool = MemoryPool(simulated())
    pool.allocate(1536 * KIB)
    lines = str(pool.stats()).splitlines()
    assert "allocated                1.50 MiB" in lines
    assert "live blocks                 1" in lines
    assert "fragmentation             0.0 %" in lines


def test_history_is_off_until_asked_for() -> None:
    pool = MemoryPool(simulated())
    pool.allocate(1000).free()
    assert pool.history() == []
    pool.record_history()
    block = pool.allocate(1000)
    pool.allocate(2 * MIB)
    block.free()
    points = pool.history()
    assert [point.allocated_bytes for point in points] == [0, 1024, 2 * MIB + 1024, 2 * MIB]
    assert [point.reserved_bytes // MIB for point in points] == [2, 2, 66, 66]
    assert all(a.seconds <= b.seconds for a, b in pairwise(points))
    pool.record_history(max_events=2)
    for _ in range(5):
        pool.allocate(1000).free()
    assert len(pool.history()) == 2
    pool.record_history(False)
    assert pool.history() == []
    with pytest.raises(ConfigError, match="max_events"):
        pool.record_history(max_events=0)


def test_a_simulated_machine_knows_its_addresses() -> None:
    backend = simulated(MIB).backend
    address = backend.allocate(1000)
    backend.fill(address, 0, 1000)
    backend.copy(address + 100, address, 900)
    for target, source, nbytes in [(address + 100, address, 1000), (address, 0, 8), (address - 1, address, 8)]:
        with pytest.raises(DeviceError, match="copy"):
            backend.copy(target, source, nbytes)
    assert backend.memory_info() == (MIB - 1024, MIB)
    with pytest.raises(DeviceOutOfMemory):
        backend.allocate(MIB)
    backend.free(address)
    with pytest.raises(DeviceError, match="free"):
        backend.free(address)
    with pytest.raises(DeviceError, match="fill"):
        backend.fill(address, 0, 1)
    with pytest.raises(KernelError):
        backend.load(b"", "kernel", "p")
