"""Attention kernels, general form: tiles of logits in shared memory, rows renormalised as the keys go by.

A block owns SIZE rows of one head and walks over the other side in tiles of SIZE; a thread holds T × T of a tile of
logits and T × (WIDE / SIDE) of the result. What is wider than WIDE columns is cut into chunks, a block each, which
compute the same logits. Nothing of size queries × keys is ever stored. (Dao, Fu, Ermon, Rudra and Ré 2022; the running
maximum of Milakov and Gimelshein 2018)

An operand is passed to the helpers as a tuple (pointer, offset, stride of rows, stride of columns, …): they are
compiled into the kernel, so this costs nothing.
"""

from __future__ import annotations

from typing import Any

from ..language import (
    BK,
    DROPOUT,
    GROUP,
    INF,
    KEYS_FIRST,
    KV,
    SIDE,
    SIZE,
    STRIDE,
    THREADS,
    TY,
    WIDE,
    C,
    Number,
    Pointer,
    T,
    U,
    barrier,
    block_count,
    block_index,
    exp,
    load_bias,
    load_mask,
    load_x,
    log,
    own_first,
    own_left,
    own_right,
    own_s,
    own_top,
    own_total,
    own_wide,
    own_words,
    philox,
    shared_factors,
    shared_stage,
    shared_tile,
    store_s,
    store_y,
    thread_index,
    udiv,
)


