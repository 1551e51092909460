"""What only a GPU can show: streams that run beside each other, copies under way, memory mapped by the driver.

A slow chain of products holds a stream back while the host goes on: what reads too early, or memory that is reused too
early, shows as a wrong value. Each is done several times.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import threading
from time import perf_counter

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device, DeviceOutOfMemory, Stream
from flame_numba.devices.base import LaunchConfig
from flame_numba.errors import DeviceError
from flame_numba.kernels.index.gather import iota_program
from flame_numba.ops.core.launch import executable
from flame_numba.pinned import pinned_empty
from flame_numba.tensor import Tensor

ON_CPU = os.environ.get("FLAME_NUMBA_GPU_TESTS_ON") == "cpu"  # nothing is slow there
MIB = 1 << 20
SIDE, CHAIN = (64, 2) if ON_CPU else (2048, 40)
ROUNDS = 2 if ON_CPU else 20


@pytest.fixture(scope="module")
def weights(gpu: Device) -> Tensor:
    """A matrix for `slow`, there for all streams."""
    result = fn.eye(SIDE, device=gpu)
    gpu.synchronize()
    return result


def slow(weights: Tensor) -> Tensor:
    """Some milliseconds of work for the current stream; its only element is 0."""
    x = weights
    for _ in range(CHAIN):
        x = x @ weights
    return (x.sum() - SIDE).reshape((1,))


# --- virtual memory ------------------------------------------------------------------------------------------------
def test_mappings_keep_their_contents(real_gpu: Device) -> None:
    backend, page = real_gpu.backend, real_gpu.backend.page_nbytes
    assert page and page % (64 << 10) == 0
    host = np.random.default_rng(1).integers(0, 256, 3 * page).astype(np.uint8)
    found = np.empty_like(host)
    start = backend.reserve(8 * page)
    backend.map(start, 2 * page)
    backend.map(start + 2 * page, page)
    backend.upload(start, host.ctypes.data, 3 * page)  # over two handles
    backend.download(found.ctypes.data, start, 3 * page)
    np.testing.assert_array_equal(found, host)
    backend.copy(start + 100, start, 2 * page)  # overlapping, over both
    host[100 : 100 + 2 * page] = host[: 2 * page].copy()
    backend.synchronize()
    backend.move_mapping(start, start + 5 * page, 2 * page)
    backend.move_mapping(start + 2 * page, start + 7 * page, page)
    found[:] = 0
    backend.download(found.ctypes.data, start + 5 * page, 3 * page)
    np.testing.assert_array_equal(found, host)
    backend.map(start, 4 * page)  # where memory was
    backend.fill(start, 9, 4 * page)
    backend.download(found.ctypes.data, start + page, 3 * page)
    assert (found == 9).all()
    for address, nbytes in ((start, 4), (start + 5 * page, 2), (start + 7 * page, 1)):
        backend.unmap(address, nbytes * page)
    backend.unreserve(start, 8 * page)


def test_a_refused_mapping_leaves_nothing_behind(real_gpu: Device) -> None:
    backend, page = real_gpu.backend, real_gpu.backend.page_nbytes
    total = backend.memory_info().total // page * page
    start = backend.reserve(total + 8 * page)
    backend.map(start, 2 * page)
    backend.map(start + 4 * page, page)
    lost = page + 1
    for tries in range(1000):
        if tries % 50 == 0:  # what is left behind adds up in every fifty; what other processes take, not in all
            if lost <= page and tries:
                break
            free = backend.memory_info().free
        with pytest.raises(DeviceOutOfMemory):
            backend.map(start + 5 * page, total)
        with pytest.raises(DeviceError, match="cuMemMap"):
            backend.map(start + page, page)
        with pytest.raises(DeviceError, match="are not what one map"):
            backend.unmap(start, page)
        with pytest.raises(DeviceError, match="overlap"):
            backend.move_mapping(start, start + page, 2 * page)
        with pytest.raises(DeviceError, match="cuMemMap"):
            backend.move_mapping(start, start + 3 * page, 2 * page)
        lost = free - backend.memory_info().free
    assert lost <= page
    backend.fill(start, 1, 2 * page)  # still there
    backend.synchronize()
    backend.unmap(start, 2 * page)
    backend.unmap(start + 4 * page, page)
    backend.unreserve(start, total + 8 * page)


def test_memory_comes_back_after_mapping(real_gpu: Device) -> None:
    backend, page = real_gpu.backend, real_gpu.backend.page_nbytes
    start = backend.reserve(64 * page)
    lost = []  # other processes take and give memory meanwhile: so in windows
    for _ in range(20):
        free = backend.memory_info().free
        for i in range(64):
            backend.map(start + i * page, page)
        taken = free - backend.memory_info().free
        backend.synchronize()
        for i in range(64):
            backend.unmap(start + i * page, page)
        lost.append((taken, free - backend.memory_info().free))
    assert any(taken >= 60 * page and gone <= page for taken, gone in lost), lost
    backend.unreserve(start, 64 * page)


# --- streams -------------------------------------------------------------------------------------------------------
def program(host: np.ndarray, device: Device) -> np.ndarray:
    x = fn.asarray(host, device=device).requires_grad_()
    h = fn.layer_norm(fn.silu(x @ x.T) + 1)
    fn.softmax(h, axis=-1).sum(axis=0).max().backward()
    assert x.grad is not None
    return np.concatenate([h.numpy().ravel(), x.grad.numpy().ravel()])


def test_every_stream_gives_the_same_bits(gpu: Device) -> None:
    host = np.random.default_rng(2).normal(size=(96, 96)).astype(np.float32)
    expected = program(host, gpu)
    for _ in range(8):
        with gpu.new_stream() as stream:
            assert gpu.current_stream() is stream
            np.testing.assert_array_equal(program(host, gpu), expected)


def test_threads_with_a_stream_each(gpu: Device) -> None:
    host = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)
    expected, wrong = program(host, gpu), []

    def work() -> None:
        with gpu, gpu.new_stream():
            for _ in range(ROUNDS):
                if not (program(host, gpu) == expected).all():
                    wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_stream_waits_for_another(gpu: Device, weights: Tensor) -> None:
    a, b = gpu.new_stream(), gpu.new_stream()
    for i in range(ROUNDS):
        with a:
            x = slow(weights) + i
            event = a.record()
        if i % 2:
            b.wait(a)
        else:
            b.wait(event)
        with b:
            assert (x * 2).numpy() == 2 * i


def test_the_host_does_not_wait(real_gpu: Device, weights: Tensor) -> None:
    stream = real_gpu.new_stream()
    with stream:
        slow(weights).numpy()  # all is compiled
        start = perf_counter()
        start_event = stream.record(timing=True)
        kept = [slow(weights) for _ in range(4)]
        end_event = stream.record(timing=True)
        queued = perf_counter() - start
        assert not end_event.done
    end_event.synchronize()
    elapsed = perf_counter() - start
    assert end_event.done and len(kept) == 4
    milliseconds = start_event.elapsed_ms(end_event)
    assert 0 < milliseconds <= elapsed * 1e3 * 1.05
    assert milliseconds > (elapsed - queued) * 1e3 * 0.5


def test_other_streams_and_stream_0_run_beside_it(real_gpu: Device, weights: Tensor) -> None:
    stream = real_gpu.new_stream()
    x = fn.ones((1000,), device=real_gpu)
    (x + 1).numpy()
    with stream:
        kept = [slow(weights) for _ in range(4)]
        event = stream.record()
    assert (x + 1).numpy().sum() == 2000  # waits for stream 0 only
    assert not event.done, "stream 0 waited for another stream"
    event.synchronize()
    assert all(k.numpy() == 0 for k in kept)


def test_events_are_used_again(real_gpu: Device) -> None:
    backend = real_gpu.backend
    first = [backend.record_event() for _ in range(100)]
    backend.synchronize()
    assert all(backend.event_done(event) for event in first)
    handles = {int(event) for event in first}
    for event in first:
        backend.destroy_event(event)
    assert {int(backend.record_event()) for _ in range(100)} == handles
    timed = backend.record_event(timing=True)
    backend.destroy_event(timed)
    assert int(backend.record_event()) not in handles


def test_a_dropped_stream_ends_its_work(gpu: Device, weights: Tensor) -> None:
    for i in range(ROUNDS):
        with gpu.new_stream() as stream:
            x = slow(weights) + i
            event = stream.record()
        del stream
        gc.collect()
        event.synchronize()
        assert x.numpy() == i


def test_a_foreign_stream(gpu: Device, weights: Tensor) -> None:
    handle = gpu.backend.new_stream()
    stream = Stream.from_handle(gpu, handle)
    with stream:
        x = slow(weights) + 3
    stream.synchronize()
    assert x.numpy() == 3 and int(stream) == handle
    gpu.backend.destroy_stream(handle)


# --- memory between streams ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["segments", "virtual"])
@pytest.mark.parametrize("limit", [None, "96 MiB"])
def test_memory_is_not_reused_while_a_stream_reads_it(
    limit: str | None, backend: str, gpu: Device, weights: Tensor
) -> None:
    """x is read late on stream A, and dropped at once, while B takes and fills blocks of its size.

    With the limit, B has to take memory that A had: its work must come after A's.
    """
    a, b = gpu.new_stream(), gpu.new_stream()
    count = 4 * MIB  # 16 MiB of float32
    with fn.MemoryPool(gpu, fn.PoolConfig(limit=limit, backend=backend)).use():
        for i in range(ROUNDS):
            with b:
                x = fn.full((count,), float(i))
            a.wait(b)
            with a:
                delay = slow(weights)
                result = (x + delay).max() - (x + delay).min() + x[0]
            del x
            with b:
                spoilt = [fn.full((count,), -1.0) for _ in range(4)]
            with a:
                assert result.numpy() == i
            b.synchronize()
            assert all(s[0].item() == -1 for s in spoilt)
            del spoilt, delay, result


def test_a_block_freed_on_its_stream_is_reused_there_at_once(gpu: Device) -> None:
    stream = gpu.new_stream()
    with fn.MemoryPool(gpu).use() as pool, stream:
        for i in range(100):
            x = fn.full((MIB,), float(i))
            assert (x + 1)[5].item() == i + 1
            del x
        assert pool.stats().reserved_bytes <= 128 * MIB


def test_moving_blocks_while_streams_work(gpu: Device, weights: Tensor) -> None:
    """`defragment` waits on the device for the streams that use the blocks, and they for it."""
    rng, streams = random.Random(4), [gpu.new_stream() for _ in range(3)]
    with fn.MemoryPool(gpu, fn.PoolConfig(segment=("256 KiB", "4 MiB"))).use() as pool:
        held: list[tuple[Stream, Tensor, int]] = []
        for step in range(60):
            stream = rng.choice(streams)
            with stream:
                if step % 15 == 0:
                    slow(weights)
                held.append((stream, fn.full((rng.choice([100, 30_000, 400_000]),), step) + 1, step + 1))
            if len(held) > 15:
                held.pop(rng.randrange(len(held)))
            if step % 6 == 5:
                pool.defragment()
            if step % 10 == 9:
                for i, (owner, x, value) in enumerate(held):
                    with owner:
                        held[i] = (owner, x * 2, value * 2)
        for owner, x, value in held:
            with owner:
                assert (x.numpy() == value).all()


# --- streams that come and go --------------------------------------------------------------------------------------
def test_streams_that_are_gone_leave_nothing_behind(gpu: Device) -> None:
    """10,000 of them, each with an op whose operand is another's. The driver makes two: one ends as the next begins."""
    with fn.MemoryPool(gpu).use() as pool:
        zero = gpu.current_stream()
        x, handles, kept = fn.ones((1000,), device=gpu), set(), []
        for i in range(200 if ON_CPU else 10_000):
            stream = gpu.new_stream()
            handles.add(stream.handle)
            stream.wait(zero)
            with stream:
                y = x + float(i)
            if i % 1000 == 0:
                kept.append((i, y))
            zero.wait(stream)
            if i == 100:
                gpu.synchronize()
                before = _size(pool)
        gpu.synchronize()
        assert len(handles) <= 2 and _size(pool) == before
        assert y[5].item() == i + 1
        for i, y in kept:  # their streams are gone
            assert y[5].item() == i + 1


