"""The plugins without a GPU: what they do with a pool. Where a library needs a driver, something stands in for it."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import flame_numba as fn
from flame_numba import plugins
from flame_numba.devices import Device
from flame_numba.memory.context import memory_tag
from flame_numba.plugins import lender as lending
from flame_numba.pool import Block, MemoryPool, PoolConfig

pytest.importorskip("numba.cuda")
from numba import cuda
from numba.cuda.cudadrv import driver as numba_driver

from flame_numba.plugins import core_memory, cupy_memory, numba_memory, torch_memory

MIB = 1 << 20
SOURCE = Path(fn.__file__).parent.parent
Code = numba_driver.binding.CUresult
_DEVICES = count(1)


class FakeContext:
    """As much of Numba's context as a memory manager sees."""

    device = types.SimpleNamespace()
    handle = 0


class Calls:
    """A backend that remembers what was ordered after what."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def record_event(self, stream: int = 0) -> str:
        self.made.append(("record", stream))
        return f"event of {stream}"

    def wait_event(self, stream: int, event: str) -> None:
        self.made.append(("wait", stream, event))

    def destroy_event(self, event: str) -> None: ...


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryPool]:
    """The pool of the plugins for any GPU; 64 MiB of addresses without memory."""
    monkeypatch.setattr(lending, "_LENDERS", {})
    device = Device.simulated(64 * MIB + 256 * next(_DEVICES))  # nobody else's
    monkeypatch.setattr(Device, "cuda", lambda ordinal=0: device)
    made = MemoryPool.with_config(device, PoolConfig(segment=("1 MiB", "8 MiB"), backend="segments"))
    plugins.use_pool(made)
    yield made
    gc.collect()
    assert made.stats().live_blocks == 0, "a loan was not given back"


@pytest.fixture
def orders(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls = Calls()
    monkeypatch.setattr(lending.lender_for(pool.device), "_backend", calls)
    return calls.made


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


@pytest.fixture
def manager(pool: MemoryPool, context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(numba_memory, "_current_ordinal", lambda: 0)
    monkeypatch.setattr(numba_memory.PoolMemoryManager, "_context_current", lambda self: contextlib.nullcontext())
    made = numba_memory.PoolMemoryManager(context=context)
    made.initialize()
    return made


# --- which pool ----------------------------------------------------------------------------------------------------
def test_a_device_has_one_pool_until_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "_LENDERS", {})
    device = Device.simulated(MIB)
    first = plugins.pool_for(device)
    assert plugins.pool_for(device) is first and first is not fn.default_pool(device)
    other = MemoryPool.with_config(device, PoolConfig())
    plugins.use_pool(other)
    assert plugins.pool_for(device) is other


def test_import_is_light() -> None:
    code = (
        "import sys, flame_numba.plugins\n"
        "heavy = {'numba', 'llvmlite', 'cupy', 'torch'} | {m for m in sys.modules if m.startswith('cuda.core')}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# --- Numba ---------------------------------------------------------------------------------------------------------
def test_numba_accepts_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_driver, "_memory_manager", None)
    cuda.set_memory_manager(numba_memory._numba_memory_manager)
    assert numba_driver._memory_manager is numba_memory.PoolMemoryManager


def test_numba_finds_the_manager_by_the_environment_variable() -> None:
    code = (
        "from numba.cuda.cudadrv import driver\n"
        "driver._ensure_memory_manager()\n"
        "assert driver._memory_manager.__name__ == 'PoolMemoryManager'"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    environment["NUMBA_CUDA_MEMORY_MANAGER"] = "flame_numba.plugins.numba_memory"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_memory_is_the_pools_until_the_last_reference_is_gone(manager: Any, pool: MemoryPool) -> None:
    memory = manager.memalloc(1000)
    assert pool.stats().requested_bytes == 1000
    assert memory.device_ctypes_pointer.value == memory.device_pointer_value == int(memory.handle)
    view = memory.view(10)
    assert view.device_pointer_value == memory.device_pointer_value + 10
    del memory
    assert pool.stats().live_blocks == 1
    del view
    assert pool.stats().live_blocks == 0 and not manager.allocations


def test_memory_stays_where_it_is(manager: Any, pool: MemoryPool) -> None:
    memory = [manager.memalloc(4096) for _ in range(6)]
    del memory[::2]
    addresses = [m.device_pointer_value for m in memory]
    pool.defragment()
    assert [m.device_pointer_value for m in memory] == addresses
    live = {b.address for s in pool.segments() for b in s.blocks if b.state == "live"}
    assert live == set(addresses)


def test_freeing_twice_is_an_error(manager: Any) -> None:
    memory = manager.memalloc(100)
    memory.free()
    with pytest.raises(ReferenceError):
        memory.free()


def test_no_room_is_an_error_of_the_driver(manager: Any, pool: MemoryPool) -> None:
    with pytest.raises(numba_driver.CudaAPIError, match="no room for|128") as caught:
        manager.memalloc(128 * MIB)
    assert caught.value.code == Code.CUDA_ERROR_OUT_OF_MEMORY
    assert isinstance(caught.value.__cause__, fn.OutOfMemory)
    with pytest.raises(numba_driver.CudaAPIError) as caught:
        manager.memalloc(0)
    assert caught.value.code == Code.CUDA_ERROR_INVALID_VALUE
    del caught
    assert manager.memalloc(MIB).size == MIB


def test_memory_info_counts_what_is_free_in_the_pool(manager: Any, pool: MemoryPool) -> None:
    before, total = manager.get_memory_info(), pool.device.memory
    assert before == (total, total)
    memory = manager.memalloc(MIB)
    assert manager.get_memory_info() == (total - MIB, total)
    del memory
    assert manager.get_memory_info() == before


def test_memory_info_is_within_the_limit(manager: Any, pool: MemoryPool) -> None:
    plugins.use_pool(MemoryPool.with_config(pool.device, PoolConfig(limit="16 MiB")))
    memory = manager.memalloc(MIB)
    assert manager.get_memory_info() == (15 * MIB, 16 * MIB)
    del memory


def test_deferred_cleanup_frees_at_the_outermost_end(manager: Any, pool: MemoryPool) -> None:
    with manager.defer_cleanup():
        with manager.defer_cleanup():
            manager.memalloc(100)
            assert pool.stats().live_blocks == 1
        assert pool.stats().live_blocks == 1
    assert pool.stats().live_blocks == 0


def test_reset_frees_everything(manager: Any, pool: MemoryPool) -> None:
    held = [manager.memalloc(MIB) for _ in range(3)]
    with manager.defer_cleanup():
        manager.memalloc(MIB)
        manager.reset()
    assert pool.stats().live_blocks == 0 and pool.stats().reserved_bytes == 0
    del held  # their memory is gone already


def test_memory_freed_in_another_thread(manager: Any, pool: MemoryPool) -> None:
    box = [manager.memalloc(100)]
    thread = threading.Thread(target=box.clear)
    with pool.lock:  # a finalizer must not wait for it
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert pool.stats().live_blocks == 1  # it had to be left
    manager.memalloc(100)
    assert pool.stats().live_blocks == 0


def test_threads_allocate_and_free(manager: Any, pool: MemoryPool) -> None:
    def work(seed: int) -> None:
        held = []
        for step in range(200):
            held.append(manager.memalloc(1 + (seed * 7919 + step * 104729) % 5000))
            if len(held) > 8:
                del held[step % 8]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lending.settle()
    assert pool.stats().live_blocks == 0 and not manager.allocations


def test_cycles_are_freed_by_garbage_collection(manager: Any, pool: MemoryPool) -> None:
    class Node:
        pass

    for _ in range(300):
        node = Node()
        node.memory, node.self = manager.memalloc(256 << 10), node  # 75 MiB in all: collected when memory is short
    del node
    gc.collect()
    assert pool.stats().live_blocks == 0


def test_memory_that_no_other_process_can_open(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, memory: Any) -> None:
        raise numba_driver.CudaAPIError(Code.CUDA_ERROR_INVALID_VALUE, "Call to cuIpcGetMemHandle")

    monkeypatch.setattr(cuda.GetIpcHandleMixin, "get_ipc_handle", refuse)
    with pytest.raises(numba_driver.CudaAPIError, match="cuIpcGetMemHandle: .*backend='segments'"):
        manager.get_ipc_handle(manager.memalloc(100))


def test_memory_alive_at_exit_is_no_trouble() -> None:
    code = """
