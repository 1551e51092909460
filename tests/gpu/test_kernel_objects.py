"""Kernels of the library that Numba launches, through `.jit`, on its own device arrays: the bits that the op gives."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.dtypes import DType
from flame_numba.kernel_objects import LibraryKernel
from flame_numba.tensor import Tensor

Array = npt.NDArray[Any]
FLOATS = (fn.float32, fn.bfloat16, fn.float16, fn.float64)
SENTINEL = 0x5A  # each byte of a result before it is written


@pytest.fixture
def cuda(real_gpu: Device) -> Any:
    from numba import cuda

    return cuda


def named(dtypes: Any) -> Any:
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda d: d.name)


def draw(shape: tuple[int, ...], dtype: DType, salt: str) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(f"{shape}{dtype.name}{salt}".encode()))
    return fn.asarray(rng.standard_normal(shape).astype(dtype.numpy))


def for_numba(host: Array, dtype: DType) -> Array:
    """As Numba's arrays hold it: bfloat16 as its bits."""
    return host.view(np.uint16) if dtype is fn.bfloat16 else host


def launched(
    cuda: Any, kernel: LibraryKernel, results: list[tuple[tuple[int, ...], DType]], *given: Tensor
) -> list[Array]:
    """The results of a launch by Numba: arrays for the pointers in order, results first, and the op's own numbers."""
    arrays = []
    for shape, dtype in results:
        blank = np.full((*shape, dtype.itemsize), SENTINEL, np.uint8).view(dtype.numpy).reshape(shape)
        arrays.append(cuda.to_device(for_numba(blank, dtype)))
    arrays += [cuda.to_device(for_numba(x.numpy(), x.dtype)) for x in given]
    rest = iter(arrays)
    arguments = [next(rest) if isinstance(p.kind, DType) else p.value for p in kernel.parameters]
    assert not list(rest), f"{kernel!r} takes fewer arrays than the test gives"
    kernel.jit[kernel.blocks, kernel.threads](*arguments)
    cuda.synchronize()
    return [a.copy_to_host() for a in arrays[: len(results)]]


def same_bits(kernel: LibraryKernel, found: Array, expected: Tensor) -> None:
    """Also NaNs and the signs of zeros."""
    host = expected.numpy()
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[host.itemsize]
    got, wanted = np.ascontiguousarray(found).view(bits).reshape(host.shape), np.ascontiguousarray(host).view(bits)
    wrong = np.argwhere(got != wanted)
    if not len(wrong):
        return
    at = tuple(int(i) for i in wrong[0])
    raw = np.ascontiguousarray(found).view(np.uint8).reshape(host.size, -1)
    values = np.ascontiguousarray(found).view(host.dtype).reshape(host.shape)
    pytest.fail(
        f"{kernel!r}, {kernel.blocks} × {kernel.threads} threads, numbers {kernel.numbers}: {len(wrong)} of "
        f"{host.size} elements differ, first at {at}: Numba's launch {values[at]!r} ({got[at]:#x}), the op "
        f"{host[at]!r} ({wanted[at]:#x}); {np.sum(np.all(raw == SENTINEL, axis=1))} were never written"
    )


def only(kernels: list[LibraryKernel]) -> LibraryKernel:
    assert len(kernels) == 1, f"the op launches more than one kernel for these operands: {kernels}"
    return kernels[0]


@named(FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 257), (8, 4096), (2, 50_001)], ids=str)
def test_softmax(shape: tuple[int, ...], dtype: DType, cuda: Any) -> None:
    x = draw(shape, dtype, "softmax")
    kernel = only(fn.kernels.list("softmax", dtype, shape))
    (found,) = launched(cuda, kernel, [(shape, dtype)], x)
    same_bits(kernel, found, fn.softmax(x))


@named(FLOATS)
@pytest.mark.parametrize("n", [1, 3, 1000, 1_000_003])
@pytest.mark.parametrize("op", ["silu", "gelu"])
def test_an_elementwise_op(op: str, n: int, dtype: DType, cuda: Any) -> None:
    x = draw((n,), dtype, op)
    kernel = only(fn.kernels.list(op, dtype, (n,)))
    (found,) = launched(cuda, kernel, [((n,), dtype)], x)
    same_bits(kernel, found, getattr(fn, op)(x))


