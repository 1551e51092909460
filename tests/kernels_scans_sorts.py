"""Launches of the scan, sort and search kernels, for tests/test_sm90.py: each variant that a GPU would run."""

from __future__ import annotations

import flame_numba as fn
from flame_numba.dtypes import DType
from flame_numba.kernels.order.search import collect_program, put_program
from flame_numba.kernels.reduce.associative import COUNT
from flame_numba.ops.core.launch import run
from flame_numba.ops.index.orders import coordinates, order_rows, scan_axis
from flame_numba.tensor import Tensor


def scans_and_sorts(dtype: DType) -> None:
    for shape, axis in (((3, 100), 1), ((3, 1000), 1), ((1 << 22,), 0), ((100, 64), 0), ((1 << 14, 64), 0)):
        x = Tensor.empty(shape, dtype=dtype)
        fn.cumsum(x, axis)
    fn.cumprod(Tensor.empty((3, 100), dtype=dtype), 1)
    fn.logcumsumexp(Tensor.empty((3, 100), dtype=dtype))
    fn.cummax(Tensor.empty((3, 100), dtype=dtype))
    for n in (100, 1 << 20):
        x = Tensor.empty((n,), dtype=dtype).requires_grad_()
        fn.linear_recurrence(x, x).backward(Tensor.empty((n,), dtype=dtype))
    for kind, sizes in ((dtype, (50, 300, 2000, 5000)), (fn.int64, (2000, 5000)), (fn.bool, (5000,))):
        for n in sizes:
            order_rows(Tensor.empty((4, n), dtype=kind))
    x = Tensor.empty((1000,), dtype=dtype)
    for side in ("left", "right"):
        fn.searchsorted(x, Tensor.empty((40,), dtype=dtype), side=side)
    ends = Tensor.empty((1000,), dtype=fn.int64)
    scan_axis(x, COUNT, 0, False, fn.int64, fn.int64)
    run(x.device, collect_program, (dtype,), (ends, x, ends, 1000), 4)
    run(x.device, put_program, (), (ends, ends, ends, 1000), 4)
    coordinates(Tensor.empty((10,), dtype=fn.int64), (3, 4))