import flame_numba as fn
from flame_numba import plugins
from flame_numba.plugins import numba_memory
device = fn.Device.simulated(1 << 20)
fn.Device.cuda = lambda ordinal: device
numba_memory._current_ordinal = lambda: 0
class Context:
    device = None
context = Context()
manager = numba_memory.PoolMemoryManager(context=context)
held = [manager.memalloc(100) for _ in range(3)]
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


# --- the order of old and new use ----------------------------------------------------------------------------------
def test_a_barrier_only_when_something_came_back(pool: MemoryPool, orders: list[tuple[Any, ...]]) -> None:
    lender = lending.lender_for(pool.device)
    first, second = lender.lend(100, "a"), lender.lend(100, "a")
    assert orders == []
    lender.take_back(first)
    lender.take_back(second)
    assert orders == []
    blocks = [lender.lend(100, "a") for _ in range(3)]
    assert orders == [("record", lending.LEGACY_STREAM)]
    for block in blocks:
        lender.take_back(block)


def test_a_stream_of_its_own_is_joined_at_both_ends(pool: MemoryPool, orders: list[tuple[Any, ...]]) -> None:
    lender = lending.lender_for(pool.device)
    block = lender.lend(100, "a", stream=77, joins=False)
    assert orders == [("record", 1), ("wait", 77, "event of 1")]
    orders.clear()
    lender.take_back(block, stream=77, joins=False)
    assert orders == [("record", 77), ("wait", 1, "event of 77")]


