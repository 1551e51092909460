"""Gather, and its adjoint scatter-add, along the middle axis of (outer, size, inner). No atomics: bits repeat."""

from __future__ import annotations

from ..dtypes import DType, float64, int64
from .compile import Program
from .language import C, Load, Number, Pointer, Store, fault, grid, gridsize, load_g, load_i, load_x, store_y, udiv


def gather(
    y: Pointer, x: Pointer, index: Pointer, cell: Pointer, code: int, outer: int, size: int, inner: int, n: int,
    i_outer: int, i_n: int, i_inner: int, x_outer: int, x_axis: int, x_inner: int,
) -> None:  # fmt: skip
    """y[o, j, i] = x[o, index[o, j, i], i]. Negative indices count from the end; one out of range is a fault."""
    for item in range(grid(), outer * n * inner, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, n)
        j = rest - o * n
        at = load_i(index, o * i_outer + j * i_n + i * i_inner)
        if at < 0:
            at += size
        if at < 0 or at >= size:
            fault(cell, code)
            store_y(y, item, C(0))
        else:
            store_y(y, item, load_x(x, o * x_outer + at * x_axis + i * x_inner))


def scatter_add(
    y: Pointer, g: Pointer, index: Pointer, cell: Pointer, code: int, outer: int, size: int, inner: int, n: int,
    i_outer: int, i_n: int, i_inner: int, ranges: int,
) -> None:  # fmt: skip
    """y[o, index[o, j, i], i] += g[o, j, i], into accumulators that hold a start value.

    A thread owns the targets of one (o, i) in one range of the axis, and adds to them in the order of j.
    """
    span = udiv(size + ranges - 1, ranges)
    for item in range(grid(), outer * ranges * inner, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, ranges)
        low = (rest - o * ranges) * span
        high = min(low + span, size)
        for j in range(n):
            at = load_i(index, o * i_outer + j * i_n + i * i_inner)
            if at < 0:
                at += size
            if at < 0 or at >= size:
                fault(cell, code)
            elif low <= at and at < high:
                k = (o * size + at) * inner + i
                store_y(y, k, y[k] + load_g(g, (o * n + j) * inner + i))


def _compute(dtype: DType) -> DType:
    return dtype if dtype.kind == "bool" else dtype.accumulator


def gather_program(dtype: DType, index: DType) -> Program:
    compute = _compute(dtype)
    bindings = {"load_x": Load(dtype, compute), "load_i": Load(index, int64), "store_y": Store(dtype, compute)}
    return Program("gather", (dtype, dtype, index, int64, *("int",) * 11), compute, bindings, function=gather)


def scatter_add_program(dtype: DType, index: DType) -> Program:
    """The target is an array of dtype's accumulators."""
    compute = dtype.accumulator
    bindings = {"load_g": Load(dtype, compute), "load_i": Load(index, int64), "store_y": Store(compute, compute)}
    return Program(
        "scatter_add", (compute, dtype, index, int64, *("int",) * 9), compute, bindings, function=scatter_add
    )


def iota(y: Pointer, start: Number, step: Number, n: int) -> None:
    """y[i] = start + i·step, each from i alone: no error adds up."""
    for i in range(grid(), n, gridsize()):
        store_y(y, i, start + C(i) * step)


def iota_program(dtype: DType) -> Program:
    compute = float64 if dtype.is_floating else dtype.accumulator
    return Program(
        "iota", (dtype, "number", "number", "int"), compute, {"store_y": Store(dtype, compute)}, function=iota
    )