def _size(pool: fn.MemoryPool) -> tuple[int, ...]:
    ladder = pool._ladder
    return len(ladder.lanes), len(ladder.streams.known), pool.stats().reserved_bytes, ladder.reserve.driver_calls


@pytest.mark.parametrize("backend", ["segments", "virtual"])
def test_memory_of_a_stream_that_is_gone_is_not_reused_while_it_works(
    backend: str, gpu: Device, weights: Tensor
) -> None:
    """The stream's work is still running when its lane goes to stream 0, which fills what it takes at once."""
    count = 4 * MIB  # 16 MiB of float32
    with fn.MemoryPool(gpu, fn.PoolConfig(limit="192 MiB", backend=backend)).use() as pool:
        for i in range(ROUNDS):
            stream = gpu.new_stream()
            with stream:
                delay = slow(weights)
                dead = fn.full((count,), float(i))
                result = dead[0] + delay.max() + dead[-1]  # read late
                alive = fn.full((count,), float(i)) + delay
                del dead, delay
                done = stream.record()
            handle = stream.handle
            del stream
            pool.defragment()  # hands its lane over; nothing waits on the host
            assert all(lane.stream == 0 for lane in pool._ladder.lanes.values())
            spoilt = [fn.full((count,), -1.0) for _ in range(3)]  # of what it freed
            later = gpu.new_stream()
            assert later.handle == handle  # the same queue
            with later:
                double = alive * 2
                del alive  # stream 0 gets it when this is read
            more = fn.full((count,), -2.0)
            later.wait(gpu.current_stream())
            with later:
                assert (double.numpy() == 2 * i).all() and result.numpy() == 2 * i
            assert done.done
            assert all(s[0].item() == -1 == s[-1].item() for s in spoilt) and more[7].item() == -2
            del spoilt, more, double, result, later


