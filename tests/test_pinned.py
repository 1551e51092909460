"""Page-locked arrays and asynchronous copies. The CPU device copies at once, so a stand-in delays its events."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.devices.pinned import PinnedBackend
from flame_numba.errors import DeviceError, DTypeError, OutOfMemory, PoolError, ShapeError
from flame_numba.pinned import pinned_empty, pinned_pool

MIB = 1 << 20


@pytest.fixture
def pool(device: Device) -> Iterator[fn.MemoryPool]:
    """A pool of page-locked memory of its own, 16 MiB at most."""
    pool = fn.MemoryPool(device.pinned, fn.PoolConfig(limit=16 * MIB))
    with pool.use():
        assert pinned_pool(device) is pool
        yield pool


def live(pool: fn.MemoryPool) -> int:
    gc.collect()
    return pool.stats().live_blocks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool"])
def test_an_array_is_a_block_of_the_pool(dtype: str, device: Device, pool: fn.MemoryPool) -> None:
    array = pinned_empty((3, 5), dtype, device)
    assert array.shape == (3, 5) and array.flags.c_contiguous and array.flags.writeable
    assert array.dtype == fn.asarray(array, device=device).dtype.numpy
    array[...] = 1
    assert live(pool) == 1
    row = array[1].view(np.uint8)
    del array
    assert live(pool) == 1  # a view keeps it
    del row
    assert live(pool) == 0


def test_empty_arrays_take_no_memory(device: Device, pool: fn.MemoryPool) -> None:
    assert pinned_empty((0, 3), device=device).shape == (0, 3) and pinned_empty((), device=device).shape == ()
    assert pool.stats().live_blocks == 0


def test_arrays_stay_where_they_are(device: Device, pool: fn.MemoryPool) -> None:
    arrays = [pinned_empty(1000, "uint8", device) for _ in range(8)]
    for i, array in enumerate(arrays):
        array[...] = i
    del arrays[::2], array
    addresses = [a.ctypes.data for a in arrays]
    gc.collect()
    pool.defragment()
    assert addresses == [a.ctypes.data for a in arrays]
    assert [int(a[0]) for a in arrays] == [1, 3, 5, 7]


def test_the_limit_holds(device: Device, pool: fn.MemoryPool) -> None:
    array = pinned_empty(12 * MIB, "uint8", device)
    with pytest.raises(OutOfMemory):
        pinned_empty(8 * MIB, "uint8", device)
    del array
    gc.collect()
    assert pinned_empty(14 * MIB, "uint8", device).size == 14 * MIB


def test_memory_goes_back_to_the_driver(device: Device, pool: fn.MemoryPool) -> None:
    array = pinned_empty(MIB, "uint8", device)
    assert pool.stats().reserved_bytes >= MIB
    del array
    gc.collect()
    pool.trim()
    assert pool.stats().reserved_bytes == 0


def test_round_trip(device: Device, pool: fn.MemoryPool) -> None:
    host = pinned_empty((64, 32), "float32", device)
    host[...] = np.arange(64 * 32).reshape(64, 32)
    x = fn.asarray(host, device=device, non_blocking=True)
    copy = (x * 2).numpy_async()
    np.testing.assert_array_equal(copy.wait(), host * 2)
    np.testing.assert_array_equal(copy.wait(), host * 2)  # again
    assert copy.done
    out = pinned_empty((32, 64), "float32", device)
    assert x.T.numpy_async(out).wait() is out
    np.testing.assert_array_equal(out, host.T)
    plain = np.empty((64, 32), np.float32)
    np.testing.assert_array_equal(x.numpy_async(plain).wait(), host)
    assert fn.zeros((0, 3), device=device).numpy_async().wait().shape == (0, 3)


def test_what_does_not_fit_is_refused(device: Device) -> None:
    x = fn.ones((2, 3), device=device)
    with pytest.raises(ShapeError, match=r"\(3, 2\)"):
        x.numpy_async(np.empty((3, 2), np.float32))
    with pytest.raises(ShapeError, match="row-major"):
        x.numpy_async(np.empty((3, 2), np.float32).T)
    with pytest.raises(DTypeError, match="float64"):
        x.numpy_async(np.empty((2, 3)))
    with pytest.raises(DeviceError, match="simulated"):
        pinned_empty(3, device=Device.simulated(1 << 20))


class LateEvents:
    """Events that are done when the test says so."""

    def __init__(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = False
        monkeypatch.setattr(backend, "event_done", lambda event: self.done)
        monkeypatch.setattr(backend, "synchronize_event", lambda event: setattr(self, "done", True))


@pytest.fixture
def late(device: Device, monkeypatch: pytest.MonkeyPatch) -> LateEvents:
    if device.kind != "cpu":
        pytest.skip("events of a GPU are done when they are")
    return LateEvents(device.backend, monkeypatch)


def test_memory_is_held_until_its_copy_is_done(device: Device, pool: fn.MemoryPool, late: LateEvents) -> None:
    fn.asarray(pinned_empty(100, device=device), non_blocking=True)  # a dropped source
    fn.ones(100, device=device).numpy_async()  # a dropped result
    pinned_empty(1, device=device)
    assert live(pool) == 2
    late.done = True
    pinned_empty(1, device=device)
    assert live(pool) == 0


def test_a_full_pool_waits_for_copies(device: Device, pool: fn.MemoryPool, late: LateEvents) -> None:
    for _ in range(6):  # three would fill it
        fn.asarray(pinned_empty(5 * MIB, "uint8", device), device=device, non_blocking=True)
    assert late.done


def test_the_tensor_is_not_kept(device: Device, pool: fn.MemoryPool) -> None:
    with fn.MemoryPool(device).use() as tensors:
        copy = fn.ones(1000, device=device).numpy_async()
        assert live(tensors) == 0
    assert copy.wait().sum() == 1000


def test_a_fault_is_raised_where_one_waits(device: Device) -> None:
    if device.kind != "cuda":
        pytest.skip("the CPU device raises at the op")
    table = fn.ones((4, 2), device=device)
    copy = fn.take(table, fn.asarray([9], device=device), axis=0).numpy_async()
    with pytest.raises(fn.IndexOutOfRange):
        copy.wait()


def test_it_is_a_machine_of_its_own(device: Device) -> None:
    pinned = device.pinned
    assert pinned == device.pinned and pinned != device and hash(pinned) == hash(device.pinned)
    assert pinned.backend is device.pinned.backend and isinstance(pinned.backend, PinnedBackend)
    assert "page-locked" in str(pinned) and repr(pinned) == f"{device!r}.pinned"
    assert fn.default_pool(pinned) is pinned_pool(device) is not fn.default_pool(device)
    with pytest.raises(DeviceError, match="no virtual memory"):
        pinned.backend.reserve(1 << 21)


def test_its_copies(device: Device) -> None:
    backend = device.pinned.backend
    a, b = backend.allocate(1000), backend.allocate(1000)
    backend.fill(a, 5, 1000)
    backend.copy(b, a, 1000)
    host = np.empty(1000, np.uint8)
    backend.download(host.ctypes.data, b, 1000)
    assert (host == 5).all() and backend.memory_info().total > 0 and backend.take_fault() == 0
    for address in (a, b):
        backend.free(address)
    with pytest.raises(DeviceError, match="kernels run on"):
        backend.load(b"", "kernel", "")


def test_simulated_page_locked_memory() -> None:
    pool = fn.MemoryPool(Device.simulated(1 << 30).pinned, fn.PoolConfig(limit=MIB))
    block = pool.allocate(1000)
    pool.free(block)
    with pytest.raises(PoolError):
        pool.free(block)
