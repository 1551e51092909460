"""Bisection of sorted rows, and lists of places: where flags are set, coordinates, permuted writes."""

from __future__ import annotations

from ...dtypes import DType, bool_, int64
from ..compiler.compile import Program
from ..language import (
    RIGHT,
    Helper,
    Load,
    Number,
    Pointer,
    Store,
    before,
    grid,
    gridsize,
    load_flag,
    load_s,
    load_v,
    store_y,
    udiv,
)


def less_number(a: Number, b: Number) -> bool:
    """a < b, with NaN above all numbers."""
    return a < b or (b != b and a == a)


def search_sorted(y: Pointer, x: Pointer, values: Pointer, n: int, each: int, total: int) -> None:
    """y = where a value would go in its sorted row of n, before equals or after them; `each` values have one row."""
    for item in range(grid(), total, gridsize()):
        base = udiv(item, each) * n
        value = load_v(values, item)
        low = 0
        high = n
        while low < high:
            half = (low + high) >> 1
            here = load_s(x, base + half)
            further = not before(value, here) if RIGHT else before(here, value)
            if further:
                low = half + 1
            else:
                high = half
        store_y(y, item, low)


def collect(y: Pointer, x: Pointer, ends: Pointer, n: int) -> None:
    """y[ends[i] − 1] = i where x[i] is not 0; ends: how many there are up to i."""
    for i in range(grid(), n, gridsize()):
        if load_flag(x, i):
            store_y(y, ends[i] - 1, i)


def coordinate(y: Pointer, flat: Pointer, n: int, stride: int, size: int) -> None:
    """The index along one axis of elements given by their places in row-major order."""
    for i in range(grid(), n, gridsize()):
        block = udiv(flat[i], stride)
        store_y(y, i, block - udiv(block, size) * size)


def put(y: Pointer, places: Pointer, values: Pointer, n: int) -> None:
    """y[places[i]] = values[i]; the places are distinct."""
    for i in range(grid(), n, gridsize()):
        store_y(y, places[i], values[i])


def search_program(dtype: DType, right: bool) -> Program:
    compute = dtype.accumulator
    bindings = {
        "load_s": Load(dtype, compute),
        "load_v": Load(dtype, compute),
        "before": Helper(less_number, 2, bool_),
        "store_y": Store(int64, int64),
        "RIGHT": right,
    }
    return Program("search_sorted", (int64, dtype, dtype, *("int",) * 3), compute, bindings, function=search_sorted)


def collect_program(dtype: DType) -> Program:
    bindings = {"load_flag": Load(dtype, bool_), "store_y": Store(int64, int64)}
    return Program("collect", (int64, dtype, int64, "int"), int64, bindings, function=collect)


def coordinate_program() -> Program:
    bindings = {"store_y": Store(int64, int64)}
    return Program("coordinate", (int64, int64, *("int",) * 3), int64, bindings, function=coordinate)


def put_program() -> Program:
    return Program("put", (int64, int64, int64, "int"), int64, {"store_y": Store(int64, int64)}, function=put)