def test_moves_wait_for_streams_that_are_gone(gpu: Device, weights: Tensor) -> None:
    with fn.MemoryPool(gpu, fn.PoolConfig(segment=("256 KiB", "4 MiB"))).use() as pool:
        for i in range(ROUNDS):
            held = []
            for k in range(8):
                stream = gpu.new_stream()
                with stream:
                    delay = slow(weights) if k % 4 == 0 else None
                    x = fn.full((100_000,), float(k))
                    held.append((x if delay is None else x + delay, k))
                    del x, delay
            del stream, held[i % 2 :: 2]
            pool.defragment()
            pool.trim()
            assert all(lane.stream == 0 for lane in pool._ladder.lanes.values())
            for x, k in held:
                assert (x.numpy() == k).all()
            del held, x


# --- asynchronous copies -------------------------------------------------------------------------------------------
def test_copies_beside_work(gpu: Device, weights: Tensor) -> None:
    """Batches go up on one stream, are worked on by a second, and come down on a third."""
    up, down = gpu.new_stream(), gpu.new_stream()
    work = gpu.new_stream()
    count, results = 256 << 10, []
    for i in range(ROUNDS):
        host = pinned_empty((count,), "float32", gpu)
        host[...] = np.arange(count) + i
        with up:
            x = fn.asarray(host, device=gpu, non_blocking=True)
        del host  # its memory is held until the copy has ended
        work.wait(up)
        with work:
            y = x * 2 + slow(weights)
        down.wait(work)
        with down:
            results.append(y.numpy_async())
        del x, y
    for i, copy in enumerate(results):
        np.testing.assert_array_equal(copy.wait(), (np.arange(count, dtype=np.float32) + i) * 2)


