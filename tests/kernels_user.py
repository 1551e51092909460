"""Calls that launch a user's kernels in each variant, for the compile check of tests/test_sm90.py."""

from __future__ import annotations

import flame_numba as fn
from flame_numba.dtypes import DType
from flame_numba.kernels.language import (
    Array,
    Number,
    Pointer,
    barrier,
    block_sum,
    grid,
    gridsize,
    thread_index,
)
from flame_numba.tensor import Tensor


def squash(v):
    return v / (C(1) + abs(v))  # noqa: F821


def elements(y: Pointer, x: Pointer, factor: Number, n: int) -> None:
    for i in range(grid(), n, gridsize()):
        store_y(y, i, factor * squash(load_x(x, i)))  # noqa: F821


def row_sums(y: Pointer, x: Pointer, n: int) -> None:
    partial = memory()  # noqa: F821
    total = C(0)  # noqa: F821
    for i in range(thread_index(), n, THREADS):  # noqa: F821
        total += load_x(x, i)  # noqa: F821
    total = block_sum(partial, total)
    barrier()
    if thread_index() == 0:
        store_y(y, 0, total)  # noqa: F821


def user_kernels(dtype: DType) -> None:
    device = fn.default_device()
    x, y = Tensor.empty((1000,), dtype=dtype), Tensor.empty((1000,), dtype=dtype)
    fn.launch_kernel(fn.ensure_kernel(device, "elements", elements), 1000, y, x, 0.5, 1000)
    shared = {"memory": Array(dtype.accumulator, 256, shared=True)}
    fn.launch_kernel(fn.ensure_kernel(device, "row_sums", row_sums, bindings=shared), (1, 256), y, x, 1000)
