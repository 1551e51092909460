"""Norms over groups of channels, or over a batch: moments, application, gradients of a contiguous (N, C, S) tensor.

A row is what is normalised together. It has `pieces` runs of `size` neighbouring elements, the k-th at
row·row_stride + k·piece_stride: all channels of a group (group norm), or one channel of each item (batch norm).
The weight of a piece is w[(row mod period)·row_step + k·piece_step].

Short rows take one kernel, a block a row. Long ones are cut into parts, chunks of a piece: moments of the parts,
merged by row (Chan, Golub and LeVeque 1979), then applied part by part. Every sum has a fixed order.
"""

from __future__ import annotations

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    BIAS,
    THREADS,
    WEIGHT,
    Array,
    Binding,
    C,
    Helper,
    Inline,
    Load,
    Number,
    Pointer,
    Store,
    block_count,
    block_index,
    block_sum,
    corrected,
    load_g,
    load_m,
    load_w,
    load_x,
    moved_on,
    part_of,
    rsqrt,
    shared,
    span,
    store_m,
    store_y,
    thread_index,
    udiv,
)
from ..reduce.reduce import SPAN
from . import blocks


def _moved_on(k: int, s: int, step_k: int, step_s: int, size: int) -> tuple[int, int]:
    """Where a thread comes next, as (piece, element of it): no division in the loops."""
    k += step_k
    s += step_s
    return (k + 1, s - size) if s >= size else (k, s)


def _part_of(part: int, pieces: int, chunk: int, chunks: int) -> tuple[int, int, int]:
    """The row of a part, the piece of the row, and the first element of the piece."""
    piece = udiv(part, chunks)
    row = udiv(piece, pieces)
    return row, piece - row * pieces, (part - piece * chunks) * chunk


def channel_norm(
    y: Pointer, mean: Pointer, variance: Pointer, x: Pointer, w: Pointer, b: Pointer, eps: Number, rows: int,
    row_stride: int, pieces: int, piece_stride: int, size: int, period: int, row_step: int, piece_step: int,
) -> None:  # fmt: skip
    """y = (x − mean) / √(variance + eps)·w + b, a block a row; mean and variance are kept."""
    partial = shared()
    t = thread_index()
    n = pieces * size
    first_k = udiv(t, size)  # where a thread begins, and its step, as (piece, element)
    first_s = t - first_k * size
    step_k = udiv(THREADS, size)
    step_s = THREADS - step_k * size
    step = span(n)
    for row in range(block_index(), rows, block_count()):
        base = row * row_stride
        center = C(0)
        k = first_k
        s = first_s
        for begin in range(t, n, step):
            some = C(0)
            for _ in range(begin, min(begin + step, n), THREADS):
                some += load_x(x, base + k * piece_stride + s)
                k, s = moved_on(k, s, step_k, step_s, size)
            center += some
        center = block_sum(partial, center) / C(n)
        spread = C(0)
        rest = C(0)
        k = first_k
        s = first_s
        for begin in range(t, n, step):
            some = C(0)
            left = C(0)
            for _ in range(begin, min(begin + step, n), THREADS):
                v = load_x(x, base + k * piece_stride + s) - center
                some += v * v
                left += v
                k, s = moved_on(k, s, step_k, step_s, size)
            spread += some
            rest += left
        rest = block_sum(partial, rest) / C(n)  # the mean was rounded: what is left corrects it
        center += rest
        spread = corrected(block_sum(partial, spread), rest, C(n)) / C(n)
        if t == 0:
            store_m(mean, row, center)
            store_m(variance, row, spread)
        r = rsqrt(spread + eps)
        at = (row - udiv(row, period) * period) * row_step
        k = first_k
        s = first_s
        for _ in range(t, n, THREADS):
            i = base + k * piece_stride + s
            v = (load_x(x, i) - center) * r
            if WEIGHT:
                v *= load_w(w, at + k * piece_step)
            if BIAS:
                v += load_w(b, at + k * piece_step)
            store_y(y, i, v)
            k, s = moved_on(k, s, step_k, step_s, size)


def channel_moments(
    mean: Pointer, spread: Pointer, x: Pointer, rows: int, row_stride: int, pieces: int, piece_stride: int, size: int,
    chunk: int, chunks: int,
) -> None:  # fmt: skip
    """Of each part: its mean, and the sum of squared distances from it."""
    partial = shared()
    t = thread_index()
    step = span(chunk)
    for part in range(block_index(), rows * pieces * chunks, block_count()):
        row, k, begin = part_of(part, pieces, chunk, chunks)
        base = row * row_stride + k * piece_stride
        end = min(begin + chunk, size)
        center = C(0)
        for start in range(begin + t, end, step):
            some = C(0)
            for s in range(start, min(start + step, end), THREADS):
                some += load_x(x, base + s)
            center += some
        center = block_sum(partial, center) / C(end - begin)
        total = C(0)
        rest = C(0)
        for start in range(begin + t, end, step):
            some = C(0)
            left = C(0)
            for s in range(start, min(start + step, end), THREADS):
                v = load_x(x, base + s) - center
                some += v * v
                left += v
            total += some
            rest += left
        rest = block_sum(partial, rest) / C(end - begin)
        center += rest
        total = corrected(block_sum(partial, total), rest, C(end - begin))
        if t == 0:
            store_m(mean, part, center)
            store_m(spread, part, total)