def test_a_download_reads_what_was_there_when_it_was_asked_for(gpu: Device, weights: Tensor) -> None:
    for i in range(ROUNDS):
        x = fn.full((MIB,), float(i), device=gpu) + slow(weights)
        copy = x.numpy_async()
        x[...] = -1.0
        del x
        spoilt = fn.full((MIB,), -2.0, device=gpu)
        assert (copy.wait() == i).all()
        del spoilt


def test_only_an_asynchronous_upload_leaves_the_array_in_use(gpu: Device, weights: Tensor) -> None:
    host = pinned_empty((4 * MIB,), "float32", gpu)
    for i in range(ROUNDS):
        kept = slow(weights)
        host[...] = i
        x = fn.asarray(host, device=gpu)
        host[...] = -1  # at once
        assert x[0].item() == i and x[-1].item() == i and kept.numpy() == 0


def test_an_asynchronous_copy_does_not_wait(real_gpu: Device, weights: Tensor) -> None:
    x = fn.ones((MIB,), device=real_gpu)
    out, host = pinned_empty(x.shape, x.dtype, real_gpu), pinned_empty(x.shape, x.dtype, real_gpu)
    host[...] = 3
    slow(weights).numpy()
    stream = real_gpu.current_stream()
    kept = [slow(weights) for _ in range(4)]
    copy = x.numpy_async(out)
    y = fn.asarray(host, device=real_gpu, non_blocking=True)
    assert not stream.record().done and not copy.done, "the host waited for the device"
    assert (copy.wait() == 1).all() and (y.numpy() == 3).all() and kept[0].numpy() == 0


