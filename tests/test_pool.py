"""The memory pool, example by example; `property/test_pool_state.py` holds what must be true of every program."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import Any

import pytest

from flame_numba.devices import Device, DeviceOutOfMemory
from flame_numba.errors import ConfigError, DeviceError, KernelError
from flame_numba.pool import MemoryPool, PoolConfig, current_pool, default_pool, parse_bytes
from pool_books import check_books, filled, simulated

KIB, MIB = 1 << 10, 1 << 20
ONE_SEGMENT = PoolConfig(segment=("1 MiB", "1 MiB"), limit="1 MiB")


# reuse, splitting, merging, giving back


def test_a_freed_size_is_reused_at_once() -> None:
    pool = MemoryPool(simulated(), PoolConfig(backend="segments"))
    block = pool.allocate(1000)
    address, calls = block.address, pool.stats().driver_calls
    block.free()
    for _ in range(5):
        again = pool.allocate(1000)
        assert again.address == address
        again.free()
    assert pool.stats().driver_calls == calls == 1
    assert (pool.stats().hits, pool.stats().misses) == (5, 1)


def test_a_pool_is_of_a_device() -> None:
    assert MemoryPool("cpu").device == MemoryPool.with_config("cpu", PoolConfig()).device == Device.cpu()
    for wrong in (3, None, "tpu"):
        with pytest.raises(DeviceError, match="expected 'cpu', 'cuda'"):
            MemoryPool(wrong)  # type: ignore[arg-type]


def settle(pool: MemoryPool) -> None:
    """Merge the freed blocks that wait for requests of their own size."""
    with pool._exclusive():
        pool._ladder.settle()


def test_best_fit_takes_the_smallest_hole() -> None:
    pool = MemoryPool(simulated())
    holes = []
    for size in (8 * KIB, 2 * KIB, 4 * KIB):
        holes.append(pool.allocate(size))
        pool.allocate(256)
    address = holes[2].address
    for hole in holes:
        hole.free()
    settle(pool)
    assert pool.allocate(3 * KIB).address == address
    assert pool.allocate(KIB).address == address + 3 * KIB


def test_neighbours_merge_into_what_was_split() -> None:
    pool = MemoryPool(simulated(), ONE_SEGMENT)
    blocks = filled(pool, 64 * KIB)
    assert len(blocks) == 16
    for block in random.Random(0).sample(blocks, 16):
        block.free()
    assert pool.stats().largest_free_bytes == MIB  # what waits is counted as merged
    settle(pool)
    stats = pool.stats()
    assert stats.largest_free_bytes == MIB and stats.fragmentation == 0
    assert stats.merges == stats.splits == 15


def test_a_small_rest_stays_with_the_block_unless_it_is_large_for_it() -> None:
    pool = MemoryPool(simulated(), PoolConfig(split_threshold="16 KiB"))
    hole = pool.allocate(512 * KIB)
    pool.allocate(256)
    hole.free()
    settle(pool)
    block = pool.allocate(510 * KIB)
    assert block.size == 512 * KIB
    block.free()
    settle(pool)
    block = pool.allocate(500 * KIB)
    assert block.size == 500 * KIB


def test_large_and_small_blocks_live_apart() -> None:
    pool = MemoryPool(simulated(), PoolConfig(backend="segments"))
    pool.allocate(1000)
    pool.allocate(4 * MIB)
    pool.allocate(100 * MIB)
    stats = pool.stats()
    assert (stats.segments, stats.reserved_bytes) == (3, (2 + 64 + 100) * MIB)
    pool = MemoryPool(simulated(), PoolConfig(backend="virtual", slack=None))
    for nbytes in (1000, 4 * MIB, 100 * MIB):
        pool.allocate(nbytes)
    assert [(segment.kind, sum(b.size for b in segment.blocks if b.state != "unmapped") // MIB)
            for segment in pool.segments()] == [("small", 2), ("large", 104)]  # fmt: skip


def test_trim_returns_whole_free_segments_down_to_keep() -> None:
    pool = MemoryPool(simulated(), PoolConfig(backend="segments"))
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


@pytest.mark.parametrize("backend", ["virtual", "segments"])
def test_the_device_is_synchronised_before_memory_goes_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(simulated(), PoolConfig(backend=backend))
    calls: list[str] = []
    name = "unmap" if backend == "virtual" else "free"
    free = getattr(pool.backend, name)
    monkeypatch.setattr(pool.backend, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(pool.backend, name, lambda *args: (calls.append("free"), free(*args)))
    for block in [pool.allocate(40 * MIB), pool.allocate(1000)]:
        block.free()
    pool.trim()
    first = calls.index("free")
    assert calls[first - 1] == "synchronize" and set(calls[first:]) == {"free"}


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
        ({"size_class": 300}, r"size_class=300: expected 256, 512 or 1024"),
        ({"slack": -0.1}, r"slack=-0.1: expected a fraction"),
        ({"slack": float("nan")}, r"slack=nan: expected a fraction"),
        ({"slack": True}, r"slack=True: expected a fraction"),
        ({"small": "x"}, r"small='x': expected a number"),
        ({"initial": -1}, r"initial=-1: bytes must be ≥ 0"),
        ({"initial": "2 MiB", "limit": "1 MiB"}, r"initial='2 MiB': more than limit='1 MiB'"),
        ({"guard": 1}, r"guard=1: expected True or False"),
        ({"backend": "pages"}, r"backend=.pages.: expected one of auto, virtual"),
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
    pool = MemoryPool(simulated(), PoolConfig(backend="segments"))
    pool.allocate(1000).free()
    assert pool.history() == []
    pool.record_history(sites=True)
    block = pool.allocate(1000)
    with pool.tag("x"):
        other = pool.allocate(2 * MIB - 5)
    block.free()
    events = pool.history()
    assert [event.action for event in events] == ["alloc", "segment_alloc", "alloc", "free"]
    assert [event.allocated_bytes for event in events] == [1024, 1024, 2 * MIB + 1024, 2 * MIB]
    assert [event.reserved_bytes // MIB for event in events] == [2, 66, 66, 66]
    assert all(a.seconds <= b.seconds for a, b in pairwise(events))
    found = events[2]
    assert (found.address, found.nbytes, found.requested, found.tag) == (other.address, other.size, 2 * MIB - 5, "x")
    assert found.site[0].name == "test_history_is_off_until_asked_for"
    pool.record_history(max_events=2)
    for _ in range(5):
        pool.allocate(1000).free()
    assert len(pool.history()) == 2
    pool.record_history(False)
    pool.allocate(5000)
    assert len(pool.history()) == 2
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
