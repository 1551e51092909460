"""Attention, general form: tiles of logits in shared memory, rows renormalised as the keys go by.

Nothing of size queries × keys is ever stored. (Dao, Fu, Ermon, Rudra and Ré 2022; the running maximum of Milakov and
Gimelshein 2018)
"""

from __future__ import annotations

from typing import Any

from ..language import (
    ACROSS,
    INF,
    SIZE,
    STRIDE,
    TY,
    WIDE,
    C,
    Number,
    Pointer,
    T,
    barrier,
    block_count,
    block_index,
    exp,
    log,
    own_first,
    own_s,
    own_top,
    own_total,
    shared_factors,
    shared_stage,
    shared_tile,
    store_s,
    thread_index,
    udiv,
)
from ..tile.index import ceiling
from ..tile.micro import fill, first_row
from .parts import (
    accumulate,
    dropped,
    fold,
    head_of,
    marked,
    place_of,
    prepare,
    rules_of,
    store_chunk,
    tile_column,
)


def attention(
    o: Any, q: Any, k: Any, v: Any, lse: Pointer, mask: Any, bias: Any, scale: Number, dropout: Any, size: Any,
    seen: Any,
) -> None:  # fmt: skip
    """o = softmax(logits)·v over the keys; lse = log Σ exp(logits), +∞ for a row that sees no key."""
    stage, tile, factors = shared_stage(), shared_tile(), shared_factors()
    s, top, total, y = own_s(), own_top(), own_total(), own_first()
    m, n, pairs = size.m, size.n, size.batches * size.heads
    tiles, chunks = ceiling(m, SIZE), ceiling(size.e, WIDE)
    for item in range(block_index(), pairs * tiles * chunks, block_count()):
        here = place_of(item, pairs, size.heads, chunks)
        b, h, kv, c0 = here.b, here.h, udiv(here.h, size.group), here.c0
        i0 = (tiles - 1 - here.tile) * SIZE  # under a diagonal the last rows have the most to do: they start first
        rules = rules_of(mask, bias, b, h, size, seen)
        queries = head_of(q, b, h, m, size.d)
        keys, values = head_of(k, b, kv, n, size.d), head_of(v, b, kv, n, size.e)
        fill(top, T, C(-INF))
        fill(total, T, C(0))
        fill(y, T * TY, C(0))
        for j0 in range(0, min(n, i0 + SIZE + seen.diagonal), SIZE):
            plain = prepare(tile, factors, i0, j0, here.pair * m + i0, rules, dropout)
            fill(s, T * T, C(0))
            accumulate(s, stage, queries, i0, keys, j0)
            find_largest(stage, s, top, tile, scale, plain)
            barrier()
            renormalize(tile, y, top, total, s, stage, factors)
            barrier()
            fold(y, tile, stage, m - i0, values, j0, c0)
        finish(y, stage, top, total, lse, here.pair * m + i0, m - i0, c0)
        store_chunk(head_of(o, b, h, m, size.e), y, i0, c0, C(1))
        barrier()


def find_largest(stage: Pointer, s: Pointer, top: Pointer, tile: Pointer, scale: Number, plain: bool) -> None:
    """s = logits; stage[row, thread of it] = the largest of them and of what was seen before."""
    row, column, lane = first_row(), tile_column(), thread_index() % ACROSS
    for i in range(T):
        best = top[i]
        for j in range(T):
            value = s[i * T + j] * scale
            if not plain:
                value = marked(value, tile[(row + i) * STRIDE + column + j])
            s[i * T + j] = value
            best = value if value > best else best
        stage[(row + i) * ACROSS + lane] = best


def renormalize(
    tile: Pointer, y: Pointer, top: Pointer, total: Pointer, s: Pointer, stage: Pointer, factors: Pointer
) -> None:
    """tile = exp(s − the largest so far), dropped; sums and results fade to the new largest."""
    row, column = first_row(), tile_column()
    for i in range(T):
        best = stage[(row + i) * ACROSS]
        for c in range(1, ACROSS):
            other = stage[(row + i) * ACROSS + c]
            best = other if other > best else best
        shift = best if best > C(-INF) else C(0)  # no key seen yet: exp(−∞ − 0) is 0
        fade = exp(top[i] - shift)
        top[i] = best
        for j in range(TY):
            y[i * TY + j] *= fade
        so_far = total[i] * fade  # in a register: the compiler cannot know that `tile` is other memory than `total`
        for j in range(T):
            at = (row + i) * STRIDE + column + j
            value = exp(s[i * T + j] - shift)
            so_far += value
            tile[at] = dropped(value, factors, at)
        total[i] = so_far


def finish(
    y: Pointer, stage: Pointer, top: Pointer, total: Pointer, lse: Pointer, first: int, rows: int, c0: int
) -> None:
    """y /= the sum of each row; lse of the rows from `first` on, of which so many are inside."""
    row, lane = first_row(), thread_index() % ACROSS
    for i in range(T):
        stage[(row + i) * ACROSS + lane] = total[i]
    barrier()
    for i in range(T):
        value = C(0)
        for c in range(ACROSS):
            value += stage[(row + i) * ACROSS + c]
        seen = value != C(0)
        factor = C(1) / value if seen else C(0)
        for j in range(TY):
            y[i * TY + j] *= factor
        if row + i < rows and c0 == 0 and lane == 0:
            store_s(lse, first + row + i, top[i] + log(value) if seen else C(INF))
