"""Softmax of the rows of a contiguous (rows, n) matrix, a block a row.

Each kernel reads a row as often as it has passes over it; the passes after the first find it in cache.
"""

from __future__ import annotations

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    INF,
    LOGARITHM,
    THREADS,
    Array,
    C,
    Load,
    Pointer,
    Store,
    block_count,
    block_index,
    block_max,
    block_sum,
    exp,
    load_g,
    load_x,
    load_y,
    log,
    shared,
    span,
    store_y,
    thread_index,
)
from ..reduce.reduce import SPAN


def softmax(y: Pointer, x: Pointer, rows: int, n: int) -> None:
    """y = exp(x − max) / Σ exp(x − max), or its logarithm. (Milakov and Gimelshein 2018, the safe form)"""
    partial = shared()
    t = thread_index()
    step = span(n)
    for row in range(block_index(), rows, block_count()):
        base = row * n
        top = C(-INF)
        for j in range(t, n, THREADS):
            v = load_x(x, base + j)
            top = v if v > top or v != v else top
        top = block_max(partial, top)
        total = C(0)
        for begin in range(t, n, step):
            piece = C(0)
            for j in range(begin, min(begin + step, n), THREADS):
                piece += exp(load_x(x, base + j) - top)
            total += piece
        total = block_sum(partial, total)
        if LOGARITHM:
            rest = log(total)  # not added to top: their sum is rounded at the size of top
            for j in range(t, n, THREADS):
                store_y(y, base + j, load_x(x, base + j) - top - rest)
        else:
            scale = C(1) / total
            for j in range(t, n, THREADS):
                store_y(y, base + j, exp(load_x(x, base + j) - top) * scale)


def softmax_gradient(dx: Pointer, y: Pointer, g: Pointer, rows: int, n: int) -> None:
    """dx = y·(g − Σ g·y); for the logarithm dx = g − exp(y)·Σ g."""
    partial = shared()
    t = thread_index()
    step = span(n)
    for row in range(block_index(), rows, block_count()):
        base = row * n
        total = C(0)
        for begin in range(t, n, step):
            piece = C(0)
            for j in range(begin, min(begin + step, n), THREADS):
                v = load_g(g, base + j)
                piece += v if LOGARITHM else v * load_y(y, base + j)
            total += piece
        total = block_sum(partial, total)
        for j in range(t, n, THREADS):
            v = load_g(g, base + j)
            u = load_y(y, base + j)
            store_y(dx, base + j, v - exp(u) * total if LOGARITHM else u * (v - total))


def softmax_program(dtype: DType, logarithm: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c),
        "store_y": Store(dtype, c),
        "shared": Array(c, threads, shared=True),
        "span": SPAN,
        "LOGARITHM": logarithm,
    }
    name = "log_softmax" if logarithm else "softmax"
    return Program(name, (dtype, dtype, "int", "int"), c, bindings, function=softmax, threads=threads)


def softmax_gradient_program(dtype: DType, logarithm: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_g": Load(dtype, c), "load_y": Load(dtype, c), "store_y": Store(dtype, c),
        "shared": Array(c, threads, shared=True), "span": SPAN, "LOGARITHM": logarithm,
    }  # fmt: skip
    name = "log_softmax_gradient" if logarithm else "softmax_gradient"
    return Program(name, (dtype,) * 3 + ("int",) * 2, c, bindings, function=softmax_gradient, threads=threads)
