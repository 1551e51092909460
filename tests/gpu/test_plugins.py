"""The plugins on a GPU: what Numba, cuda.core, CuPy and PyTorch allocate is the pool's, and right."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import plugins
from flame_numba.devices import Device
from flame_numba.plugins import lender as lending
from flame_numba.pool import MemoryPool, PoolConfig

MIB = 1 << 20
SOURCE = Path(fn.__file__).parent.parent


@pytest.fixture
def pool(real_gpu: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryPool]:
    """A pool of segments that Numba and cuda.core use in this test."""
    monkeypatch.setattr(lending, "_LENDERS", {})
    made = MemoryPool.with_config(real_gpu, PoolConfig(segment=("2 MiB", "32 MiB"), backend="segments"))
    plugins.install(made)
    yield made
    plugins.uninstall()


@pytest.fixture
def numba(pool: MemoryPool) -> Any:
    from numba import cuda

    return cuda


def in_a_process(code: str, *arguments: str, **environment: str) -> str:
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.stdout


# --- Numba ---------------------------------------------------------------------------------------------------------
def test_arrays_come_from_the_pool(numba: Any, pool: MemoryPool) -> None:
    host = np.arange(100_000, dtype=np.float32)
    array = numba.to_device(host)
    stats = pool.stats()
    assert stats.live_blocks == 1 and stats.requested_bytes == host.nbytes
    np.testing.assert_array_equal(array.copy_to_host(), host)
    part = array[1000:2000]
    del array
    assert pool.stats().live_blocks == 1  # the slice holds it
    np.testing.assert_array_equal(part.copy_to_host(), host[1000:2000])
    del part
    assert pool.stats().live_blocks == 0


def test_temporaries_for_host_arrays_come_from_the_pool(numba: Any, pool: MemoryPool) -> None:
    @numba.jit
    def double(x: Any) -> None:
        i = numba.grid(1)
        if i < x.size:
            x[i] *= 2

    host = np.arange(5000, dtype=np.float64)
    for stream in (0, 0):  # with a stream of its own, cuda.core refuses host arrays of NumPy 2.5
        expected, before = host * 2, pool.stats().allocations
        double[40, 128, stream](host)
        numba.synchronize()
        assert pool.stats().allocations > before
        np.testing.assert_array_equal(host, expected)
    gc.collect()
    assert pool.stats().live_blocks == 0


def test_ufuncs_and_reductions_work(numba: Any, pool: MemoryPool) -> None:
    @numba.reduce
    def add(a: float, b: float) -> float:
        return a + b

    host = np.random.default_rng(1).normal(size=70_001)
    assert abs(add(numba.to_device(host)) - host.sum()) < 1e-8
    gc.collect()
    assert pool.stats().live_blocks == 0


def test_arrays_stay_where_they_are_when_tensors_move(numba: Any, pool: MemoryPool) -> None:
    hosts = [np.full(300_000, i, np.float32) for i in range(8)]
    with pool.use():
        tensors, arrays = [], []
        for host in hosts:
            tensors.append(fn.asarray(host, device=pool.device))
            arrays.append(numba.to_device(host))
        del tensors[::2], arrays[1::2]
        addresses = [a.device_ctypes_pointer.value for a in arrays]
        pool.defragment()
        assert [a.device_ctypes_pointer.value for a in arrays] == addresses
        for array, host in zip(arrays, hosts[::2], strict=True):
            np.testing.assert_array_equal(array.copy_to_host(), host)
        for tensor, host in zip(tensors, hosts[1::2], strict=True):
            np.testing.assert_array_equal(tensor.numpy(), host)
        del tensors


def test_memory_is_not_reused_before_the_old_work_is_done(numba: Any, pool: MemoryPool) -> None:
    """The old owner's kernel writes late, on one stream; the new owner's kernel runs on another."""

    @numba.jit
    def late(x: Any, naps: int) -> None:
        i = numba.grid(1)
        for _ in range(naps):
            numba.nanosleep(1_000_000)  # up to a millisecond
        if i < x.size:
            x[i] = 1

    @numba.jit
    def now(x: Any) -> None:
        i = numba.grid(1)
        if i < x.size:
            x[i] = 2

    first, second = numba.stream(), numba.stream()
    now[1, 32, second](numba.device_array(32, np.int32))  # compiled
    late[1, 32, first](numba.device_array(32, np.int32), 0)
    numba.synchronize()
    for _ in range(5):
        old = numba.device_array(4096, np.int32)
        address = old.device_ctypes_pointer.value
        late[32, 128, first](old, 30)
        del old
        new = numba.device_array(4096, np.int32)
        assert new.device_ctypes_pointer.value == address
        now[32, 128, second](new)
        numba.synchronize()
        assert set(new.copy_to_host()) == {2}
        del new


def test_too_much_is_an_error_and_nothing_breaks(numba: Any, pool: MemoryPool) -> None:
    from numba.cuda.cudadrv.driver import CudaAPIError

    total = numba.current_context().get_memory_info().total
    with pytest.raises(CudaAPIError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        numba.device_array(2 * total, np.uint8)
    np.testing.assert_array_equal(numba.to_device(np.arange(10)).copy_to_host(), np.arange(10))


def test_memory_info(numba: Any, pool: MemoryPool) -> None:
    info = numba.current_context().get_memory_info()
    assert 0 < info.free <= info.total


def test_reset_frees_everything(numba: Any, pool: MemoryPool) -> None:
    arrays = [numba.device_array(MIB, np.uint8) for _ in range(3)]
    numba.current_context().reset()
    assert pool.stats().live_blocks == 0 and pool.stats().reserved_bytes == 0
    del arrays
    np.testing.assert_array_equal(numba.to_device(np.arange(10)).copy_to_host(), np.arange(10))


def test_threads(numba: Any, pool: MemoryPool) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng, held = np.random.default_rng(seed), []
        for _ in range(60):
            host = rng.normal(size=int(rng.integers(1, 50_000)))
            held.append((numba.to_device(host), host))
            if len(held) > 6:
                array, host = held.pop(int(rng.integers(len(held))))
                if not np.array_equal(array.copy_to_host(), host):
                    wrong.append(f"thread {seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    lending.settle()
    assert pool.stats().live_blocks == 0


OPEN = """
import pickle, sys
from numba import cuda
handle = pickle.loads(bytes.fromhex(sys.argv[1]))
with handle as array:
    print(int(array.copy_to_host().sum()))
