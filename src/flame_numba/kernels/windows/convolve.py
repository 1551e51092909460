"""Convolution as a matrix product whose right operand is gathered from the windows, tile by tile: no columns in memory.

One kernel makes the three products of a convolution y = w ∗ x (FORWARD), of its adjoint in x (INPUT) and in w (WEIGHT):

    y[o, position]   = Σ over (c, tap)       w[o, c, tap]    · x[c, window(position, tap)]
    dx[c, position]  = Σ over (o, tap)       w[o, c, tap]    · g[o, the output that reads the position by that tap]
    dw[o, (c, tap)]  = Σ over all positions  g[o, position]  · x[c, window(position, tap)]

The place that is read is the sum of a part that the product's column decides and one that the summed index decides.
Both parts stand in tables in shared memory (`places` says what is in them), filled once a tile and once a slab, so that
no division is made for an element. Strides: the INPUT product is made for each phase of the positions modulo the stride
by itself, over the taps that reach it, and then looks like one of stride 1. A deep product may be cut into `splits`
parts, to be added later.
"""

from __future__ import annotations

from typing import Any

from ...dtypes import DType, int64
from ..compiler.compile import Program
from ..language import (
    BK,
    BM,
    BN,
    GATHER_DOWN,
    THREADS,
    TM,
    TN,
    Array,
    C,
    Load,
    Pointer,
    Store,
    barrier,
    block_count,
    block_index,
    column_of,
    depth_of,
    gathered_size,
    load_a,
    load_b,
    own_sum,
    phase_of,
    phases_of,
    shared_a,
    shared_b,
    shared_columns,
    shared_terms,
    term_of,
    thread_index,
)
from ..tile.arguments import Arguments, group, integers, operand
from ..tile.index import ceiling, divide
from ..tile.micro import LARGE_TILE, SMALL_TILE, Tile, fill, multiply, store_tile, unchanged
from ..tile.stage import Stage
from .places import MODES, OUTSIDE

FORWARD, INPUT, WEIGHT = 0, 1, 2


def gather_product(y: Pointer, a: Any, b: Any, to: Any, size: Any, geo: Any) -> None:
    """y[split, group, row, column] = Σ a·b over the split's part (`chunk` long) of the summed index."""
    stage_a, stage_b, total = Stage(shared_a(), 0, BM), Stage(shared_b(), 0, BN), own_sum()
    columns, terms = shared_columns(), shared_terms()
    tiles_m, tiles_n, phases = ceiling(size.rows, BM), ceiling(size.columns, BN), phases_of(geo)
    for item in range(block_index(), size.groups * size.splits * phases * tiles_m * tiles_n, block_count()):
        rest, down = divide(item, tiles_m)  # tiles of the same columns follow each other
        rest, right = divide(rest, tiles_n)
        rest, split = divide(rest, size.splits)
        group, phase = phase_of(rest, geo)
        i0, j0 = down * BM, right * BN
        barrier()  # the tables of the tile before are no longer read
        list_columns(columns, j0, size.columns, to, b, geo, phase)
        barrier()
        fill(total, TM * TN, C(0))
        stop = min(depth_of(size.depth, phase), (split + 1) * size.chunk)
        for k0 in range(split * size.chunk, stop, BK):
            list_terms(terms, k0, stop, a, b, geo, phase)
            barrier()
            load_rows(stage_a, a, group * a.group, i0, size.rows, terms, k0, stop)
            gather_columns(stage_b, b, group * b.group, columns, terms, gathered_size(geo))
            barrier()
            multiply(total, stage_a, stage_b, BK, TM, TN)
            barrier()
        base = split * to.split + group * to.group
        store_tile(y, total, (base, i0, size.rows, to.row, columns), listed, unchanged)


def list_columns(table: Pointer, j0: int, end: int, to: Any, b: Any, geo: Any, phase: Any) -> None:
    """For each column of the tile: where it reads, its coordinates, where it is written (−1: nowhere)."""
    for e in range(thread_index(), BN, THREADS):
        at, d, h, w, out = 0, OUTSIDE, 0, 0, -1
        if j0 + e < end:
            at, d, h, w, out = column_of(j0 + e, to, b, geo, phase)
        table[e] = at
        table[BN + e] = d
        table[2 * BN + e] = h
        table[3 * BN + e] = w
        table[4 * BN + e] = out


