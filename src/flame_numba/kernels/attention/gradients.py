"""Gradients of attention, general form: logits and probabilities are computed again, tile by tile.

Without atomics: the queries' gradient, the keys' and values', and the bias's each have a kernel that owns its result,
so the same call gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..language import (
    INF,
    SIZE,
    STRIDE,
    THREADS,
    TY,
    WIDE,
    C,
    Number,
    Pointer,
    T,
    barrier,
    block_count,
    block_index,
    block_sum,
    grid,
    gridsize,
    load_s,
    load_x,
    own_first,
    own_s,
    own_second,
    own_top,
    own_total,
    own_u,
    own_words,
    shared_factors,
    shared_stage,
    shared_tile,
    store_s,
    thread_index,
    udiv,
)
from ..random import philox
from ..tile.index import ceiling, divide
from ..tile.micro import fill, first_row
from .parts import (
    both_products,
    dropped,
    factor,
    fold,
    head_of,
    place_of,
    prepare,
    probability,
    rules_of,
    share,
    store_chunk,
    tile_column,
)


def delta(y: Pointer, g: Any, o: Any, size: Any) -> None:
    """y[row] = Σ_c g[row, c]·o[row, c], the part of the softmax's gradient that a row has in common."""
    partial = shared_tile()
    for r in range(block_index(), size.rows, block_count()):
        pair, i = divide(r, size.m)
        b, h = divide(pair, size.heads)
        left, right = head_of(g, b, h, size.m, size.e), head_of(o, b, h, size.m, size.e)
        total = C(0)
        for c in range(thread_index(), size.e, THREADS):
            total += load_x(left.data, left.offset + i * left.row + c * left.column) * load_x(
                right.data, right.offset + i * right.row + c * right.column
            )
        total = block_sum(partial, total)
        if thread_index() == 0:
            store_s(y, r, total)


# --- queries ---------------------------------------------------------------------------------------------------------
def query_gradient(
    dq: Any, q: Any, k: Any, v: Any, g: Any, lse: Pointer, delta: Pointer, mask: Any, bias: Any, scale: Number,
    dropout: Any, size: Any, seen: Any,
) -> None:  # fmt: skip
    """dq = scale·dS·k with dS = P·(dP − delta), dP = g·vᵀ and P = exp(logits − lse), all computed again."""
    stage, tile, factors = shared_stage(), shared_tile(), shared_factors()
    s, u, shift, common, y = own_s(), own_u(), own_top(), own_total(), own_first()
    m, n, pairs = size.m, size.n, size.batches * size.heads
    tiles, chunks = ceiling(m, SIZE), ceiling(size.d, WIDE)
    for item in range(block_index(), pairs * tiles * chunks, block_count()):
        here = place_of(item, pairs, size.heads, chunks)
        b, h, kv, c0 = here.b, here.h, udiv(here.h, size.group), here.c0
        i0 = (tiles - 1 - here.tile) * SIZE
        first = here.pair * m + i0
        rules = rules_of(mask, bias, b, h, size, seen)
        queries, results = head_of(q, b, h, m, size.d), head_of(g, b, h, m, size.e)
        keys, values = head_of(k, b, kv, n, size.d), head_of(v, b, kv, n, size.e)
        load_numbers(shift, lse, first, m - i0, C(INF))
        load_numbers(common, delta, first, m - i0, C(0))
        fill(y, T * TY, C(0))
        for j0 in range(0, min(n, i0 + SIZE + seen.diagonal), SIZE):
            plain = prepare(tile, factors, i0, j0, first, rules, dropout)
            both_products(s, u, stage, queries, results, i0, keys, values, j0)
            logit_gradients(s, u, tile, factors, shift, common, scale, plain)
            share(tile, s)
            barrier()
            fold(y, tile, stage, m - i0, keys, j0, c0)
        store_chunk(head_of(dq, b, h, m, size.d), y, i0, c0, scale)


def load_numbers(own: Pointer, x: Pointer, first: int, rows: int, outside: Number) -> None:
    """own[i] = the number of this thread's i-th row, of so many from `first` on."""
    row = first_row()
    for i in range(T):
        own[i] = load_s(x, first + row + i) if row + i < rows else outside


