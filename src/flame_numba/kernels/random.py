"""Random numbers from a counter: element i depends on (seed, offset, i) alone, whatever the launch or the machine.

Philox4x32-10: ten rounds of multiply and exchange turn a counter and a key into four random words.
(Salmon, Moraes, Dror and Shaw 2011) And the check of weights that something is drawn by.
"""

from __future__ import annotations

from typing import Any

from ..dtypes import DType, float64, int64, uint64
from .compiler.compile import Program
from .language import (
    INF,
    THREADS,
    WORDS,
    Array,
    Binding,
    C,
    Helper,
    I,
    Load,
    Number,
    Pointer,
    Store,
    U,
    block_count,
    block_index,
    block_sum,
    cos,
    fault,
    grid,
    gridsize,
    load_x,
    log,
    own_words,
    shared,
    sqrt,
    store_y,
    thread_index,
    udiv,
)


def philox(words: Pointer, seed: int, counter: int) -> None:
    """Fill `words` with four random 32-bit words."""
    mask = U(0xFFFFFFFF)
    k0 = U(seed) & mask
    k1 = U(seed) >> U(32)
    c0 = U(counter) & mask
    c1 = U(counter) >> U(32)
    c2 = U(0)
    c3 = U(0)
    for _ in range(10):
        p0 = U(c0 * U(0xD2511F53))
        p1 = U(c2 * U(0xCD9E8D57))
        c0 = U((p1 >> U(32)) ^ c1 ^ k0)
        c1 = U(p1 & mask)
        c2 = U((p0 >> U(32)) ^ c3 ^ k1)
        c3 = U(p0 & mask)
        k0 = U((k0 + U(0x9E3779B9)) & mask)
        k1 = U((k1 + U(0xBB67AE85)) & mask)
    words[0] = c0
    words[1] = c1
    words[2] = c2
    words[3] = c3


def fraction(words: Pointer, j: int) -> Number:
    """The j-th number in [0, 1): 24 bits for f32, 53 for f64, so that it is exact and never 1."""
    if WORDS == 1:
        return C(words[j] >> U(8)) * C(2.0**-24)
    return C((words[2 * j] >> U(5)) * U(67108864) + (words[2 * j + 1] >> U(6))) * C(2.0**-53)


def uniform(y: Pointer, low: Number, high: Number, last: Number, seed: int, offset: int, n: int) -> None:
    """y[i] = low + (high − low)·u with u in [0, 1), but at most `last`: the sum is rounded."""
    words = own_words()
    each = 4 // WORDS
    for group in range(grid(), udiv(n + each - 1, each), gridsize()):
        philox(words, seed, offset + group)
        for j in range(min(each, n - group * each)):
            value = low + (high - low) * fraction(words, j)
            store_y(y, group * each + j, value if value < last else last)


def normal(y: Pointer, mean: Number, std: Number, seed: int, offset: int, n: int) -> None:
    """y[i] = mean + std·z; z from two uniform numbers. (Box and Muller 1958)"""
    words = own_words()
    each = 4 // WORDS
    for group in range(grid(), udiv(n + each - 1, each), gridsize()):
        philox(words, seed, offset + group)
        for j in range(0, min(each, n - group * each), 2):
            radius = sqrt(C(-2) * log(C(1) - fraction(words, j)))
            angle = C(6.283185307179586) * fraction(words, j + 1)
            store_y(y, group * each + j, mean + std * radius * cos(angle))
            if group * each + j + 1 < n:
                store_y(y, group * each + j + 1, mean + std * radius * cos(angle - C(1.5707963267948966)))


def integers(y: Pointer, low: int, span: int, seed: int, offset: int, n: int) -> None:
    """y[i] uniform in low … low + span − 1, by the high part of a product (bias below span/2⁶⁴). A span of 0 is 2⁶⁴."""
    words = own_words()
    for i in range(grid(), n, gridsize()):
        philox(words, seed, offset + i)
        bits = U(words[0] | (words[1] << U(32)))
        store_y(y, i, low + I(high_product(bits, U(span)) if span != 0 else bits))


def high_product(a: Number, b: Number) -> Number:
    """The upper 64 bits of a 128-bit product."""
    mask = U(0xFFFFFFFF)
    a0 = a & mask
    a1 = a >> U(32)
    b0 = b & mask
    b1 = b >> U(32)
    middle = U(a1 * b0 + ((a0 * b0) >> U(32)))
    other = U(a0 * b1 + (middle & mask))
    return U(a1 * b1 + (middle >> U(32)) + (other >> U(32)))


def dropout(y: Pointer, x: Pointer, threshold: int, scale: Number, seed: int, offset: int, n: int) -> None:
    """y[i] = scale·x[i] if random word i is at least the threshold (of 2³²), else 0. Four words a counter."""
    words = own_words()
    for group in range(grid(), udiv(n + 3, 4), gridsize()):
        philox(words, seed, offset + group)
        for j in range(4):
            i = group * 4 + j
            if i < n:
                store_y(y, i, load_x(x, i) * scale if words[j] >= U(threshold) else C(0))


def check_weights(x: Pointer, cell: Pointer, code: int, rows: int, n: int) -> None:
    """A fault unless all x ≥ 0 and each row's sum is finite and above 0."""
    partial = shared()
    t = thread_index()
    for row in range(block_index(), rows, block_count()):
        total = C(0)
        for j in range(t, n, THREADS):
            v = load_x(x, row * n + j)
            total += v
            if not v >= C(0):
                fault(cell, code)
        total = block_sum(partial, total)
        if t == 0 and not (total > C(0) and total < C(INF)):
            fault(cell, code)


def _program(
    function: Any, dtype: DType, arguments: tuple[DType | str, ...], compute: DType, **more: Binding
) -> Program:
    return Program(
        f"random_{function.__name__}",
        arguments,
        compute,
        {
            "store_y": Store(dtype, compute if compute.is_floating else int64),
            "own_words": Array(uint64, 4, shared=False),
            "U": uint64,
            "I": int64,
            "WORDS": 2 if compute is float64 else 1,
            "philox": Helper(philox, 3, None),
            "fraction": Helper(fraction, 2, compute),
            "high_product": Helper(high_product, 2, uint64),
            **more,
        },
        function=function,
    )


def uniform_program(dtype: DType) -> Program:
    return _program(uniform, dtype, (dtype, "number", "number", "number", "int", "int", "int"), dtype.accumulator)


def normal_program(dtype: DType) -> Program:
    return _program(normal, dtype, (dtype, "number", "number", "int", "int", "int"), dtype.accumulator)


def integers_program(dtype: DType) -> Program:
    return _program(integers, dtype, (dtype, "int", "int", "int", "int", "int"), int64)


def dropout_program(dtype: DType) -> Program:
    c = dtype.accumulator
    return _program(dropout, dtype, (dtype, dtype, "int", "number", "int", "int", "int"), c, load_x=Load(dtype, c))


def weights_program(dtype: DType, threads: int) -> Program:
    c = dtype.accumulator
    bindings: dict[str, Binding] = {"load_x": Load(dtype, c), "shared": Array(c, threads, shared=True)}
    arguments = (dtype, int64, "int", "int", "int")
    return Program("check_weights", arguments, c, bindings, function=check_weights, threads=threads)
