"""Norms of the rows of a contiguous (rows, n) matrix, a block a row: layer and RMS norm, and their gradients.

Weight and bias are one row of n, or one for each `period` rows (a modulation for each item of a batch).
"""

from __future__ import annotations

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    BIAS,
    CENTERED,
    PIECE,
    THREADS,
    WEIGHT,
    Array,
    Binding,
    C,
    Helper,
    Load,
    Number,
    Pointer,
    Store,
    block_count,
    block_index,
    block_sum,
    corrected,
    load_b,
    load_g,
    load_m,
    load_w,
    load_x,
    rsqrt,
    shared,
    span,
    store_m,
    store_w,
    store_y,
    thread_index,
    udiv,
)
from ..reduce.reduce import PIECE_LENGTH, SPAN
from . import blocks

NO_WEIGHT, FACTOR, ONE_PLUS = 0, 1, 2  # WEIGHT: nothing, w, or 1 + w


def norm(
    y: Pointer, mean: Pointer, rstd: Pointer, x: Pointer, w: Pointer, b: Pointer, eps: Number, rows: int, n: int,
    period: int,
) -> None:  # fmt: skip
    """y = (x − mean)·rstd·w + b with the row's mean (0 if not CENTERED) and 1/√(variance + eps); both are kept."""
    partial = shared()
    t = thread_index()
    step = span(n)
    for row in range(block_index(), rows, block_count()):
        base = row * n
        at = udiv(row, period) * n
        center = C(0)
        if CENTERED:
            for begin in range(t, n, step):
                piece = C(0)
                for j in range(begin, min(begin + step, n), THREADS):
                    piece += load_x(x, base + j)
                center += piece
            center = block_sum(partial, center) / C(n)
        spread = C(0)
        rest = C(0)
        for begin in range(t, n, step):
            piece = C(0)
            left = C(0)
            for j in range(begin, min(begin + step, n), THREADS):
                v = load_x(x, base + j) - center
                piece += v * v
                left += v
            spread += piece
            rest += left
        spread = block_sum(partial, spread)
        if CENTERED:  # the mean was rounded: what is left corrects it, so that equal elements become 0
            rest = block_sum(partial, rest) / C(n)
            center += rest
            spread = corrected(spread, rest, C(n))
        r = rsqrt(spread / C(n) + eps)
        if t == 0:
            store_m(mean, row, center)
            store_m(rstd, row, r)
        for j in range(t, n, THREADS):
            v = (load_x(x, base + j) - center) * r
            if WEIGHT == 1:
                v *= load_w(w, at + j)
            if WEIGHT == 2:
                v *= C(1) + load_w(w, at + j)
            if BIAS:
                v += load_b(b, at + j)
            store_y(y, base + j, v)


def norm_gradient(
    dx: Pointer, mean: Pointer, rstd: Pointer, x: Pointer, w: Pointer, g: Pointer, rows: int, n: int, period: int
) -> None:
    """dx = rstd·(u − mean(u) − x̂·mean(u·x̂)) with u = g·w and x̂ the normalised row; without mean(u) if not CENTERED."""
    partial = shared()
    t = thread_index()
    step = span(n)
    for row in range(block_index(), rows, block_count()):
        base = row * n
        at = udiv(row, period) * n
        center = load_m(mean, row)
        r = load_m(rstd, row)
        first = C(0)
        second = C(0)
        for begin in range(t, n, step):
            piece = C(0)
            other = C(0)
            for j in range(begin, min(begin + step, n), THREADS):
                u = load_g(g, base + j)
                if WEIGHT == 1:
                    u *= load_w(w, at + j)
                if WEIGHT == 2:
                    u *= C(1) + load_w(w, at + j)
                piece += u
                other += u * (load_x(x, base + j) - center) * r
            first += piece
            second += other
        first = block_sum(partial, first) / C(n) if CENTERED else C(0)
        second = block_sum(partial, second) / C(n)
        for j in range(t, n, THREADS):
            u = load_g(g, base + j)
            if WEIGHT == 1:
                u *= load_w(w, at + j)
            if WEIGHT == 2:
                u *= C(1) + load_w(w, at + j)
            normal = (load_x(x, base + j) - center) * r
            store_y(dx, base + j, r * (u - first - normal * second))


