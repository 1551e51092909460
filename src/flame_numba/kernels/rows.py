"""Kernels over the rows of a contiguous (rows, n) matrix, a block a row: softmax, norms, cross-entropy.

Each reads a row as often as it has passes over it; the passes after the first find it in cache.
"""

from __future__ import annotations

from ..dtypes import DType, int64
from .compile import Program
from .language import (
    AFFINE,
    CENTERED,
    INF,
    LOGARITHM,
    THREADS,
    Array,
    C,
    Load,
    Number,
    Pointer,
    Store,
    block_count,
    block_index,
    block_max,
    block_sum,
    exp,
    fault,
    load_b,
    load_g,
    load_label,
    load_m,
    load_w,
    load_x,
    load_y,
    log,
    rsqrt,
    shared,
    store_m,
    store_s,
    store_y,
    thread_index,
)


def softmax(y: Pointer, x: Pointer, rows: int, n: int) -> None:
    """y = exp(x − max) / Σ exp(x − max), or its logarithm. (Milakov and Gimelshein 2018, the safe form)"""
    partial = shared()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        base = row * n
        top = C(-INF)
        for j in range(t, n, THREADS):
            v = load_x(x, base + j)
            top = v if v > top or v != v else top
        top = block_max(partial, top)
        total = C(0)
        for j in range(t, n, THREADS):
            total += exp(load_x(x, base + j) - top)
        total = block_sum(partial, total)
        if LOGARITHM:
            shift = top + log(total)
            for j in range(t, n, THREADS):
                store_y(y, base + j, load_x(x, base + j) - shift)
        else:
            scale = C(1) / total
            for j in range(t, n, THREADS):
                store_y(y, base + j, exp(load_x(x, base + j) - top) * scale)


def softmax_gradient(dx: Pointer, y: Pointer, g: Pointer, rows: int, n: int) -> None:
    """dx = y·(g − Σ g·y); for the logarithm dx = g − exp(y)·Σ g."""
    partial = shared()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        base = row * n
        total = C(0)
        for j in range(t, n, THREADS):
            v = load_g(g, base + j)
            total += v if LOGARITHM else v * load_y(y, base + j)
        total = block_sum(partial, total)
        for j in range(t, n, THREADS):
            v = load_g(g, base + j)
            u = load_y(y, base + j)
            store_y(dx, base + j, v - exp(u) * total if LOGARITHM else u * (v - total))


def norm(
    y: Pointer, mean: Pointer, rstd: Pointer, x: Pointer, w: Pointer, b: Pointer, eps: Number, rows: int, n: int
) -> None:
    """y = (x − mean)·rstd·w + b with the row's mean (0 if not CENTERED) and 1/√(variance + eps); both are kept."""
    partial = shared()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        base = row * n
        center = C(0)
        if CENTERED:
            for j in range(t, n, THREADS):
                center += load_x(x, base + j)
            center = block_sum(partial, center) / C(n)
        spread = C(0)
        for j in range(t, n, THREADS):
            v = load_x(x, base + j) - center
            spread += v * v
        r = rsqrt(block_sum(partial, spread) / C(n) + eps)
        if t == 0:
            store_m(mean, row, center)
            store_s(rstd, row, r)
        for j in range(t, n, THREADS):
            v = (load_x(x, base + j) - center) * r
            if AFFINE > 0:
                v *= load_w(w, j)
            if AFFINE > 1:
                v += load_b(b, j)
            store_y(y, base + j, v)


def norm_gradient(
    dx: Pointer, mean: Pointer, rstd: Pointer, x: Pointer, w: Pointer, g: Pointer, rows: int, n: int
) -> None:
    """dx = rstd·(u − mean(u) − x̂·mean(u·x̂)) with u = g·w and x̂ the normalised row; without mean(u) if not CENTERED."""
    partial = shared()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        base = row * n
        center = load_m(mean, row)
        r = load_m(rstd, row)
        first = C(0)
        second = C(0)
        for j in range(t, n, THREADS):
            u = load_g(g, base + j)
            if AFFINE > 0:
                u *= load_w(w, j)
            first += u
            second += u * (load_x(x, base + j) - center) * r
        first = block_sum(partial, first) / C(n) if CENTERED else C(0)
        second = block_sum(partial, second) / C(n)
        for j in range(t, n, THREADS):
            u = load_g(g, base + j)
            if AFFINE > 0:
                u *= load_w(w, j)
            normal = (load_x(x, base + j) - center) * r
            store_y(dx, base + j, r * (u - first - normal * second))