"""


@pytest.mark.parametrize("manager", ["default", "flame_numba.plugins.numba_memory"])
def test_another_process_opens_an_array(numba: Any, pool: MemoryPool, manager: str) -> None:
    arrays = [numba.to_device(np.arange(n, dtype=np.int64)) for n in (10, 1000, 300_000)]
    for array in (*arrays, arrays[1][100:200]):
        handle = pickle.dumps(array.get_ipc_handle()).hex()
        told = in_a_process(OPEN, handle, NUMBA_CUDA_MEMORY_MANAGER=manager)
        assert int(told) == array.copy_to_host().sum()


def test_memory_that_no_other_process_can_open(numba: Any, pool: MemoryPool) -> None:
    from numba.cuda.cudadrv.driver import CudaAPIError

    plugins.use_pool(MemoryPool.with_config(pool.device, PoolConfig(backend="virtual")))
    with pytest.raises(CudaAPIError, match="backend='segments'"):
        numba.to_device(np.arange(10)).get_ipc_handle()


BY_ENVIRONMENT = """
import numpy as np
from numba import cuda
from flame_numba import plugins
from flame_numba.devices import Device

@cuda.jit
def double(x):
    i = cuda.grid(1)
    if i < x.size:
        x[i] *= 2

host = np.arange(1000.0)
array = cuda.to_device(host)
double[8, 128](array)
pool = plugins.pool_for(Device.cuda(0))
one = pool.stats()
double[8, 128](host)
two = pool.stats()
assert (array.copy_to_host() == host).all()
print(one.live_blocks, two.allocations - one.allocations >= 1)
"""


def test_all_by_the_environment_variable(real_gpu: Device) -> None:
    told = in_a_process(BY_ENVIRONMENT, NUMBA_CUDA_MEMORY_MANAGER="flame_numba.plugins.numba_memory")
    assert told.split() == ["1", "True"]


def test_uninstall(real_gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda

    monkeypatch.setattr(lending, "_LENDERS", {})
    before = cuda.current_context().memory_manager
    pool = plugins.install(MemoryPool.with_config(real_gpu, PoolConfig(backend="segments")))
    array = cuda.to_device(np.arange(10))
    plugins.uninstall()
    assert cuda.current_context().memory_manager is before
    other = cuda.to_device(np.arange(10))
    assert pool.stats().live_blocks == 1
    np.testing.assert_array_equal(array.copy_to_host(), other.copy_to_host())
    del array
    assert pool.stats().live_blocks == 0


# --- cuda.core -----------------------------------------------------------------------------------------------------
def test_core_buffers_come_from_the_pool(pool: MemoryPool) -> None:
    from cuda.core import Device as CoreDevice

    device = CoreDevice(pool.device.ordinal)
    device.set_current()
    stream = device.create_stream()  # does not synchronise with the default stream
    buffer = device.allocate(10_000, stream=stream)
    assert pool.stats().live_blocks == 1 and pool.stats().requested_bytes == 10_000
    assert buffer.is_device_accessible and not buffer.is_host_accessible
    buffer.fill(7, stream=stream)
    host = np.zeros(10_000, np.uint8)
    stream.sync()
    pool.backend.download(host.ctypes.data, int(buffer.handle), host.nbytes)
    assert set(host) == {7}
    buffer.close()
    assert pool.stats().live_blocks == 0
    stream.close()


# --- CuPy and PyTorch ----------------------------------------------------------------------------------------------
def test_cupy_arrays_come_from_the_pool(pool: MemoryPool) -> None:
    cupy = pytest.importorskip("cupy")
    from flame_numba.plugins import cupy_memory

    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(cupy_memory.allocator)
    try:
        x = cupy.arange(100_000, dtype=cupy.float32)
        assert pool.stats().live_blocks >= 1
        y = (x * 2 + 1).reshape(10, -1)
        pool.defragment()
        np.testing.assert_array_equal(cupy.asnumpy(y).ravel(), np.arange(100_000, dtype=np.float32) * 2 + 1)
        with cupy.cuda.Stream(non_blocking=True) as stream:
            z = cupy.sort(-x)
            stream.synchronize()
        assert float(z[0]) == -99_999
        assert cupy.zeros((0, 3)).shape == (0, 3)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(1 << 45, cupy.uint8)
        del x, y, z
        gc.collect()
        assert pool.stats().live_blocks == 0
    finally:
        cupy.cuda.set_allocator(before)


TORCH = """
import torch
from flame_numba import plugins
from flame_numba.devices import Device
from flame_numba.plugins import torch_memory
torch_memory.install()
pool = plugins.pool_for(Device.cuda(0))
x = torch.randn(512, 512, device="cuda", requires_grad=True)
w = torch.randn(512, 512, device="cuda")
(x @ w).sum().backward()
assert torch.allclose(x.grad.cpu(), w.cpu().sum(1).expand(512, 512), atol=1e-2)
side = torch.cuda.Stream()
with torch.cuda.stream(side):
    y = torch.ones(1000, device="cuda")
y.record_stream(torch.cuda.current_stream())
torch.cuda.synchronize()
live = pool.stats().live_blocks
del x, w, y
torch.cuda.synchronize()
print(live >= 3, pool.stats().live_blocks < live)
"""


def test_pytorch_tensors_come_from_the_pool(real_gpu: Device) -> None:
    pytest.importorskip("torch")
    assert in_a_process(TORCH).split() == ["True", "True"]
