"""Memory shared with other libraries on a GPU: the same address on both sides, in both directions, on any stream."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.errors import ShareError
from flame_numba.interop import foreign, from_cuda_array, from_dlpack

DTYPES = [fn.float32, fn.float64, fn.float16, fn.bfloat16, fn.int64, fn.int32, fn.uint8, fn.bool]
VIEWS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT,
    "offset": lambda x: x[1:, 1:],
    "broadcast": lambda x: x[:1].broadcast_to((5, 6)),
}


@pytest.fixture(autouse=True)
def needs_a_gpu(real_gpu: Device) -> None:
    """Every test here is about CUDA."""


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture
def numba() -> Any:
    from numba import cuda

    return cuda


def pins(x: fn.Tensor) -> int:
    return int(x.storage.block.pins)


def wait_for_owners(gpu: Device) -> None:
    """Foreign memory goes back when the work that used it is done: wait for that."""
    gpu.synchronize()
    foreign.settle()


# --- PyTorch ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_torch_sees_the_same_memory(torch: Any, dtype: fn.DType, view: Any) -> None:
    x = view(fn.arange(30).reshape(5, 6).to_dtype(dtype))
    there = torch.from_dlpack(x)
    assert there.data_ptr() == x.address and there.is_cuda and there.stride() == x.strides
    assert pins(x) == 1
    np.testing.assert_array_equal(there.double().cpu().numpy(), x.to_dtype(fn.float64).numpy())
    del there
    assert pins(x) == 0


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int64", "bool"])
def test_torch_s_memory_becomes_a_tensor(torch: Any, name: str) -> None:
    there = torch.ones((6, 4), dtype=getattr(torch, name), device="cuda")[1:, ::2]
    for x in (from_dlpack(there), fn.asarray(there)):
        assert x.address == there.data_ptr() and x.strides == there.stride() and x.dtype.name == name
        assert x.device == Device.cuda(there.device.index)
        np.testing.assert_array_equal(x.to_dtype(fn.float64).numpy(), there.double().cpu().numpy())


def test_writes_are_seen_on_both_sides(torch: Any) -> None:
    x = fn.zeros((1000,))
    there = torch.from_dlpack(x)
    there += 3
    assert (x + 1).sum().item() == 4000
    x.fill_(5)
    assert there.sum().item() == 5000


def test_torch_s_memory_is_given_back(torch: Any, gpu: Device) -> None:
    wait_for_owners(gpu)
    before = torch.cuda.memory_allocated()
    x = from_dlpack(torch.ones(1 << 20, device="cuda"))
    y = x * 2
    assert torch.cuda.memory_allocated() > before
    del x
    gc.collect()
    wait_for_owners(gpu)
    assert torch.cuda.memory_allocated() == before and y[7].item() == 2


def test_our_memory_is_given_back(torch: Any, gpu: Device) -> None:
    before = fn.current_pool(gpu).stats().live_blocks
    there = torch.from_dlpack(fn.ones((1 << 20,)))
    assert fn.current_pool(gpu).stats().live_blocks == before + 1
    assert there.sum().item() == 1 << 20
    del there
    assert fn.current_pool(gpu).stats().live_blocks == before


def test_exported_memory_is_not_moved(torch: Any, gpu: Device) -> None:
    pool = fn.MemoryPool.with_config(gpu, fn.PoolConfig(backend="segments"))
    with pool.use():
        tensors = [fn.full((1 << 18,), float(i)) for i in range(6)]
    there = torch.from_dlpack(tensors[3])
    del tensors[:3]
    pool.defragment()
    assert tensors[0].address == there.data_ptr() and there[5].item() == 3


@pytest.mark.parametrize("ours", [False, True], ids=["our default stream", "a stream of ours"])
@pytest.mark.parametrize("theirs", [False, True], ids=["their default stream", "a stream of theirs"])
def test_streams_are_put_in_order(torch: Any, gpu: Device, ours: bool, theirs: bool) -> None:
    """A long chain of work on one side, read on the other at once: right only if one stream waits for the other."""
    our_stream = gpu.new_stream() if ours else gpu.current_stream()
    their_stream = torch.cuda.Stream() if theirs else torch.cuda.default_stream()
    for _ in range(3):
        with our_stream:
            x = fn.zeros((1 << 22,))
            for _ in range(20):
                x = x + 1
            with torch.cuda.stream(their_stream):
                there = torch.from_dlpack(x)
                for _ in range(20):
                    there = there + 1
                back = from_dlpack(there)
            assert (back * 2).max().item() == 80 and (back * 2).min().item() == 80


def test_memory_that_they_still_use_is_not_reused_too_early(torch: Any, gpu: Device) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = fn.ones((1 << 22,))
        there = torch.from_dlpack(x)
        total = torch.zeros(1 << 22, device="cuda")
        for _ in range(50):
            total += there
        del there, x  # the pool has the memory back while the sums are queued
    noise = [fn.full((1 << 22,), 9) for _ in range(4)]
    stream.synchronize()
    assert total.min().item() == 50 == total.max().item() and noise[0][0].item() == 9


def test_a_stream_that_is_destroyed_before_its_array(cupy: Any, gpu: Device) -> None:
    x = fn.ones((1 << 22,))
    with cupy.cuda.Stream(non_blocking=True):  # destroyed at the end of the block, while its work still runs
        there = cupy.from_dlpack(x)
        total = cupy.zeros(1 << 22, cupy.float32)
        for _ in range(50):
            total += there
    gc.collect()
    del there, x  # waits for all that the device was given, and asks nothing about the stream
    noise = fn.full((1 << 22,), 9)
    gpu.synchronize()
    assert total.min() == 50 == total.max() and noise[0].item() == 9


def test_a_mark_behind_all_streams(gpu: Device) -> None:
    machine, stream = gpu.backend, gpu.new_stream()
    with stream:
        x = fn.ones((1 << 24,))
        for _ in range(50):
            x = x + 1
    event = machine.record_all()
    machine.wait_event(0, event)
    gpu.current_stream().synchronize()
    assert stream.record().done and machine.event_done(event)
    machine.destroy_event(event)


def test_streams_of_other_libraries_are_taken_as_objects(torch: Any, gpu: Device) -> None:
    theirs = torch.cuda.Stream()
    x = fn.ones((1 << 20,))
    x.record_stream(theirs)
    ours = fn.Stream.from_handle(gpu, theirs)
    assert ours.handle == theirs.cuda_stream
    ours.wait(gpu.current_stream())
    with ours:
        y = x + 1
    gpu.current_stream().wait(theirs)
    assert y.sum().item() == 2 << 20


def test_a_copy_on_the_host(torch: Any) -> None:
    x = fn.arange(6, dtype=fn.float32)
    seen = np.from_dlpack(x, device="cpu")
    np.testing.assert_array_equal(seen, x.numpy())
    with pytest.raises(BufferError):
        np.from_dlpack(x, device="cpu", copy=False)
    there = torch.arange(6.0, device="cuda")
    assert from_dlpack(there, device="cpu").device == Device.cpu()
    with pytest.raises(ShareError):
        from_dlpack(there, device="cpu", copy=False)


@pytest.mark.parametrize("stream", [0, -2, "x"])
def test_streams_that_mean_nothing(stream: Any) -> None:
    with pytest.raises(BufferError, match="stream="):
        fn.zeros((2,)).__dlpack__(stream=stream)


def test_device_numbers(gpu: Device) -> None:
    assert fn.zeros((2,)).__dlpack_device__() == (2, gpu.ordinal)


def test_numpy_needs_a_copy() -> None:
    with pytest.raises(ShareError, match="cuda"):
        fn.zeros((2,)).numpy(copy=False)


# --- __cuda_array_interface__ -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_cupy_both_ways(cupy: Any, view: Any) -> None:
    x = view(fn.arange(30, dtype=fn.float32).reshape(5, 6))
    there = cupy.asarray(x)  # by __cuda_array_interface__
    assert there.data.ptr == x.address
    np.testing.assert_array_equal(cupy.asnumpy(there), x.numpy())
    by_dlpack = cupy.from_dlpack(x)
    assert by_dlpack.data.ptr == x.address
    back = from_cuda_array(there)
    assert back.address == x.address and back.strides == x.strides
    np.testing.assert_array_equal((back + 1).numpy(), x.numpy() + 1)


def test_cupy_s_memory_on_a_stream_of_its_own(cupy: Any) -> None:
    with cupy.cuda.Stream(non_blocking=True):
        there = cupy.zeros(1 << 22, cupy.float32)
        for _ in range(20):
            there = there + 1
        x = fn.asarray(there)
        y = from_cuda_array(there)
    assert x.address == y.address == there.data.ptr
    assert (x + y).min().item() == 40


@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_numba_both_ways(numba: Any, view: Any) -> None:
    x = view(fn.arange(30, dtype=fn.float32).reshape(5, 6))
    there = numba.as_cuda_array(x)
    assert there.__cuda_array_interface__["data"][0] == x.address
    if x.is_contiguous:
        np.testing.assert_array_equal(there.copy_to_host(), x.numpy())
    if 0 in x.strides:
        return  # Numba calls such a view contiguous in the interface that it gives on
    back = fn.asarray(there)
    assert back.address == x.address and back.strides == x.strides
    np.testing.assert_array_equal((back * 2).numpy(), x.numpy() * 2)


def test_a_numba_kernel_writes_our_memory(numba: Any) -> None:
    @numba.jit
    def double(a: Any) -> None:
        i = numba.grid(1)
        if i < a.size:
            a[i] *= 2

    x = fn.ones((1000,))
    double[4, 256](numba.as_cuda_array(x))
    assert x.sum().item() == 2000


def test_what_showed_its_address_is_pinned_as_long_as_it_lives() -> None:
    storage = fn.zeros((10,)).storage
    x = fn.Tensor(storage, (10,), (1,))
    assert x.__cuda_array_interface__["data"] == (x.address, False)
    assert x.__cuda_array_interface__["version"] == 3
    assert storage.block.pins == 1
    del x
    gc.collect()
    assert storage.block.pins == 0
    assert not hasattr(fn.zeros((2,)).requires_grad_(), "__cuda_array_interface__")


# --- JAX ------------------------------------------------------------------------------------------------------------
def test_jax_both_ways() -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX sees no GPU")
    x = fn.arange(6, dtype=fn.float32)
    there = jax.numpy.from_dlpack(x)
    assert there.unsafe_buffer_pointer() == x.address
    array = jax.numpy.arange(4.0) + 1
    back = from_dlpack(array)
    assert back.address == array.unsafe_buffer_pointer() and back.tolist() == [1, 2, 3, 4]