def cross_entropy(
    loss: Pointer, lse: Pointer, x: Pointer, labels: Pointer, cell: Pointer, code: int, rows: int, n: int
) -> None:
    """loss[row] = log Σ exp(x) − x[label]; the logarithm of the sum is kept. A label out of range is a fault."""
    partial = shared()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        base = row * n
        top = C(-INF)
        for j in range(t, n, THREADS):
            v = load_x(x, base + j)
            top = v if v > top or v != v else top
        top = block_max(partial, top)
        total = C(0)
        for j in range(t, n, THREADS):
            total += exp(load_x(x, base + j) - top)
        shift = top + log(block_sum(partial, total))
        if t == 0:
            label = load_label(labels, row)
            if label < 0 or label >= n:
                fault(cell, code)
                label = 0
            store_y(loss, row, shift - load_x(x, base + label))
            store_s(lse, row, shift)


def cross_entropy_gradient(
    dx: Pointer, x: Pointer, lse: Pointer, labels: Pointer, g: Pointer, rows: int, n: int
) -> None:
    """dx = (exp(x − lse) − [j = label])·g[row]."""
    for row in range(block_index(), rows, block_count()):
        base = row * n
        label = load_label(labels, row)
        shift = load_m(lse, row)
        scale = load_g(g, row)
        for j in range(thread_index(), n, THREADS):
            p = exp(load_x(x, base + j) - shift)
            store_y(dx, base + j, (p - C(1) if j == label else p) * scale)


def _shared(compute: DType, threads: int) -> Array:
    return Array(compute, threads, shared=True)


def softmax_program(dtype: DType, logarithm: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c),
        "store_y": Store(dtype, c),
        "shared": _shared(c, threads),
        "LOGARITHM": logarithm,
    }
    name = "log_softmax" if logarithm else "softmax"
    return Program(name, (dtype, dtype, "int", "int"), c, bindings, function=softmax, threads=threads)


def softmax_gradient_program(dtype: DType, logarithm: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_g": Load(dtype, c), "load_y": Load(dtype, c), "store_y": Store(dtype, c),
        "shared": _shared(c, threads), "LOGARITHM": logarithm,
    }  # fmt: skip
    name = "log_softmax_gradient" if logarithm else "softmax_gradient"
    return Program(name, (dtype,) * 3 + ("int",) * 2, c, bindings, function=softmax_gradient, threads=threads)


def norm_program(dtype: DType, weight: DType, affine: int, centered: bool, threads: int) -> Program:
    """affine: 0 neither weight nor bias, 1 a weight, 2 both."""
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_w": Load(weight, c), "load_b": Load(weight, c), "store_y": Store(dtype, c),
        "store_m": Store(c, c), "store_s": Store(c, c), "shared": _shared(c, threads),
        "AFFINE": affine, "CENTERED": centered,
    }  # fmt: skip
    arguments = (dtype, c, c, dtype, weight, weight, "number", "int", "int")
    return Program("layer_norm" if centered else "rms_norm", arguments, c, bindings, function=norm, threads=threads)


def norm_gradient_program(dtype: DType, weight: DType, affine: int, centered: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_w": Load(weight, c), "load_g": Load(dtype, c), "load_m": Load(c, c),
        "store_y": Store(dtype, c), "shared": _shared(c, threads), "AFFINE": affine, "CENTERED": centered,
    }  # fmt: skip
    name = "layer_norm_gradient" if centered else "rms_norm_gradient"
    arguments = (dtype, c, c, dtype, weight, dtype, "int", "int")
    return Program(name, arguments, c, bindings, function=norm_gradient, threads=threads)


def cross_entropy_program(dtype: DType, labels: DType, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_label": Load(labels, int64), "store_y": Store(dtype, c),
        "store_s": Store(c, c), "shared": _shared(c, threads),
    }  # fmt: skip
    arguments = (dtype, c, dtype, labels, int64, "int", "int", "int")
    return Program("cross_entropy", arguments, c, bindings, function=cross_entropy, threads=threads)


def cross_entropy_gradient_program(dtype: DType, labels: DType, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_m": Load(c, c), "load_label": Load(labels, int64), "load_g": Load(dtype, c),
        "store_y": Store(dtype, c),
    }  # fmt: skip
    arguments = (dtype, dtype, c, labels, dtype, "int", "int")
    return Program("cross_entropy_gradient", arguments, c, bindings, function=cross_entropy_gradient, threads=threads)


def row_threads(n: int) -> int:
    """Threads for a row: enough to keep the memory busy, no more than it has work for."""
    return 32 if n <= 256 else 256
