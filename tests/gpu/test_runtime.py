"""What surrounds the kernels on the GPU: the pool under load, errors, faults, threads, and other libraries."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.devices.base import LaunchConfig
from flame_numba.tensor import Tensor

MIB = 1 << 20
SOURCE = Path(fn.__file__).parent.parent


def program(x: Tensor, w: Tensor) -> list[Tensor]:
    """A bit of everything, with its gradients."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    h = fn.layer_norm(fn.silu(x @ w) + x)
    y = fn.softmax(h, axis=-1) * fn.gelu(h).T.contiguous().T
    total = fn.sum(y * y, axis=0) + fn.max(h, axis=0)
    total.sum().backward()
    assert x.grad is not None and w.grad is not None
    return [h.detach(), y.detach(), total.detach(), x.grad, w.grad]


@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16, fn.float16, fn.float64], ids=lambda d: d.name)
def test_both_devices_agree(dtype: fn.DType, gpu: Device) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(65, 65)), rng.normal(size=(65, 65)) / 8
    results = []
    for device in (gpu, Device.cpu()):
        operands = [fn.asarray(v.astype(dtype.numpy), device=device) for v in (x, w)]
        results.append([t.numpy().astype(np.float64) for t in program(*operands)])
    for a, b in zip(*results, strict=True):
        assert np.linalg.norm(a - b) <= 32 * max(dtype.eps, 1e-15) * np.linalg.norm(b)


# --- the pool ------------------------------------------------------------------------------------------------------
def test_moving_blocks_in_the_middle_of_work(gpu: Device) -> None:
    """Kernels are queued before, between and after moves; nobody waits, and no value changes."""
    rng, order = np.random.default_rng(2), random.Random(2)
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig(segment=("256 KiB", "4 MiB"))).use() as pool:
        expected: dict[int, tuple[Tensor, np.ndarray]] = {}
        for step in range(120):
            host = rng.normal(size=order.choice([1, 100, 5_000, 300_000])).astype(np.float32)
            expected[step] = (fn.asarray(host) * 2 + 1, host * 2 + 1)
            if len(expected) > 20:
                del expected[order.choice(list(expected))]
            if step % 10 == 9:
                for key, (x, host) in expected.items():
                    expected[key] = (x * -1, -host)
                pool.defragment()
            if step % 40 == 39:
                pool.trim()
        for x, host in expected.values():
            np.testing.assert_allclose(x.numpy(), host, rtol=1e-6)
        assert pool.stats().moves > 0


def test_a_view_and_a_gradient_survive_a_move(gpu: Device) -> None:
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig()).use() as pool:
        before = [fn.zeros((1000,)) for _ in range(8)]
        x = fn.arange(1000, dtype=fn.float32).requires_grad_()
        view = x.reshape(10, 100).T[5:]
        y = (view * view).sum()
        address = x.address
        del before
        assert pool.defragment().blocks_moved > 0 and x.address != address
        y.backward()
        expected = 2 * np.arange(1000, dtype=np.float32)
        expected.reshape(10, 100)[:, :5] = 0
        assert x.grad is not None
        np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_out_of_memory_leaves_a_working_pool(gpu: Device) -> None:
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig(limit="64 MiB")).use() as pool:
        kept = fn.ones((1000,))
        held = []
        with pytest.raises(fn.OutOfMemory, match="limit"):
            while True:
                held.append(fn.zeros((MIB,)))
        assert 8 <= len(held) <= 16
        held.clear()
        again = fn.full((8 * MIB,), 2.0)
        assert float((again.sum() + kept.sum()).numpy()) == 16 * MIB + 1000
        assert pool.stats().reserved_bytes <= 64 * MIB


def test_more_than_the_device_has(gpu: Device) -> None:
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig()).use(), pytest.raises(fn.OutOfMemory):
        fn.empty((1 << 50,))
    np.testing.assert_array_equal((fn.ones((10,)) + 1).numpy(), np.full(10, 2.0))


def test_memory_info(gpu: Device) -> None:
    info = gpu.memory_info()
    assert 0 < info.free <= info.total
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig()).use() as pool:
        kept = fn.zeros((16 * MIB,))
        stats = pool.stats()
        assert stats.allocated_bytes == kept.nbytes == 64 * MIB <= stats.reserved_bytes
        assert gpu.memory_info().free + stats.reserved_bytes <= info.total
        assert gpu.memory_info().total == info.total


# --- errors --------------------------------------------------------------------------------------------------------
def test_an_index_out_of_range_is_raised_at_the_next_read(gpu: Device) -> None:
    x = fn.arange(10, dtype=fn.float32)
    bad = fn.asarray([3, 10, -11])
    if gpu.kind == "cuda":
        y = fn.take(x, bad)
        z = y + 1  # queued behind it: nothing waits, nothing is raised yet
        with pytest.raises(fn.IndexOutOfRange, match="take"):
            z.numpy()
    else:
        with pytest.raises(fn.IndexOutOfRange, match="take"):
            fn.take(x, bad)
    np.testing.assert_array_equal(fn.take(x, fn.asarray([9, -10])).numpy(), [9, 0])  # told once, then all is well


def test_a_label_out_of_range(gpu: Device) -> None:
    with pytest.raises(fn.IndexOutOfRange, match="label"):
        fn.cross_entropy(fn.zeros((4, 3)), fn.asarray([0, 1, 2, 3])).item()


def test_a_launch_that_the_driver_refuses(real_gpu: Device) -> None:
    from flame_numba.ops.core import launch

    fn.ones((100,)) + 1
    kernel = next(k for key, k in launch._EXECUTABLES.items() if key[0] is real_gpu.backend)
    with pytest.raises(fn.KernelError, match="INVALID"):
        kernel.launch(LaunchConfig(1, 1, 4096), _blank(kernel), 0)
    np.testing.assert_array_equal((fn.ones((3,)) + 1).numpy(), [2, 2, 2])