def merge_moments(
    mean: Pointer, variance: Pointer, part_mean: Pointer, part_spread: Pointer, rows: int, pieces: int, size: int,
    chunk: int, chunks: int,
) -> None:  # fmt: skip
    """Mean and variance of each row from those of its parts."""
    partial = shared()
    t = thread_index()
    parts = pieces * chunks
    step = span(parts)
    n = C(pieces * size)
    for row in range(block_index(), rows, block_count()):
        center = C(0)
        for first in range(t, parts, step):
            some = C(0)
            for i in range(first, min(first + step, parts), THREADS):
                begin = (i - udiv(i, chunks) * chunks) * chunk
                some += C(min(chunk, size - begin)) * load_m(part_mean, row * parts + i)
            center += some
        center = block_sum(partial, center) / n
        total = C(0)
        rest = C(0)
        for first in range(t, parts, step):
            some = C(0)
            left = C(0)
            for i in range(first, min(first + step, parts), THREADS):
                begin = (i - udiv(i, chunks) * chunks) * chunk
                v = load_m(part_mean, row * parts + i) - center
                weighted = C(min(chunk, size - begin)) * v
                some += load_m(part_spread, row * parts + i) + weighted * v
                left += weighted
            total += some
            rest += left
        rest = block_sum(partial, rest) / n
        center += rest
        total = corrected(block_sum(partial, total), rest, n)
        if t == 0:
            store_m(mean, row, center)
            store_m(variance, row, total / n)


def channel_apply(
    y: Pointer, mean: Pointer, variance: Pointer, x: Pointer, w: Pointer, b: Pointer, eps: Number, rows: int,
    row_stride: int, pieces: int, piece_stride: int, size: int, period: int, row_step: int, piece_step: int, chunk: int,
    chunks: int,
) -> None:  # fmt: skip
    """y = (x − mean) / √(variance + eps)·w + b, a block a part."""
    for part in range(block_index(), rows * pieces * chunks, block_count()):
        row, k, begin = part_of(part, pieces, chunk, chunks)
        base = row * row_stride + k * piece_stride
        at = (row - udiv(row, period) * period) * row_step + k * piece_step
        center = load_m(mean, row)
        factor = rsqrt(load_m(variance, row) + eps)
        if WEIGHT:
            factor *= load_w(w, at)
        offset = C(0)
        if BIAS:
            offset = load_w(b, at)
        for s in range(begin + thread_index(), min(begin + chunk, size), THREADS):
            store_y(y, base + s, (load_x(x, base + s) - center) * factor + offset)


def channel_sums(
    first: Pointer, second: Pointer, mean: Pointer, variance: Pointer, x: Pointer, g: Pointer, eps: Number, rows: int,
    row_stride: int, pieces: int, piece_stride: int, size: int, chunk: int, chunks: int,
) -> None:  # fmt: skip
    """Of each part: Σ g and Σ g·x̂."""
    partial = shared()
    t = thread_index()
    step = span(chunk)
    for part in range(block_index(), rows * pieces * chunks, block_count()):
        row, k, begin = part_of(part, pieces, chunk, chunks)
        base = row * row_stride + k * piece_stride
        end = min(begin + chunk, size)
        center = load_m(mean, row)
        r = rsqrt(load_m(variance, row) + eps)
        a = C(0)
        b = C(0)
        for start in range(begin + t, end, step):
            some = C(0)
            other = C(0)
            for s in range(start, min(start + step, end), THREADS):
                v = load_g(g, base + s)
                some += v
                other += v * (load_x(x, base + s) - center) * r
            a += some
            b += other
        a = block_sum(partial, a)
        b = block_sum(partial, b)
        if t == 0:
            store_m(first, part, a)
            store_m(second, part, b)