# --- parts of the kernels --------------------------------------------------------------------------------------------
def bring(stage: Pointer, room: Any, a: Any) -> None:
    """stage[first + p·stride + i] = a[i0 + i, p0 + p] for i < width, p < depth; 0 outside of a on machines of threads.

    room: (first, stride, width, depth). a: (pointer, offset, stride of i, stride of p, i0, end of i, p0, end of p).
    """
    first, stride, width, depth = room
    x, at, s_i, s_p, i0, i_end, p0, p_end = a
    at += i0 * s_i + p0 * s_p
    i_end -= i0
    p_end -= p0
    if SIDE == 1:
        for p in range(min(depth, p_end)):
            for i in range(min(width, i_end)):
                stage[first + p * stride + i] = load_x(x, at + i * s_i + p * s_p)
    else:
        t = thread_index()
        along = s_p == 1  # neighbouring threads take neighbouring elements of whichever axis is dense
        i = t // depth if along else t % width
        p = t % depth if along else t // width
        down = THREADS // depth if along else 0
        right = 0 if along else THREADS // width
        for _ in range(width * depth // THREADS):
            value = load_x(x, at + i * s_i + p * s_p) if i < i_end and p < p_end else C(0)
            stage[first + p * stride + i] = value
            i += down
            p += right


def accumulate(work: Any, a: Any, b: Any) -> None:
    """total[i, j] += Σ_p a[i, p]·b[j, p] for this thread's T × T of the tile; all threads end at a barrier.

    work: (total, staging memory, rows of mine). a, b: (pointer, offset, row stride, column stride, first row, rows,
    columns); what lies outside counts as 0.
    """
    total, stage, mine = work
    x, x_at, x_row, x_column, i0, rows, depth = a
    z, z_at, z_row, z_column, j0, columns, _ = b
    left = own_left()
    right = own_right()
    row = thread_index() // SIDE * T
    column = BK * STRIDE + thread_index() % SIDE * T
    for p0 in range(0, max(depth, 1), BK):
        bring(stage, (0, STRIDE, SIZE, BK), (x, x_at, x_row, x_column, i0, rows, p0, depth))
        bring(stage, (BK * STRIDE, STRIDE, SIZE, BK), (z, z_at, z_row, z_column, j0, columns, p0, depth))
        barrier()
        for p in range(min(BK, depth - p0) if SIDE == 1 else BK):
            for i in range(T):
                left[i] = stage[p * STRIDE + row + i]
            for j in range(T):
                right[j] = stage[p * STRIDE + column + j]
            for i in range(mine):
                for j in range(min(T, columns - j0) if SIDE == 1 else T):
                    total[i * T + j] += left[i] * right[j]
        barrier()


def fold(y: Pointer, tiles: Any, b: Any) -> None:
    """y[i, c] += Σ_j tile[i, j]·b[j, c] for this thread's T × TY of the chunk; all threads end at a barrier.

    tiles: (tile, staging memory, rows of mine). b: (pointer, offset, row stride, column stride, first row, rows, first
    column, columns). The tile was written before a barrier.
    """
    tile, stage, mine = tiles
    x, at, s_row, s_column, j0, rows, c0, columns = b
    left = own_left()
    right = own_wide()
    t = thread_index()
    row = t // SIDE * T
    column = t % SIDE * GROUP
    for n0 in range(0, min(SIZE, rows - j0), KV):
        bring(stage, (0, WIDE, WIDE, KV), (x, at, s_column, s_row, c0, columns, j0 + n0, rows))
        barrier()
        for n in range(min(KV, rows - j0 - n0) if SIDE == 1 else KV):
            for i in range(T):
                left[i] = tile[(row + i) * STRIDE + n0 + n]
            for j in range(TY):
                # groups of neighbours: a warp reads whole rows of shared memory
                right[j] = stage[n * WIDE + (j if SIDE == 1 else j // GROUP * (GROUP * SIDE) + column + j % GROUP)]
            for i in range(mine):
                for j in range(min(TY, columns - c0) if SIDE == 1 else TY):
                    y[i * TY + j] += left[i] * right[j]
        barrier()


def mark(tile: Pointer, place: Any, extras: Any) -> None:
    """What is added to a tile of logits: the bias; −∞ outside, above the diagonal and where the mask is False.

    Each cell is read, and then written, by the thread that computes it.
    """
    i0, j0, m, n, diagonal = place
    has_mask, mask, mask_at, mask_i, mask_j, has_bias, bias, bias_at, bias_i, bias_j = extras
    for e in range(thread_index(), SIZE * SIZE, THREADS):
        i = i0 + e // SIZE
        j = j0 + e % SIZE
        seen = i < m and j < n and j <= i + diagonal
        value = C(0)
        if has_mask != 0 and seen:
            seen = load_mask(mask, mask_at + i * mask_i + j * mask_j)
        if has_bias != 0 and seen:
            value = load_bias(bias, bias_at + i * bias_i + j * bias_j)
        tile[(j - j0) * STRIDE + i - i0 if KEYS_FIRST else (i - i0) * STRIDE + j - j0] = value if seen else C(-INF)


def marked(value: Number, extra: Number) -> Number:
    """A logit and what `mark` left for it; what is hidden may be a NaN."""
    return value + extra if extra > C(-INF) or extra != extra else extra


def draw(factors: Pointer, place: Any, random: Any) -> None:
    """The factors of dropout for a tile: 1 / (1 − p) or, with probability p, 0. Four neighbouring keys share a counter.

    place: (number of the first row among all rows of all heads, first key, counters a row).
    """
    first, j0, each = place
    seed, offset, p, kept = random
    words = own_words()
    for e in range(thread_index(), SIZE * (SIZE // 4), THREADS):
        i = e // (SIZE // 4)
        g = e % (SIZE // 4)
        philox(words, seed, offset + (first + i) * each + j0 // 4 + g)
        for w in range(4):
            factor = kept if C(words[w] >> U(8)) * C(2.0**-24) >= p else C(0)
            factors[(4 * g + w) * STRIDE + i if KEYS_FIRST else i * STRIDE + 4 * g + w] = factor


# --- kernels ---------------------------------------------------------------------------------------------------------
def attention(
    o: Pointer, q: Pointer, k: Pointer, v: Pointer, lse: Pointer, mask: Pointer, bias: Pointer,
    scale: Number, p: Number, kept: Number,
    batches: int, heads: int, group: int, m: int, n: int, d: int, e: int, diagonal: int, has_mask: int, has_bias: int,
    seed: int, offset: int,
    o_batch: int, o_head: int, o_i: int, o_c: int, q_batch: int, q_head: int, q_i: int, q_c: int,
    k_batch: int, k_head: int, k_j: int, k_c: int, v_batch: int, v_head: int, v_j: int, v_c: int,
    mask_batch: int, mask_head: int, mask_i: int, mask_j: int,
    bias_batch: int, bias_head: int, bias_i: int, bias_j: int,
) -> None:  # fmt: skip
    """o = softmax(logits)·v over the keys; lse = log Σ exp(logits), +∞ for a row that sees no key."""
    stage = shared_stage()
    tile = shared_tile()
    factors = shared_factors()
    s = own_s()
    top = own_top()
    total = own_total()
    y = own_first()
    bare = has_mask + has_bias == 0
    t = thread_index()
    lane = t % SIDE
    row = t // SIDE * T
    tiles = udiv(m + SIZE - 1, SIZE)
    chunks = udiv(e + WIDE - 1, WIDE)
    pairs = batches * heads
    for item in range(block_index(), pairs * tiles * chunks, block_count()):
        rest = udiv(item, chunks)
        c0 = (item - rest * chunks) * WIDE
        order = udiv(rest, pairs)
        i0 = (tiles - 1 - order) * SIZE  # under a diagonal the last rows have the most to do: they start first
        pair = rest - order * pairs
        b = udiv(pair, heads)
        h = pair - b * heads
        kv = udiv(h, group)
        mine = min(T, m - i0) if SIDE == 1 else T
        extras = (
            has_mask, mask, b * mask_batch + h * mask_head, mask_i, mask_j,
            has_bias, bias, b * bias_batch + h * bias_head, bias_i, bias_j,
        )  # fmt: skip
        for i in range(T):
            top[i] = C(-INF)
            total[i] = C(0)
        for i in range(T * TY):
            y[i] = C(0)
        for j0 in range(0, min(n, i0 + SIZE + diagonal), SIZE):
            plain = bare and i0 + SIZE <= m and j0 + SIZE <= n and j0 + SIZE <= i0 + diagonal + 1
            if not plain:
                mark(tile, (i0, j0, m, n, diagonal), extras)
            if DROPOUT:
                draw(factors, (pair * m + i0, j0, udiv(n + 3, 4)), (seed, offset, p, kept))
            for i in range(T * T):
                s[i] = C(0)
            accumulate(
                (s, stage, mine), (q, b * q_batch + h * q_head, q_i, q_c, i0, m, d),
                (k, b * k_batch + kv * k_head, k_j, k_c, j0, n, d),
            )  # fmt: skip
            for i in range(T):
                best = top[i]
                for j in range(T):
                    value = s[i * T + j] * scale
                    if not plain:
                        value = marked(value, tile[(row + i) * STRIDE + lane * T + j])
                    s[i * T + j] = value
                    best = value if value > best else best
                stage[(row + i) * SIDE + lane] = best
            barrier()
            for i in range(T):
                best = stage[(row + i) * SIDE]
                for c in range(1, SIDE):
                    other = stage[(row + i) * SIDE + c]
                    best = other if other > best else best
                shift = best if best > C(-INF) else C(0)  # no key seen yet: exp(−∞ − 0) is 0
                fade = exp(top[i] - shift)
                top[i] = best
                total[i] *= fade
                for j in range(TY):
                    y[i * TY + j] *= fade
                for j in range(T):
                    at = (row + i) * STRIDE + lane * T + j
                    value = exp(s[i * T + j] - shift)
                    total[i] += value
                    tile[at] = value * factors[at] if DROPOUT else value
            barrier()
            fold(y, (tile, stage, mine), (v, b * v_batch + kv * v_head, v_j, v_c, j0, n, c0, e))
        for i in range(T):
            stage[(row + i) * SIDE + lane] = total[i]
        barrier()
        for i in range(T):
            value = C(0)
            for c in range(SIDE):
                value += stage[(row + i) * SIDE + c]
            seen = value != C(0)
            factor = C(1) / value if seen else C(0)
            if i0 + row + i < m:
                if c0 == 0 and lane == 0:
                    store_s(lse, pair * m + i0 + row + i, top[i] + log(value) if seen else C(INF))
                o_at = b * o_batch + h * o_head + (i0 + row + i) * o_i
                for j in range(TY):
                    c = c0 + (j if SIDE == 1 else j // GROUP * (GROUP * SIDE) + lane * GROUP + j % GROUP)
                    if c < e:
                        store_y(o, o_at + c * o_c, y[i * TY + j] * factor)
        barrier()