def norm_parameters(
    dw: Pointer, db: Pointer, mean: Pointer, rstd: Pointer, x: Pointer, g: Pointer, segments: int, n: int, period: int,
    chunk: int, chunks: int,
) -> None:  # fmt: skip
    """dw[segment, chunk] = Σ g·x̂ and, if BIAS, db = Σ g over a chunk of each segment's `period` rows.

    A thread a column: neighbours read neighbours, and each sum runs in the order of the rows, piece by piece.
    """
    groups = udiv(n + THREADS - 1, THREADS)
    for item in range(block_index(), segments * chunks * groups, block_count()):
        part = udiv(item, groups)
        j = (item - part * groups) * THREADS + thread_index()
        if j < n:
            segment = udiv(part, chunks)
            begin = (part - segment * chunks) * chunk
            first = C(0)
            second = C(0)
            end = segment * period + min(begin + chunk, period)
            for start in range(segment * period + begin, end, PIECE):
                piece = C(0)
                other = C(0)
                for row in range(start, min(start + PIECE, end)):
                    v = load_g(g, row * n + j)
                    piece += v
                    other += v * (load_x(x, row * n + j) - load_m(mean, row)) * load_m(rstd, row)
                first += piece
                second += other
            store_w(dw, part * n + j, second)
            if BIAS:
                store_w(db, part * n + j, first)


def _common(dtype: DType, weight: DType, threads: int) -> dict[str, Binding]:
    c = dtype.accumulator
    return {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "load_w": Load(weight, c), "load_b": Load(weight, c),
        "load_m": Load(c, c), "store_m": Store(c, c), "store_y": Store(dtype, c),
        "shared": Array(c, threads, shared=True), "span": SPAN, "corrected": Helper(blocks.corrected, 3, c),
    }  # fmt: skip


def _name(centered: bool, what: str = "") -> str:
    return ("layer_norm" if centered else "rms_norm") + what


def norm_program(dtype: DType, weight: DType, kind: int, bias: bool, centered: bool, threads: int) -> Program:
    """kind: NO_WEIGHT, FACTOR or ONE_PLUS. weight: the dtype of weight and bias."""
    c = dtype.accumulator
    bindings = {**_common(dtype, weight, threads), "WEIGHT": kind, "BIAS": bias, "CENTERED": centered}
    arguments = (dtype, c, c, dtype, weight, weight, "number", "int", "int", "int")
    return Program(_name(centered), arguments, c, bindings, function=norm, threads=threads)


def norm_gradient_program(dtype: DType, weight: DType, kind: int, centered: bool, threads: int) -> Program:
    c = dtype.accumulator
    bindings = {**_common(dtype, weight, threads), "WEIGHT": kind, "CENTERED": centered}
    arguments = (dtype, c, c, dtype, weight, dtype, "int", "int", "int")
    return Program(_name(centered, "_gradient"), arguments, c, bindings, function=norm_gradient, threads=threads)


def norm_parameters_program(dtype: DType, out: DType, bias: bool, threads: int) -> Program:
    """out: the dtype of the sums."""
    c = dtype.accumulator
    bindings = {
        "load_x": Load(dtype, c), "load_g": Load(dtype, c), "load_m": Load(c, c), "store_w": Store(out, c),
        "BIAS": bias, "PIECE": PIECE_LENGTH,
    }  # fmt: skip
    arguments = (out, out, c, c, dtype, dtype) + ("int",) * 5
    return Program("norm_parameters", arguments, c, bindings, function=norm_parameters, threads=threads)