def test_a_loan_that_cannot_be_ordered_is_none(
    pool: MemoryPool, orders: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lender = lending.lender_for(pool.device)

    def fail(stream: int, event: str) -> None:
        raise fn.DeviceError("no such stream")

    monkeypatch.setattr(lender._backend, "wait_event", fail)
    with pytest.raises(fn.DeviceError, match="no such stream"):
        lender.lend(100, "a", stream=5, joins=False)
    assert pool.stats().live_blocks == 0


def test_a_stream_that_was_destroyed_costs_a_wait(
    pool: MemoryPool, orders: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lender = lending.lender_for(pool.device)
    block = lender.lend(100, "a", stream=5, joins=False)

    def fail(stream: int) -> str:
        raise fn.DeviceError("no such stream")

    monkeypatch.setattr(lender._backend, "record_event", fail)
    monkeypatch.setattr(lender._backend, "synchronize", lambda: orders.append(("synchronize",)), raising=False)
    lender.take_back(block, stream=5, joins=False)
    assert orders[-1] == ("synchronize",) and pool.stats().live_blocks == 0


def test_loans_are_tagged(pool: MemoryPool) -> None:
    def tags() -> list[str]:
        return [b.tag for s in pool.segments() for b in s.blocks if b.state == "live"]

    block = lending.borrow(pool, 100, "numba")
    assert tags() == ["numba"]
    lending.give_back(block)
    with memory_tag("inputs"):
        block = lending.borrow(pool, 100, "numba")
    assert tags() == ["inputs"]
    lending.give_back(block)


def test_the_address_of_a_loan_is_read_behind_its_pin(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    hole, pin = [pool.allocate(1000)], Block.pin

    def late(block: Block) -> int:
        while hole:
            hole.pop().free()
            pool.defragment()  # as another thread may do until the block is pinned
        return pin(block)

    monkeypatch.setattr(Block, "pin", late)
    place = hole[0].address
    loan = lending.borrow(pool, 1000, "a")
    assert loan.start == loan.block.address == place
    lending.give_back(loan)


# --- cuda.core -----------------------------------------------------------------------------------------------------
class FakeBuffer:
    """A buffer that frees itself, as those of cuda.core do."""

    def __init__(self, address: int, size: int, mr: Any, stream: Any = None) -> None:
        self.address, self.size, self.mr, self.stream = address, size, mr, stream

    def close(self, stream: Any = None) -> None:
        self.mr.deallocate(self.address, self.size, stream=stream or self.stream)

    @classmethod
    def from_handle(cls, ptr: int, size: int, mr: Any, *, stream: Any = None) -> FakeBuffer:
        """from_handle(…, stream=None)"""
        return cls(ptr, size, mr, stream)


class FakeStream:
    def __init__(self, handle: int, is_nonblocking: bool) -> None:
        self.handle, self.is_nonblocking = handle, is_nonblocking


@pytest.fixture
def resource(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(core_memory, "Buffer", FakeBuffer)
    monkeypatch.setattr(core_memory, "_core_stream", lambda stream: stream or FakeStream(0, False))
    return core_memory.PoolMemoryResource(pool.device)


def test_buffers_are_the_pools(resource: Any, pool: MemoryPool) -> None:
    assert isinstance(resource, core_memory.MemoryResource)
    assert (resource.is_device_accessible, resource.is_host_accessible, resource.is_managed) == (True, False, False)
    assert resource.device_id == pool.device.ordinal
    buffer, empty = resource.allocate(1000), resource.allocate(0)
    assert pool.stats().live_blocks == 1 and pool.stats().requested_bytes == 1000
    empty.close()
    buffer.close()
    assert pool.stats().live_blocks == 0


def test_buffers_are_ordered_with_their_streams(resource: Any, orders: list[tuple[Any, ...]]) -> None:
    joining, other = FakeStream(1000, False), FakeStream(2000, True)
    buffer = resource.allocate(10, stream=joining)
    assert orders == []
    buffer.close(stream=other)
    assert orders == [("record", 2000), ("wait", 1, "event of 2000")]
    orders.clear()
    buffer = resource.allocate(10, stream=other)
    assert orders == [("record", 1), ("wait", 2000, "event of 1")]
    buffer.close(stream=joining)
    resource.allocate(10).close()
    assert orders[2:] == [("record", 1)]


def test_a_stream_that_is_gone_is_not_asked_again(resource: Any, pool: MemoryPool) -> None:
    class Gone(FakeStream):
        @property
        def is_nonblocking(self) -> bool:  # type: ignore[override]
            raise AssertionError("asked a destroyed stream")

        @is_nonblocking.setter
        def is_nonblocking(self, value: bool) -> None: ...

    buffer = resource.allocate(10, stream=FakeStream(1000, False))
    buffer.close(stream=Gone(1000, False))
    assert pool.stats().live_blocks == 0


def test_no_buffer_while_a_graph_is_captured(resource: Any) -> None:
    with pytest.raises(fn.DeviceError, match="capturing"):
        resource.allocate(10, stream=types.SimpleNamespace(is_building=True))


def test_a_resource_is_put_back(pool: MemoryPool) -> None:
    device = types.SimpleNamespace(memory_resource="before")
    core_memory.register(device, pool.device)
    made = device.memory_resource
    assert isinstance(made, core_memory.PoolMemoryResource)
    core_memory.register(device, pool.device)
    assert device.memory_resource is made
    core_memory.uninstall()
    assert device.memory_resource == "before"


# --- CuPy and PyTorch ----------------------------------------------------------------------------------------------
class FakeCuPy(types.ModuleType):
    class OutOfMemoryError(MemoryError):
        def __init__(self, size: int, total: int, limit: int = 0) -> None:
            super().__init__(size, total)

    def __init__(self) -> None:
        super().__init__("cupy")
        self.stream = types.SimpleNamespace(ptr=0)
        self.cuda = types.SimpleNamespace(
            device=types.SimpleNamespace(get_device_id=lambda: 0),
            get_current_stream=lambda: self.stream,
            memory=types.SimpleNamespace(OutOfMemoryError=self.OutOfMemoryError),
            UnownedMemory=lambda ptr, size, owner, device_id: types.SimpleNamespace(ptr=ptr, size=size, owner=owner),
            MemoryPointer=lambda memory, offset: memory,
        )


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCuPy:
    made = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", made)
    return made


def test_cupy_arrays_are_the_pools(cupy: FakeCuPy, pool: MemoryPool) -> None:
    array, empty = cupy_memory.allocator(1000), cupy_memory.allocator(0)
    assert pool.stats().requested_bytes == 1000 and empty.ptr == 0
    address = array.ptr
    pool.defragment()
    assert array.ptr == array.owner.pin.start == address
    del array
    assert pool.stats().live_blocks == 0


def test_cupy_streams_reach_the_pool(cupy: FakeCuPy, pool: MemoryPool) -> None:
    cupy.stream = types.SimpleNamespace(ptr=pool.backend.new_stream())
    array = cupy_memory.allocator(1000)
    assert {s.stream for s in pool.segments() for b in s.blocks if b.state == "live"} == {cupy.stream.ptr}
    del array


def test_cupy_gets_its_own_error(cupy: FakeCuPy, pool: MemoryPool) -> None:
    with pytest.raises(cupy.OutOfMemoryError) as caught:
        cupy_memory.allocator(128 * MIB)
    assert caught.value.args == (128 * MIB, 0) and isinstance(caught.value.__cause__, fn.OutOfMemory)


def test_pytorch_calls_c_functions(pool: MemoryPool, capfd: pytest.CaptureFixture[str]) -> None:
    allocate, free, record_stream = torch_memory._FUNCTIONS
    address = allocate(1000, 0, None)
    assert pool.stats().requested_bytes == 1000 and address % 256 == 0
    record_stream(address, pool.backend.new_stream())
    free(address, 1000, 0, None)
    free(address, 1000, 0, None)  # unknown by now
    assert allocate(0, 0, None) is None
    assert allocate(128 * MIB, 0, None) is None
    assert "PyTorch gets no memory: " in capfd.readouterr().err


def test_pytorch_gets_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    made = types.SimpleNamespace(set_record_stream_fn=given.append)

    def custom(allocate: int, free: int) -> Any:
        given.extend((allocate, free))
        return made

    torch = types.ModuleType("torch")
    torch._C = types.SimpleNamespace(_cuda_customAllocator=custom, _cuda_changeCurrentAllocator=given.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    torch_memory.install()
    assert given == [*torch_memory._ADDRESSES, made] and all(given)


@pytest.mark.parametrize("call", [cupy_memory.allocator, lambda nbytes: torch_memory.allocator()])
def test_an_absent_library_is_named(call: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="cupy|torch"):
        call(1)