@named(FLOATS)
def test_an_op_with_a_number_and_one_that_gives_bools(dtype: DType, cuda: Any) -> None:
    x, y = draw((33, 65), dtype, "x"), draw((33, 65), dtype, "y")
    kernel = only(fn.kernels.list(lambda x: x * 0.3, dtype, (33, 65)))
    (found,) = launched(cuda, kernel, [((33, 65), dtype)], x)
    same_bits(kernel, found, x * 0.3)
    kernel = only(fn.kernels.list("greater", dtype, (33, 65), (33, 65)))
    (found,) = launched(cuda, kernel, [((33, 65), fn.bool)], x, y)
    same_bits(kernel, found, x > y)


@named(FLOATS)
def test_a_strided_kernel_walks_the_array_that_the_view_is_of(dtype: DType, cuda: Any) -> None:
    base = draw((65, 33), dtype, "strided")
    kernel = only(fn.kernels.list("silu", dtype, (33, 65), layout="strided"))
    (found,) = launched(cuda, kernel, [((33, 65), dtype)], base)
    same_bits(kernel, found, fn.silu(base.T))


@named(FLOATS)
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 7), 1), ((64, 1000), 1), ((64, 1000), 0), ((60, 33), 0)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("op", ["sum", "max"])
def test_a_reduction(op: str, shape: tuple[int, ...], axis: int, dtype: DType, cuda: Any) -> None:
    x = draw(shape, dtype, op)
    expected = getattr(fn, op)(x, axis=axis)
    kernel = only(fn.kernels.list(op, dtype, shape, axis=axis))
    (found,) = launched(cuda, kernel, [(expected.shape, expected.dtype)], x)
    same_bits(kernel, found, expected)


@named(FLOATS)
@pytest.mark.parametrize(
    ("left", "right"), [((1, 1), (1, 1)), ((100, 70), (70, 30)), ((3, 64, 33), (3, 33, 64))], ids=lambda v: str(v)
)
def test_a_product(left: tuple[int, ...], right: tuple[int, ...], dtype: DType, cuda: Any) -> None:
    a, b = draw(left, dtype, "a"), draw(right, dtype, "b")
    expected = a @ b
    kernel = only(fn.kernels.list("matmul", dtype, left, right))
    (found,) = launched(cuda, kernel, [(expected.shape, dtype)], a, b)
    same_bits(kernel, found, expected)


@named(FLOATS)
def test_a_backward_pass(dtype: DType, cuda: Any) -> None:
    x, g = draw((8, 257), dtype, "x").requires_grad_(), draw((8, 257), dtype, "g")
    y = fn.softmax(x)
    y.backward(g)
    kernel = only(fn.kernels.list("softmax", dtype, (8, 257), gradient=True))
    (found,) = launched(cuda, kernel, [((8, 257), dtype)], y.detach(), g)
    assert x.grad is not None
    same_bits(kernel, found, x.grad)


def test_the_page(cuda: Any) -> None:
    """What docs/inspect-a-kernel.md does."""
    softmax = fn.kernels.get("softmax", fn.bfloat16, (8, 4096))
    x = fn.randn((8, 4096), dtype=fn.bfloat16)
    bits = cuda.to_device(x.numpy().view("uint16"))  # NumPy's and Numba's arrays hold bfloat16 as bits
    y = cuda.device_array_like(bits)
    softmax.jit[softmax.blocks, softmax.threads](y, bits, *softmax.numbers)
    assert (y.copy_to_host() == fn.softmax(x).numpy().view("uint16")).all()


def test_a_tensor_is_an_array_of_numbas(cuda: Any) -> None:
    """Without a copy, by `__cuda_array_interface__`."""
    x, y = draw((8, 64), fn.float32, "shared"), fn.zeros((8, 64))
    kernel = only(fn.kernels.list("softmax", fn.float32, (8, 64)))
    kernel.jit[kernel.blocks, kernel.threads](cuda.as_cuda_array(y), cuda.as_cuda_array(x), *kernel.numbers)
    cuda.synchronize()
    same_bits(kernel, y.numpy(), fn.softmax(x))


def test_asking_is_for_the_gpu_at_hand_and_leaves_it_alone(real_gpu: Device) -> None:
    pool = fn.current_pool(real_gpu)
    before = pool.stats()
    kernel = fn.kernels.get("matmul", fn.bfloat16, (4096, 4096), (4096, 4096))
    assert kernel.architecture == real_gpu.backend.architecture
    assert pool.stats().live_blocks == before.live_blocks and pool.stats().allocations == before.allocations
    taken = kernel.resources
    assert taken.registers * kernel.program.threads <= 65536 and taken.spill_bytes == 0