def _blank(kernel: object) -> tuple[int, ...]:
    """Zeros for every argument; the launch has too many threads, so they are never read."""
    return (0,) * (kernel._pack.__self__.size // 8)  # type: ignore[attr-defined]


BAD_ADDRESS = """
import flame_numba as fn
fn.cuda.debug({debug})
x = fn.ones((1000,))
far = x.alias((1000,), (1,), 1 << 44)  # no such memory
try:
    y = far + 1
    print("queued", flush=True)
    y.numpy()
except fn.FlameError as error:
    print(type(error).__name__, "map_add" in str(error), "ILLEGAL_ADDRESS" in str(error), flush=True)
"""


@pytest.mark.parametrize("debug", [True, False])
def test_a_kernel_that_fails(debug: bool, real_gpu: Device) -> None:
    """In a process of its own, since CUDA gives up a context after such an error. Debug mode names the op."""
    if os.environ.get("FLAME_NUMBA_SANITIZED"):  # set by scripts/gpu_check.py
        pytest.skip("the error is made on purpose")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(SOURCE)])}
    script = BAD_ADDRESS.format(debug=debug)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    expected = ["KernelError True True"] if debug else ["queued", "DeviceError False True"]
    assert run.stdout.splitlines() == expected, run.stderr


# --- threads and neighbours ----------------------------------------------------------------------------------------
def test_two_threads_and_a_compactor(gpu: Device) -> None:
    """Two threads compute, each with its own tensors; a third moves their memory."""
    with fn.MemoryPool.with_config(gpu, fn.PoolConfig(segment=("256 KiB", "4 MiB"))).use() as pool:
        wrong: list[str] = []
        done = threading.Event()

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            with gpu, pool.use():
                try:
                    for step in range(60):
                        a, b = rng.normal(size=(2, 64, 64)).astype(np.float32)
                        x, y = fn.asarray(a), fn.asarray(b)
                        z = ((x @ y) * 2 + x).sum(axis=0).numpy()
                        if not np.allclose(z, ((a @ b) * 2 + a).sum(0), rtol=1e-3, atol=1e-2):
                            wrong.append(f"thread {seed}, step {step}")
                except Exception as error:
                    wrong.append(f"thread {seed}: {error!r}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()

        def compact() -> None:
            while not done.wait(0.002):
                pool.defragment()

        compactor = threading.Thread(target=compact)
        compactor.start()
        for thread in threads:
            thread.join()
        done.set()
        compactor.join()
        assert not wrong, wrong


def test_pytorch_shares_the_context(real_gpu: Device) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch sees no GPU")
    from cuda.bindings import driver

    theirs = torch.arange(1000, dtype=torch.float32, device="cuda") * 3
    torch.cuda.synchronize()
    ours = fn.zeros((1000,))
    backend = real_gpu.backend
    backend.copy(ours.address, theirs.data_ptr(), ours.nbytes)
    np.testing.assert_array_equal(ours.numpy(), np.arange(1000, dtype=np.float32) * 3)
    doubled = ours * 2
    backend.synchronize()
    backend.copy(theirs.data_ptr(), doubled.address, ours.nbytes)
    backend.synchronize()
    assert torch.equal(theirs.cpu(), torch.arange(1000, dtype=torch.float32) * 6)
    _, current = driver.cuCtxGetCurrent()
    assert int(current) == int(backend._context)  # type: ignore[attr-defined]
    assert torch.cuda.mem_get_info()[1] == real_gpu.memory_info().total


def test_a_second_thread_needs_no_setup(gpu: Device) -> None:
    """A context is current per thread: a fresh one must find it by itself."""
    result: list[float] = []

    def work() -> None:
        with gpu:
            result.append((fn.ones((1000,)) + 1).sum().item())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result == [2000.0]


def test_copies_between_devices(gpu: Device) -> None:
    host = np.random.default_rng(3).normal(size=(5, 7)).astype(np.float32)
    x = fn.asarray(host, device=gpu).requires_grad_()
    y = x.T.to_device("cpu")
    assert y.device == Device.cpu()
    np.testing.assert_array_equal(y.numpy(), host.T)
    (y * y).sum().backward()
    assert x.grad is not None and x.grad.device == gpu
    np.testing.assert_allclose(x.grad.numpy(), 2 * host, rtol=1e-6)


def test_events_and_streams(gpu: Device) -> None:
    backend = gpu.backend
    start = backend.record_event(timing=True)
    x = fn.ones((MIB,))
    for _ in range(10):
        x = x + 1
    end = backend.record_event(timing=True)
    assert backend.elapsed_ms(start, end) >= 0
    assert backend.event_done(end)
    backend.wait_event(backend.new_stream(), end)
    assert float(x[0].numpy()) == 11


def test_overlapping_copies(gpu: Device) -> None:
    """As memmove, in both directions, also where the range is longer than what goes through at once."""
    backend = gpu.backend
    for n, shift in ((1000, 1), (1000, 300), (6 * MIB, 5), (6 * MIB, 5 * MIB)):
        host = np.random.default_rng(n).integers(0, 255, n + shift).astype(np.uint8)
        for source, target in ((0, shift), (shift, 0)):
            x = fn.asarray(np.tile(host, 4) if n > 1000 else host)
            count = x.numel - shift
            with backend.lock:
                backend.copy(x.address + target, x.address + source, count)
            expected = (np.tile(host, 4) if n > 1000 else host).copy()
            expected[target : target + count] = expected[source : source + count].copy()
            np.testing.assert_array_equal(x.numpy(), expected)
