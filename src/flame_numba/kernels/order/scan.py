"""Prefix scans along the middle axis of (outer, n, inner), for any associative operation, in a fixed order.

A line is walked in tiles, and a carry goes from tile to tile: y = carry ∘ (what the tile has so far). So rounding
errors grow with the number of tiles plus the length of one, also where one thread does it all. Few long lines are cut
in chunks: the totals of the chunks, a scan of those, then each chunk from its start value (three launches).
"""

from __future__ import annotations

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    IDENTITY,
    ITEMS,
    THREADS,
    TOTALS,
    Array,
    C,
    Load,
    Pointer,
    Store,
    barrier,
    block_count,
    block_index,
    combine,
    grid,
    gridsize,
    load_a,
    load_x,
    shared,
    store_total,
    store_y,
    thread_index,
    transform,
    udiv,
)
from ..reduce.associative import Associative

TILE_ITEMS = 4  # elements of a tile that one thread of a GPU takes
HOST_TILE = 512  # √n of a line of 2¹⁸: the tile of the one thread of a host


def scan_rows(
    y: Pointer, x: Pointer, starts: Pointer, rows: int, n: int, inner: int, s_outer: int, s_axis: int,
    y_outer: int, y_axis: int, chunk: int, chunks: int,
) -> None:  # fmt: skip
    """y[row, j] = x[row, 0] ∘ … ∘ x[row, j]; if TOTALS only starts[row, c] = the total of chunk c. A block a chunk.

    If chunks > 1 and not TOTALS, starts[row, c] holds the total of the chunks up to c.
    """
    partial = shared()
    t = thread_index()
    for item in range(block_index(), rows * chunks, block_count()):
        row = udiv(item, chunks)
        c = item - row * chunks
        o = udiv(row, inner)
        source = o * s_outer + row - o * inner
        target = o * y_outer + row - o * inner
        carry = C(IDENTITY)
        if not TOTALS and c > 0:
            carry = starts[item - 1]
        end = min(c * chunk + chunk, n)
        for tile in range(c * chunk, end, THREADS * ITEMS):
            first = tile + t * ITEMS
            last = min(first + ITEMS, end)
            before = carry
            if THREADS > 1:
                total = C(IDENTITY)
                for j in range(first, last):
                    total = combine(total, transform(load_x(x, source + j * s_axis)))
                partial[t] = total
                barrier()
                step = 1
                while step < THREADS:
                    total = partial[t]
                    if t >= step:
                        total = combine(partial[t - step], total)
                    barrier()
                    partial[t] = total
                    barrier()
                    step *= 2
                if t > 0:
                    before = combine(carry, partial[t - 1])
                carry = combine(carry, partial[THREADS - 1])
                barrier()  # all have read `partial`
            if THREADS == 1 or not TOTALS:
                local = C(IDENTITY)
                for j in range(first, last):
                    local = combine(local, transform(load_x(x, source + j * s_axis)))
                    if not TOTALS:
                        store_y(y, target + j * y_axis, combine(before, local))
                if THREADS == 1:
                    carry = combine(carry, local)
        if TOTALS and t == 0:
            starts[item] = carry


def scan_columns(
    y: Pointer, x: Pointer, starts: Pointer, rows: int, n: int, inner: int, s_outer: int, s_axis: int,
    y_outer: int, y_axis: int, chunk: int, chunks: int,
) -> None:  # fmt: skip
    """The same, a thread a chunk: for lines whose neighbours lie side by side, so that a warp reads them together."""
    for item in range(grid(), rows * chunks, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, chunks)
        c = rest - o * chunks
        source = o * s_outer + i
        target = o * y_outer + i
        cell = (o * inner + i) * chunks + c
        carry = C(IDENTITY)
        if not TOTALS and c > 0:
            carry = starts[cell - 1]
        end = min(c * chunk + chunk, n)
        for tile in range(c * chunk, end, ITEMS):
            local = C(IDENTITY)
            for j in range(tile, min(tile + ITEMS, end)):
                local = combine(local, transform(load_x(x, source + j * s_axis)))
                if not TOTALS:
                    store_y(y, target + j * y_axis, combine(carry, local))
            carry = combine(carry, local)
        if TOTALS:
            starts[cell] = carry


def recurrence(
    y: Pointer, a: Pointer, x: Pointer, factors: Pointer, starts: Pointer, rows: int, n: int, inner: int,
    chunk: int, chunks: int, direction: int,
) -> None:  # fmt: skip
    """y[j] = a[j]·y[j−1] + x[j] along the axis, backwards if direction < 0; a thread a chunk.

    If TOTALS: what a chunk does to the value before it, v → factors·v + starts, per chunk. Else starts holds the
    values at the chunks' ends.
    """
    for item in range(grid(), rows * chunks, gridsize()):
        rest = udiv(item, inner)
        i = item - rest * inner
        o = udiv(rest, chunks)
        c = rest - o * chunks
        base = o * n * inner + i
        cell = (o * inner + i) * chunks + c
        factor = C(1)
        value = C(0)
        if not TOTALS and c > 0:
            value = starts[cell - 1]
        nothing_before = c * chunk if TOTALS else 0
        for k in range(c * chunk, min(c * chunk + chunk, n)):
            j = k if direction > 0 else n - 1 - k
            by = load_a(a, base + j * inner)
            factor = factor * by
            # a product with nothing before it is left out: ∞·0 would be a NaN
            value = load_x(x, base + j * inner) + (by * value if k > nothing_before else C(0))
            if not TOTALS:
                store_y(y, base + j * inner, value)
        if TOTALS:
            store_total(factors, cell, factor)
            store_total(starts, cell, value)


def scan_program(
    what: Associative, source: DType, target: DType, compute: DType, threads: int, columns: bool, totals: bool
) -> Program:
    """threads = 1: for the host. columns: `scan_columns`; totals: only the totals of chunks."""
    return Program(
        f"scan_{what.name}",
        (target, source, compute, *("int",) * 9),
        compute,
        {
            **what.bindings(source, compute),
            "store_y": Store(target, compute),
            "shared": Array(compute, threads, shared=True),
            "ITEMS": HOST_TILE if columns or threads == 1 else TILE_ITEMS,
            "TOTALS": totals,
        },
        function=scan_columns if columns else scan_rows,
        threads=threads,
    )


def recurrence_program(a: DType, x: DType, target: DType, compute: DType, totals: bool) -> Program:
    return Program(
        "recurrence",
        (target, a, x, compute, compute, *("int",) * 6),
        compute,
        {
            "load_a": Load(a, compute),
            "load_x": Load(x, compute),
            "store_y": Store(target, compute),
            "store_total": Store(compute, compute),
            "TOTALS": totals,
        },
        function=recurrence,
    )
