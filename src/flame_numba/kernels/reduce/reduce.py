"""Reductions from (transform, combine, identity): many inputs to one, along one axis of (outer, n, inner).

Sums run in a fixed order: threads stride along the axis, piece by piece, then a tree. Long axes are cut into chunks
whose partial results are reduced again, which spreads the work over blocks. Both keep rounding errors small.
"""

from __future__ import annotations

from ...dtypes import DType, bool_, int64
from ..compiler.compile import Program
from ..language import (
    IDENTITY,
    LANES,
    PIECE,
    THREADS,
    Array,
    C,
    Function,
    Load,
    Number,
    Pointer,
    Store,
    barrier,
    better,
    block_combine,
    block_count,
    block_index,
    combine,
    load_x,
    shared,
    shared_index,
    store_y,
    thread_index,
    transform,
    udiv,
)
from .associative import Associative

PIECE_LENGTH = 64  # elements that a thread adds up before they join its total: a long sum keeps its digits
_ALL = 1 << 40  # no rounding, no pieces

# span(n): from a piece of a thread to its next, where threads stride along n elements that nothing has cut into chunks.
# A piece has 64 elements, or so many that there are no more pieces than that.
SPAN = Function(
    f"def call(n):\n"
    f"    step = {PIECE_LENGTH} * THREADS\n"
    f"    while step * step < n * THREADS:\n"
    f"        step *= 2\n"
    f"    return step",
    1, int64, int64,
)  # fmt: skip


def reduce_rows(
    y: Pointer, x: Pointer, scale: Number, outputs: int, inner: int, s_outer: int, s_axis: int, s_inner: int, n: int,
    chunk: int, chunks: int,
) -> None:  # fmt: skip
    """y[output, chunk] = scale · the elements of that chunk combined. A block an item: for an axis walked densely."""
    partial = shared()
    for item in range(block_index(), outputs * chunks, block_count()):
        output = udiv(item, chunks)
        start = (item - output * chunks) * chunk
        row = udiv(output, inner)
        base = row * s_outer + (output - row * inner) * s_inner
        end = min(start + chunk, n)
        total = C(IDENTITY)
        for first in range(start + thread_index(), end, PIECE * THREADS):
            piece = C(IDENTITY)
            for k in range(first, min(first + PIECE * THREADS, end), THREADS):
                piece = combine(piece, transform(load_x(x, base + k * s_axis)))
            total = combine(total, piece)
        total = block_combine(partial, total)
        if thread_index() == 0:
            store_y(y, item, total * scale)


def reduce_columns(
    y: Pointer, x: Pointer, scale: Number, outputs: int, inner: int, s_outer: int, s_axis: int, s_inner: int, n: int,
    chunk: int, chunks: int,
) -> None:  # fmt: skip
    """The same, a block for LANES neighbouring outputs: for an axis whose neighbours lie far apart."""
    partial = shared()
    rows = THREADS // LANES
    lane = thread_index() % LANES
    first = thread_index() // LANES
    groups = udiv(outputs + LANES - 1, LANES)
    for item in range(block_index(), groups * chunks, block_count()):
        group = udiv(item, chunks)
        c = item - group * chunks
        output = group * LANES + lane
        total = C(IDENTITY)
        if output < outputs:
            row = udiv(output, inner)
            base = row * s_outer + (output - row * inner) * s_inner
            end = min(c * chunk + chunk, n)
            for begin in range(c * chunk + first, end, PIECE * rows):
                piece = C(IDENTITY)
                for k in range(begin, min(begin + PIECE * rows, end), rows):
                    piece = combine(piece, transform(load_x(x, base + k * s_axis)))
                total = combine(total, piece)
        partial[thread_index()] = total
        barrier()
        half = rows // 2
        while half > 0:
            if first < half:
                other = partial[thread_index() + half * LANES]
                partial[thread_index()] = combine(partial[thread_index()], other)
            barrier()
            half //= 2
        if first == 0 and output < outputs:
            store_y(y, output * chunks + c, partial[lane] * scale)
        barrier()


def arg_rows(y: Pointer, x: Pointer, outputs: int, inner: int, s_outer: int, s_axis: int, s_inner: int, n: int) -> None:
    """y[output] = the index of the best element along the axis; the first of equals, a NaN before all."""
    values = shared()
    indices = shared_index()
    t = thread_index()
    for output in range(block_index(), outputs, block_count()):
        row = udiv(output, inner)
        base = row * s_outer + (output - row * inner) * s_inner
        best = load_x(x, base)
        at = 0
        for k in range(t, n, THREADS):
            value = load_x(x, base + k * s_axis)
            if better(value, best):
                best = value
                at = k
        values[t] = best
        indices[t] = at
        barrier()
        half = THREADS // 2
        while half > 0:
            if t < half:
                value = values[t + half]
                k = indices[t + half]
                equal = not better(value, values[t]) and not better(values[t], value)
                if better(value, values[t]) or (equal and k < indices[t]):
                    values[t] = value
                    indices[t] = k
            barrier()
            half //= 2
        if t == 0:
            store_y(y, output, indices[0])
        barrier()


def reduce_program(
    what: Associative, source: DType, target: DType, compute: DType, threads: int, lanes: int
) -> Program:
    """lanes = 0: `reduce_rows`; else `reduce_columns`."""
    return Program(
        f"{what.name}_{'columns' if lanes else 'rows'}",
        (target, source, "number", *("int",) * 8),
        compute,
        {
            **what.bindings(source, compute),
            "store_y": Store(target, compute),
            "shared": Array(compute, threads, shared=True),
            "PIECE": PIECE_LENGTH if what.rounds and compute.is_floating else _ALL,
            **({"LANES": lanes} if lanes else {}),
        },
        function=reduce_columns if lanes else reduce_rows,
        threads=threads,
    )


def arg_program(largest: bool, source: DType, compute: DType, threads: int) -> Program:
    sign = ">" if largest else "<"
    return Program(
        "argmax" if largest else "argmin",
        (int64, source, *("int",) * 6),
        compute,
        {
            "load_x": Load(source, compute),
            "store_y": Store(int64, int64),
            "shared": Array(compute, threads, shared=True),
            "shared_index": Array(int64, threads, shared=True),
            "better": Function(f"def call(a, b): return a {sign} b or (a != a and b == b)", 2, bool_),
        },
        function=arg_rows,
        threads=threads,
    )