def channel_row_sums(
    row_first: Pointer, row_second: Pointer, first: Pointer, second: Pointer, w: Pointer, rows: int, pieces: int,
    size: int, period: int, row_step: int, piece_step: int, chunks: int,
) -> None:  # fmt: skip
    """Of each row: the means of u = g·w and of u·x̂, from the sums of its parts."""
    partial = shared()
    t = thread_index()
    parts = pieces * chunks
    step = span(parts)
    n = C(pieces * size)
    for row in range(block_index(), rows, block_count()):
        at = (row - udiv(row, period) * period) * row_step
        a = C(0)
        b = C(0)
        for begin in range(t, parts, step):
            some = C(0)
            other = C(0)
            for i in range(begin, min(begin + step, parts), THREADS):
                u = load_m(first, row * parts + i)
                v = load_m(second, row * parts + i)
                if WEIGHT:
                    factor = load_w(w, at + udiv(i, chunks) * piece_step)
                    u *= factor
                    v *= factor
                some += u
                other += v
            a += some
            b += other
        a = block_sum(partial, a)
        b = block_sum(partial, b)
        if t == 0:
            store_m(row_first, row, a / n)
            store_m(row_second, row, b / n)


def channel_gradient(
    dx: Pointer, mean: Pointer, variance: Pointer, row_first: Pointer, row_second: Pointer, x: Pointer, g: Pointer,
    w: Pointer, eps: Number, rows: int, row_stride: int, pieces: int, piece_stride: int, size: int, period: int,
    row_step: int, piece_step: int, chunk: int, chunks: int,
) -> None:  # fmt: skip
    """dx = (g·w − mean(g·w) − x̂·mean(g·w·x̂)) / √(variance + eps), a block a part."""
    for part in range(block_index(), rows * pieces * chunks, block_count()):
        row, k, begin = part_of(part, pieces, chunk, chunks)
        base = row * row_stride + k * piece_stride
        center = load_m(mean, row)
        r = rsqrt(load_m(variance, row) + eps)
        a = load_m(row_first, row)
        b = load_m(row_second, row)
        factor = C(1)
        if WEIGHT:
            factor = load_w(w, (row - udiv(row, period) * period) * row_step + k * piece_step)
        for s in range(begin + thread_index(), min(begin + chunk, size), THREADS):
            normal = (load_x(x, base + s) - center) * r
            store_y(dx, base + s, (load_g(g, base + s) * factor - a - normal * b) * r)


def _bindings(dtype: DType, weight: DType, threads: int) -> dict[str, Binding]:
    c = dtype.accumulator
    return {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "load_w": Load(weight, c), "load_m": Load(c, c),
        "store_m": Store(c, c), "store_y": Store(dtype, c), "shared": Array(c, threads, shared=True),
        "span": SPAN, "corrected": Helper(blocks.corrected, 3, c),
        "moved_on": Inline(_moved_on), "part_of": Inline(_part_of),
    }  # fmt: skip


def _forward(
    function: object, dtype: DType, weight: DType, weighted: bool, bias: bool, threads: int, n: int
) -> Program:
    c = dtype.accumulator
    bindings = {**_bindings(dtype, weight, threads), "WEIGHT": weighted, "BIAS": bias}
    arguments = (dtype, c, c, dtype, weight, weight, "number") + ("int",) * n
    return Program(function.__name__, arguments, c, bindings, function=function, threads=threads)  # type: ignore[attr-defined, arg-type]


def norm_program(dtype: DType, weight: DType, weighted: bool, bias: bool, threads: int) -> Program:
    return _forward(channel_norm, dtype, weight, weighted, bias, threads, 8)


def apply_program(dtype: DType, weight: DType, weighted: bool, bias: bool, threads: int) -> Program:
    return _forward(channel_apply, dtype, weight, weighted, bias, threads, 10)


def moments_program(dtype: DType, threads: int) -> Program:
    c = dtype.accumulator
    arguments = (c, c, dtype) + ("int",) * 7
    bindings = _bindings(dtype, c, threads)
    return Program("channel_moments", arguments, c, bindings, function=channel_moments, threads=threads)


def merge_program(compute: DType, threads: int) -> Program:
    c = compute
    arguments = (c,) * 4 + ("int",) * 5
    return Program("merge_moments", arguments, c, _bindings(c, c, threads), function=merge_moments, threads=threads)


def sums_program(dtype: DType, threads: int) -> Program:
    c = dtype.accumulator
    arguments = (c, c, c, c, dtype, dtype, "number") + ("int",) * 7
    return Program("channel_sums", arguments, c, _bindings(dtype, c, threads), function=channel_sums, threads=threads)


def row_sums_program(compute: DType, weight: DType, weighted: bool, threads: int) -> Program:
    c = compute
    bindings = {**_bindings(c, weight, threads), "WEIGHT": weighted}
    arguments = (c,) * 4 + (weight,) + ("int",) * 7
    return Program("channel_row_sums", arguments, c, bindings, function=channel_row_sums, threads=threads)


def gradient_program(dtype: DType, weight: DType, weighted: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {**_bindings(dtype, weight, threads), "WEIGHT": weighted}
    arguments = (dtype, c, c, c, c, dtype, dtype, weight, "number") + ("int",) * 10
    return Program("channel_gradient", arguments, c, bindings, function=channel_gradient, threads=threads)