def list_terms(table: Pointer, k0: int, stop: int, a: Any, b: Any, geo: Any, phase: Any) -> None:
    """For each summed index of the slab: where it reads in a and in b, its coordinates."""
    for e in range(thread_index(), BK, THREADS):
        in_a, in_b, d, h, w = 0, 0, OUTSIDE, 0, 0
        if k0 + e < stop:
            in_a, in_b, d, h, w = term_of(k0 + e, a, b, geo, phase)
        table[e] = in_a
        table[BK + e] = in_b
        table[2 * BK + e] = d
        table[3 * BK + e] = h
        table[4 * BK + e] = w


def load_rows(stage: Any, a: Any, offset: int, i0: int, rows: int, terms: Pointer, k0: int, stop: int) -> None:
    """stage[p, i] = a[i0 + i, term p]; 0 outside."""
    for e in range(thread_index(), BM * BK, THREADS):
        i = e // BK
        p = e % BK
        inside = i0 + i < rows and k0 + p < stop
        value = load_a(a.data, offset + (i0 + i) * a.row + terms[p]) if inside else C(0)
        stage.memory[p * BM + i] = value


def gather_columns(stage: Any, b: Any, offset: int, columns: Pointer, terms: Pointer, size: Any) -> None:
    """stage[p, j] = b where column j and term p meet; 0 in the padding."""
    for e in range(thread_index(), BN * BK, THREADS):
        # neighbouring threads take neighbouring positions
        j = e // BK if GATHER_DOWN else e % BN
        p = e % BK if GATHER_DOWN else e // BN
        d = columns[BN + j] + terms[2 * BK + p]
        h = columns[2 * BN + j] + terms[3 * BK + p]
        w = columns[3 * BN + j] + terms[4 * BK + p]
        inside = d >= 0 and d < size.d and h >= 0 and h < size.h and w >= 0 and w < size.w
        at = offset + columns[j] + terms[BK + p] + d * b.d + h * b.h + w * b.w
        stage.memory[p * BN + j] = load_b(b.data, at) if inside else C(0)


def listed(out: Any, i: int, j: int) -> tuple[bool, int]:
    """Where row i, column j of the tile goes to: as the table of columns says."""
    base, i0, rows, row, columns = out
    to = columns[4 * BN + j]
    return i0 + i < rows and to >= 0, base + (i0 + i) * row + to


GATHER = Arguments(
    gather_product,
    y="y",
    a=operand("a", "group row n d h w"),  # n: along images or channels, whichever is summed
    b=operand("b", "group n c d h w"),
    to=integers("split group row n"),  # strides of y
    # chunk: summed indices of a split; depth: length of the summed index (INPUT: outputs alone, the taps of the phase
    # come to it)
    size=integers("groups splits chunk rows columns depth"),
    geo=group(
        image=integers("d h w"), taps=integers("d h w"), out=integers("d h w"), stride=integers("d h w"),
        padding=integers("d h w"), dilation=integers("d h w"),
        apart=integers("d h w"),  # distance of the taps that reach one phase
    ),
)  # fmt: skip


_NARROW = (Tile(1, 256, 16, 1, 1), Tile(16, 128, 16, 4, 2), Tile(32, 128, 16, 4, 4))


def cuda_tile(rows: int, columns: int, dtype: DType) -> Tile:
    """The tile that wastes no rows: groups may have one (depthwise), first layers have few."""
    for tile in _NARROW:
        if rows <= tile.m:
            return tile
    blocks = -(-rows // LARGE_TILE.m) * -(-columns // LARGE_TILE.n)
    large = rows >= LARGE_TILE.m and blocks >= 256 and dtype.itemsize < 8  # in f64 its sums do not fit the registers
    return LARGE_TILE if large else SMALL_TILE


def gather_product_program(mode: int, a: DType, b: DType, y: DType, tile: Tile) -> Program:
    compute, (name, words) = a.accumulator, MODES[mode]
    bindings = {
        "load_a": Load(a, compute), "load_b": Load(b, compute), "store_y": Store(y, compute),
        "shared_columns": Array(int64, 5 * tile.n, shared=True),
        "shared_terms": Array(int64, 5 * tile.k, shared=True),
        **tile.bindings(compute), "GATHER_DOWN": mode == WEIGHT,
    }  # fmt: skip
    return GATHER.program(name, {"y": y, "a": a, "b": b}, compute, bindings, tile.threads, **words)


__all__ = ["FORWARD", "GATHER", "INPUT", "WEIGHT", "cuda_tile", "gather_product_program"]