def logit_gradients(
    s: Pointer, u: Pointer, tile: Pointer, factors: Pointer, shift: Pointer, common: Pointer, scale: Number, plain: bool
) -> None:
    """s = dS = P·(dP − delta), from s = q·kᵀ and u = g·vᵀ."""
    row, column = first_row(), tile_column()
    for i in range(T):
        for j in range(T):
            at = (row + i) * STRIDE + column + j
            value = probability(s[i * T + j], tile, at, scale, plain, shift[i])
            s[i * T + j] = value * (dropped(u[i * T + j], factors, at) - common[i])


# --- keys and values -------------------------------------------------------------------------------------------------
def key_gradient(
    dk: Any, dv: Any, q: Any, k: Any, v: Any, g: Any, lse: Pointer, delta: Pointer, mask: Any, bias: Any, scale: Number,
    dropout: Any, size: Any, seen: Any,
) -> None:  # fmt: skip
    """dk = scale·dSᵀ·q and dv = Pᵀ·g for SIZE keys, over the queries of all heads that share them, in order.

    The tiles are transposed: rows are keys. See `query_gradient`.
    """
    stage, tile, factors = shared_stage(), shared_tile(), shared_factors()
    s, u, yk, yv = own_s(), own_u(), own_first(), own_second()
    m, n, kv_heads = size.m, size.n, udiv(size.heads, size.group)
    tiles, chunks, pairs = ceiling(n, SIZE), ceiling(max(size.d, size.e), WIDE), size.batches * kv_heads
    for item in range(block_index(), pairs * tiles * chunks, block_count()):
        here = place_of(item, pairs, kv_heads, chunks)
        b, kv, j0, c0 = here.b, here.h, here.tile * SIZE, here.c0
        keys, values = head_of(k, b, kv, n, size.d), head_of(v, b, kv, n, size.e)
        seeing = max(0, j0 - seen.diagonal)  # the first query that sees one of the keys
        fill(yk, T * TY, C(0))
        fill(yv, T * TY, C(0))
        for h in range(kv * size.group, kv * size.group + size.group):
            base = (b * size.heads + h) * m
            rules = rules_of(mask, bias, b, h, size, seen)
            queries, results = head_of(q, b, h, m, size.d), head_of(g, b, h, m, size.e)
            for i0 in range(seeing - seeing % SIZE, m, SIZE):
                plain = prepare(tile, factors, i0, j0, base + i0, rules, dropout)
                both_products(s, u, stage, keys, values, j0, queries, results, i0)
                turned_gradients(s, u, tile, factors, lse, delta, base + i0, m - i0, scale, plain)
                barrier()
                fold(yv, tile, stage, n - j0, results, i0, c0)
                share(tile, s)
                barrier()
                fold(yk, tile, stage, n - j0, queries, i0, c0)
        store_chunk(head_of(dk, b, kv, n, size.d), yk, j0, c0, scale)
        store_chunk(head_of(dv, b, kv, n, size.e), yv, j0, c0, C(1))


def turned_gradients(
    s: Pointer, u: Pointer, tile: Pointer, factors: Pointer, lse: Pointer, delta: Pointer, first: int, rows: int,
    scale: Number, plain: bool,
) -> None:  # fmt: skip
    """s = dSᵀ and tile = Pᵀ, dropped, from s = k·qᵀ and u = v·gᵀ.

    The tile's queries are those from `first` on, of which so many are inside.
    """
    row, column = first_row(), tile_column()
    for j in range(T):
        inside = column + j < rows
        shift = load_s(lse, first + column + j) if inside else C(INF)
        common = load_s(delta, first + column + j) if inside else C(0)
        for r in range(T):
            at = (row + r) * STRIDE + column + j
            value = probability(s[r * T + j], tile, at, scale, plain, shift)
            s[r * T + j] = value * (dropped(u[r * T + j], factors, at) - common)
            tile[at] = dropped(value, factors, at)


# --- bias ------------------------------------------------------------------------------------------------------------
class Steps(NamedTuple):
    """Along each axis of the matrices of logits: a batch, a head, a tile of rows and one of columns."""

    b: int
    h: int
    i: int
    j: int