def test_page_locked_memory_is_seen_by_kernels(real_gpu: Device) -> None:
    backend, n = real_gpu.backend, 100_000
    address = backend.allocate_host(4 * n)
    kernel = executable(backend, iota_program, fn.float32)
    with backend.lock:
        kernel.launch(LaunchConfig(8, 1, 256), (address, 5.0, 1.0, n), 0)  # by the same address
    backend.synchronize()
    found = np.frombuffer((ctypes.c_float * n).from_address(address), np.float32)
    np.testing.assert_array_equal(found, np.arange(5, n + 5))
    backend.free_host(address)


# --- waiting -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("copy", ["numpy", "item", "into plain memory", "upload"])
def test_one_thread_waits_and_the_others_launch(real_gpu: Device, weights: Tensor, copy: str) -> None:
    """A copy behind some hundred milliseconds of work: who holds a lock meanwhile stops the launches of others."""
    side, x = real_gpu.new_stream(), fn.ones((1000,), device=real_gpu)
    large = np.ones((1 << 22,), np.float32)  # more than a driver takes without waiting
    (x + 1).numpy()
    held, queued = [], threading.Event()

    def wait() -> None:
        with side:
            for _ in range(ROUNDS):
                held.append(slow(weights))
            queued.set()
            if copy == "numpy":
                held[-1].numpy()
            elif copy == "item":
                held[-1].item()
            elif copy == "upload":
                fn.asarray(large, device=real_gpu)
            else:
                held[-1].numpy_async(np.empty((1,), np.float32)).wait()

    thread = threading.Thread(target=wait)
    thread.start()
    queued.wait()
    longest, launches = 0.0, 0
    begin = perf_counter()
    while thread.is_alive():
        before = perf_counter()
        y = x + 1
        longest, launches = max(longest, perf_counter() - before), launches + 1
        real_gpu.current_stream().synchronize()
    waited = perf_counter() - begin
    thread.join()
    assert y.numpy()[0] == 2
    assert launches > 10 and longest < waited / 3, f"{launches} launches, one took {longest:.3f} s of {waited:.3f} s"