def bias_gradient(
    q: Any, k: Any, v: Any, g: Any, lse: Pointer, delta: Pointer, db: Pointer, mask: Any, bias: Any, scale: Number,
    dropout: Any, size: Any, seen: Any, along: Any,
) -> None:  # fmt: skip
    """db[split, …] = Σ dS over the axes that the bias is broadcast along, a part of them for each split."""
    tile, y = shared_tile(), own_first()
    work = shared_stage(), tile, shared_factors()
    kept, summed = steps_of(size, along)
    count = summed.b * summed.h * summed.i * summed.j
    part = ceiling(count, along.splits)
    for item in range(block_index(), along.splits * kept.b * kept.h * kept.i * kept.j, block_count()):
        to = unravel(item, kept)
        split, to_b = divide(to.b, kept.b)
        fill(y, T * T, C(0))
        for step in range(split * part, min(count, split * part + part)):
            by = unravel(step, summed)  # of each axis one of the two is 0
            at = Steps(to_b + by.b, to.h + by.h, to.i + by.i, to.j + by.j)
            add_gradients(y, work, at, q, k, v, g, lse, delta, mask, bias, scale, dropout, size, seen)
        barrier()
        share(tile, y)
        barrier()
        store_sums(db, tile, to.b * kept.h + to.h, to.i * SIZE, to.j * SIZE, size, along)
        barrier()


def steps_of(size: Any, along: Any) -> tuple[Steps, Steps]:
    """Of each axis, the steps that the result keeps, and those that are summed."""
    i, j = ceiling(size.m, SIZE), ceiling(size.n, SIZE)
    b, h = size.batches, size.heads
    kept = Steps(b if along.b else 1, h if along.h else 1, i if along.i else 1, j if along.j else 1)
    summed = Steps(1 if along.b else b, 1 if along.h else h, 1 if along.i else i, 1 if along.j else j)
    return kept, summed


def unravel(index: int, steps: Any) -> Steps:
    """b takes what is left."""
    rest, j = divide(index, steps.j)
    rest, i = divide(rest, steps.i)
    b, h = divide(rest, steps.h)
    return Steps(b, h, i, j)


def add_gradients(
    y: Pointer, work: Any, at: Any, q: Any, k: Any, v: Any, g: Any, lse: Pointer, delta: Pointer, mask: Any, bias: Any,
    scale: Number, dropout: Any, size: Any, seen: Any,
) -> None:  # fmt: skip
    """y += dS of a tile; nothing if no query of it sees a key of it."""
    stage, tile, factors = work
    s, u, shift, common = own_s(), own_u(), own_top(), own_total()
    i0, j0, b, h, kv = at.i * SIZE, at.j * SIZE, at.b, at.h, udiv(at.h, size.group)
    if j0 < i0 + SIZE + seen.diagonal:
        first = (b * size.heads + h) * size.m + i0
        queries, results = head_of(q, b, h, size.m, size.d), head_of(g, b, h, size.m, size.e)
        keys, values = head_of(k, b, kv, size.n, size.d), head_of(v, b, kv, size.n, size.e)
        plain = prepare(tile, factors, i0, j0, first, rules_of(mask, bias, b, h, size, seen), dropout)
        both_products(s, u, stage, queries, results, i0, keys, values, j0)
        load_numbers(shift, lse, first, size.m - i0, C(INF))
        load_numbers(common, delta, first, size.m - i0, C(0))
        logit_gradients(s, u, tile, factors, shift, common, scale, plain)
        for i in range(T * T):
            y[i] += s[i]
        barrier()  # the tile is marked again


def store_sums(db: Pointer, tile: Pointer, matrix: int, i0: int, j0: int, size: Any, along: Any) -> None:
    """What the result keeps of a tile: all, the sums of its rows or columns, or its sum."""
    m, n = size.m if along.i else 1, size.n if along.j else 1
    for cell in range(thread_index(), (SIZE if along.i else 1) * (SIZE if along.j else 1), THREADS):
        i = cell // SIZE if along.i and along.j else cell if along.i else 0
        j = 0 if along.j == 0 else cell % SIZE
        value = C(0)
        for row in range(i, i + 1 if along.i else SIZE):
            for column in range(j, j + 1 if along.j else SIZE):
                value += tile[row * STRIDE + column]
        if i0 + i < m and j0 + j < n:
            store_s(db, (matrix * m + i0 + i) * n + j0 + j, value)


# --- dropout, for those who want it as a matrix ----------------------------------------------------------------------
def dropout_factors(y: Pointer, rows: int, n: int, dropout: Any) -> None:
    """What `draw` draws, as a matrix (rows, n)."""
    words = own_words()
    each = udiv(n + 3, 4)
    for e in range(grid(), rows * each, gridsize()):
        i, g = divide(e, each)
        philox(words, dropout.seed, dropout.offset + e)
        for w in range(4):
            if 4 * g + w < n:
                store_s(y, i * n + 4 * g + w, factor(words, w, dropout.p, dropout.kept))
