"""Gradients of attention, general form: logits and probabilities are computed again, tile by tile.

Without atomics: the queries' gradient, the keys' and values', and the bias's each have a kernel that owns its result,
so the same call gives the same bits. See `attention`, whose parts these kernels are made of.
"""

from __future__ import annotations

from ..language import (
    DROPOUT,
    GROUP,
    INF,
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
    accumulate,
    barrier,
    block_count,
    block_index,
    block_sum,
    draw,
    exp,
    fold,
    grid,
    gridsize,
    load_s,
    load_x,
    mark,
    marked,
    own_first,
    own_s,
    own_second,
    own_top,
    own_total,
    own_u,
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


def delta(
    y: Pointer, g: Pointer, o: Pointer, heads: int, m: int, e: int, rows: int,
    g_batch: int, g_head: int, g_i: int, g_c: int, o_batch: int, o_head: int, o_i: int, o_c: int,
) -> None:  # fmt: skip
    """y[row] = Σ_c g[row, c]·o[row, c], the part of the softmax's gradient that a row has in common."""
    partial = shared_tile()
    for r in range(block_index(), rows, block_count()):
        pair = udiv(r, m)
        i = r - pair * m
        b = udiv(pair, heads)
        h = pair - b * heads
        total = C(0)
        for c in range(thread_index(), e, THREADS):
            total += load_x(g, b * g_batch + h * g_head + i * g_i + c * g_c) * load_x(
                o, b * o_batch + h * o_head + i * o_i + c * o_c
            )
        total = block_sum(partial, total)
        if thread_index() == 0:
            store_s(y, r, total)


def query_gradient(
    dq: Pointer, q: Pointer, k: Pointer, v: Pointer, g: Pointer, lse: Pointer, delta: Pointer, mask: Pointer,
    bias: Pointer, scale: Number, p: Number, kept: Number,
    batches: int, heads: int, group: int, m: int, n: int, d: int, e: int, diagonal: int, has_mask: int, has_bias: int,
    seed: int, offset: int,
    dq_batch: int, dq_head: int, dq_i: int, dq_c: int, q_batch: int, q_head: int, q_i: int, q_c: int,
    k_batch: int, k_head: int, k_j: int, k_c: int, v_batch: int, v_head: int, v_j: int, v_c: int,
    g_batch: int, g_head: int, g_i: int, g_c: int, mask_batch: int, mask_head: int, mask_i: int, mask_j: int,
    bias_batch: int, bias_head: int, bias_i: int, bias_j: int,
) -> None:  # fmt: skip
    """dq = scale·dS·k with dS = P·(dP − delta), dP = g·vᵀ and P = exp(logits − lse), all computed again."""
    stage = shared_stage()
    tile = shared_tile()
    factors = shared_factors()
    s = own_s()
    u = own_u()
    shift = own_top()
    common = own_total()
    y = own_first()
    bare = has_mask + has_bias == 0
    t = thread_index()
    lane = t % SIDE
    row = t // SIDE * T
    tiles = udiv(m + SIZE - 1, SIZE)
    chunks = udiv(d + WIDE - 1, WIDE)
    pairs = batches * heads
    for item in range(block_index(), pairs * tiles * chunks, block_count()):
        rest = udiv(item, chunks)
        c0 = (item - rest * chunks) * WIDE
        order = udiv(rest, pairs)
        i0 = (tiles - 1 - order) * SIZE
        pair = rest - order * pairs
        b = udiv(pair, heads)
        h = pair - b * heads
        kv = udiv(h, group)
        mine = min(T, m - i0) if SIDE == 1 else T
        k_at = b * k_batch + kv * k_head
        extras = (
            has_mask, mask, b * mask_batch + h * mask_head, mask_i, mask_j,
            has_bias, bias, b * bias_batch + h * bias_head, bias_i, bias_j,
        )  # fmt: skip
        for i in range(T):
            inside = i0 + row + i < m
            shift[i] = load_s(lse, pair * m + i0 + row + i) if inside else C(INF)
            common[i] = load_s(delta, pair * m + i0 + row + i) if inside else C(0)
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
                u[i] = C(0)
            accumulate(
                (s, stage, mine), (q, b * q_batch + h * q_head, q_i, q_c, i0, m, d), (k, k_at, k_j, k_c, j0, n, d)
            )
            accumulate(
                (u, stage, mine), (g, b * g_batch + h * g_head, g_i, g_c, i0, m, e),
                (v, b * v_batch + kv * v_head, v_j, v_c, j0, n, e),
            )  # fmt: skip
            for i in range(T):
                for j in range(T):
                    at = (row + i) * STRIDE + lane * T + j
                    value = s[i * T + j] * scale
                    value = exp((value if plain else marked(value, tile[at])) - shift[i])
                    tile[at] = value * ((u[i * T + j] * factors[at] if DROPOUT else u[i * T + j]) - common[i])
            barrier()
            fold(y, (tile, stage, mine), (k, k_at, k_j, k_c, j0, n, c0, d))
        for i in range(T):
            if i0 + row + i < m:
                at = b * dq_batch + h * dq_head + (i0 + row + i) * dq_i
                for j in range(TY):
                    c = c0 + (j if SIDE == 1 else j // GROUP * (GROUP * SIDE) + lane * GROUP + j % GROUP)
                    if c < d:
                        store_y(dq, at + c * dq_c, y[i * TY + j] * scale)


def key_gradient(
    dk: Pointer, dv: Pointer, q: Pointer, k: Pointer, v: Pointer, g: Pointer, lse: Pointer, delta: Pointer,
    mask: Pointer, bias: Pointer, scale: Number, p: Number, kept: Number,
    batches: int, heads: int, group: int, m: int, n: int, d: int, e: int, diagonal: int, has_mask: int, has_bias: int,
    seed: int, offset: int,
    dk_batch: int, dk_head: int, dk_j: int, dk_c: int, dv_batch: int, dv_head: int, dv_j: int, dv_c: int,
    q_batch: int, q_head: int, q_i: int, q_c: int,
    k_batch: int, k_head: int, k_j: int, k_c: int, v_batch: int, v_head: int, v_j: int, v_c: int,
    g_batch: int, g_head: int, g_i: int, g_c: int, mask_batch: int, mask_head: int, mask_i: int, mask_j: int,
    bias_batch: int, bias_head: int, bias_i: int, bias_j: int,
) -> None:  # fmt: skip
    """dk = scale·dSᵀ·q and dv = Pᵀ·g for SIZE keys, over the queries of all heads that share them, in order.

    The tiles are transposed: rows are keys. See `query_gradient`.
    """
    stage = shared_stage()
    tile = shared_tile()
    factors = shared_factors()
    s = own_s()
    u = own_u()
    yk = own_first()
    yv = own_second()
    bare = has_mask + has_bias == 0
    t = thread_index()
    lane = t % SIDE
    row = t // SIDE * T
    kv_heads = udiv(heads, group)
    tiles = udiv(n + SIZE - 1, SIZE)
    chunks = udiv(max(d, e) + WIDE - 1, WIDE)
    pairs = batches * kv_heads
    for item in range(block_index(), pairs * tiles * chunks, block_count()):
        rest = udiv(item, chunks)
        c0 = (item - rest * chunks) * WIDE
        order = udiv(rest, pairs)
        j0 = order * SIZE
        pair = rest - order * pairs
        b = udiv(pair, kv_heads)
        kv = pair - b * kv_heads
        mine = min(T, n - j0) if SIDE == 1 else T
        k_at = b * k_batch + kv * k_head
        v_at = b * v_batch + kv * v_head
        first = max(0, j0 - diagonal)
        for i in range(T * TY):
            yk[i] = C(0)
            yv[i] = C(0)
        for h in range(kv * group, kv * group + group):
            q_at = b * q_batch + h * q_head
            g_at = b * g_batch + h * g_head
            base = (b * heads + h) * m
            extras = (
                has_mask, mask, b * mask_batch + h * mask_head, mask_i, mask_j,
                has_bias, bias, b * bias_batch + h * bias_head, bias_i, bias_j,
            )  # fmt: skip
            for i0 in range(first - first % SIZE, m, SIZE):
                plain = bare and i0 + SIZE <= m and j0 + SIZE <= n and j0 + SIZE <= i0 + diagonal + 1
                if not plain:
                    mark(tile, (i0, j0, m, n, diagonal), extras)
                if DROPOUT:
                    draw(factors, (base + i0, j0, udiv(n + 3, 4)), (seed, offset, p, kept))
                for i in range(T * T):
                    s[i] = C(0)
                    u[i] = C(0)
                accumulate((s, stage, mine), (k, k_at, k_j, k_c, j0, n, d), (q, q_at, q_i, q_c, i0, m, d))
                accumulate((u, stage, mine), (v, v_at, v_j, v_c, j0, n, e), (g, g_at, g_i, g_c, i0, m, e))
                for j in range(T):
                    i = i0 + lane * T + j
                    shift = load_s(lse, base + i) if i < m else C(INF)
                    common = load_s(delta, base + i) if i < m else C(0)
                    for r in range(T):
                        at = (row + r) * STRIDE + lane * T + j
                        value = s[r * T + j] * scale
                        value = exp((value if plain else marked(value, tile[at])) - shift)
                        if DROPOUT:
                            s[r * T + j] = value * (u[r * T + j] * factors[at] - common)
                            tile[at] = value * factors[at]
                        else:
                            s[r * T + j] = value * (u[r * T + j] - common)
                            tile[at] = value
                barrier()
                fold(yv, (tile, stage, mine), (g, g_at, g_i, g_c, i0, m, c0, e))
                for r in range(T):
                    for j in range(T):
                        tile[(row + r) * STRIDE + lane * T + j] = s[r * T + j]
                barrier()
                fold(yk, (tile, stage, mine), (q, q_at, q_i, q_c, i0, m, c0, d))
        for r in range(T):
            if j0 + row + r < n:
                dk_at = b * dk_batch + kv * dk_head + (j0 + row + r) * dk_j
                dv_at = b * dv_batch + kv * dv_head + (j0 + row + r) * dv_j
                for j in range(TY):
                    c = c0 + (j if SIDE == 1 else j // GROUP * (GROUP * SIDE) + lane * GROUP + j % GROUP)
                    if c < d:
                        store_y(dk, dk_at + c * dk_c, yk[r * TY + j] * scale)
                    if c < e:
                        store_y(dv, dv_at + c * dv_c, yv[r * TY + j])


def bias_gradient(
    q: Pointer, k: Pointer, v: Pointer, g: Pointer, lse: Pointer, delta: Pointer, db: Pointer, mask: Pointer,
    bias: Pointer, scale: Number, p: Number, kept: Number,
    batches: int, heads: int, group: int, m: int, n: int, d: int, e: int, diagonal: int, has_mask: int, has_bias: int,
    seed: int, offset: int, splits: int, all_b: int, all_h: int, all_i: int, all_j: int,
    q_batch: int, q_head: int, q_i: int, q_c: int,
    k_batch: int, k_head: int, k_j: int, k_c: int, v_batch: int, v_head: int, v_j: int, v_c: int,
    g_batch: int, g_head: int, g_i: int, g_c: int, mask_batch: int, mask_head: int, mask_i: int, mask_j: int,
    bias_batch: int, bias_head: int, bias_i: int, bias_j: int,
) -> None:  # fmt: skip
    """db[split, …] = Σ dS over the axes that the bias is broadcast along (all_… = 0), a part of them for each split."""
    stage = shared_stage()
    tile = shared_tile()
    factors = shared_factors()
    s = own_s()
    u = own_u()
    y = own_first()
    bare = has_mask + has_bias == 0
    t = thread_index()
    lane = t % SIDE
    row = t // SIDE * T
    tiles_i = udiv(m + SIZE - 1, SIZE)
    tiles_j = udiv(n + SIZE - 1, SIZE)
    # of each axis: the steps that the result keeps, and those that are summed
    kept_b, kept_h = batches if all_b else 1, heads if all_h else 1
    kept_i, kept_j = tiles_i if all_i else 1, tiles_j if all_j else 1
    summed_h, summed_i, summed_j = 1 if all_h else heads, 1 if all_i else tiles_i, 1 if all_j else tiles_j
    summed = (1 if all_b else batches) * summed_h * summed_i * summed_j
    share = udiv(summed + splits - 1, splits)
    m_out, n_out = m if all_i else 1, n if all_j else 1
    for item in range(block_index(), splits * kept_b * kept_h * kept_i * kept_j, block_count()):
        rest = udiv(item, kept_j)
        out_j = item - rest * kept_j
        out_bhs = udiv(rest, kept_i)  # (split, batch, head) of the result, in one number
        out_i = rest - out_bhs * kept_i
        out_bs = udiv(out_bhs, kept_h)
        out_h = out_bhs - out_bs * kept_h
        split = udiv(out_bs, kept_b)
        out_b = out_bs - split * kept_b
        for i in range(T * T):
            y[i] = C(0)
        for step in range(split * share, min(summed, split * share + share)):
            step_i = udiv(step, summed_j)
            step_h = udiv(step_i, summed_i)
            step_b = udiv(step_h, summed_h)
            b = out_b + step_b  # one of the two is 0
            h = out_h + step_h - step_b * summed_h
            i0 = (out_i + step_i - step_h * summed_i) * SIZE
            j0 = (out_j + step - step_i * summed_j) * SIZE
            kv = udiv(h, group)
            base = (b * heads + h) * m
            mine = min(T, m - i0) if SIDE == 1 else T
            extras = (
                has_mask, mask, b * mask_batch + h * mask_head, mask_i, mask_j,
                has_bias, bias, b * bias_batch + h * bias_head, bias_i, bias_j,
            )  # fmt: skip
            if j0 < i0 + SIZE + diagonal:
                plain = bare and i0 + SIZE <= m and j0 + SIZE <= n and j0 + SIZE <= i0 + diagonal + 1
                if not plain:
                    mark(tile, (i0, j0, m, n, diagonal), extras)
                if DROPOUT:
                    draw(factors, (base + i0, j0, udiv(n + 3, 4)), (seed, offset, p, kept))
                for i in range(T * T):
                    s[i] = C(0)
                    u[i] = C(0)
                accumulate(
                    (s, stage, mine), (q, b * q_batch + h * q_head, q_i, q_c, i0, m, d),
                    (k, b * k_batch + kv * k_head, k_j, k_c, j0, n, d),
                )  # fmt: skip
                accumulate(
                    (u, stage, mine), (g, b * g_batch + h * g_head, g_i, g_c, i0, m, e),
                    (v, b * v_batch + kv * v_head, v_j, v_c, j0, n, e),
                )  # fmt: skip
                for i in range(T):
                    inside = i0 + row + i < m
                    shift = load_s(lse, base + i0 + row + i) if inside else C(INF)
                    common = load_s(delta, base + i0 + row + i) if inside else C(0)
                    for j in range(T):
                        at = (row + i) * STRIDE + lane * T + j
                        value = s[i * T + j] * scale
                        value = exp((value if plain else marked(value, tile[at])) - shift)
                        y[i * T + j] += value * ((u[i * T + j] * factors[at] if DROPOUT else u[i * T + j]) - common)
                barrier()  # the tile is marked again
        barrier()
        for i in range(T):
            for j in range(T):
                tile[(row + i) * STRIDE + lane * T + j] = y[i * T + j]
        barrier()
        for cell in range(t, (SIZE if all_i else 1) * (SIZE if all_j else 1), THREADS):
            i0 = cell // SIZE if all_i and all_j else cell if all_i else 0
            j0 = 0 if all_j == 0 else cell % SIZE
            value = C(0)
            for i in range(i0, i0 + 1 if all_i else SIZE):
                for j in range(j0, j0 + 1 if all_j else SIZE):
                    value += tile[i * STRIDE + j]
            if out_i * SIZE + i0 < m_out and out_j * SIZE + j0 < n_out:
                store_s(db, (out_bhs * m_out + out_i * SIZE + i0) * n_out + out_j * SIZE + j0, value)
        barrier()


def dropout_factors(y: Pointer, p: Number, kept: Number, rows: int, n: int, seed: int, offset: int) -> None:
    """What `draw` draws, as a matrix (rows, n)."""
    words = own_words()
    each = udiv(n + 3, 4)
    for e in range(grid(), rows * each, gridsize()):
        i = udiv(e, each)
        g = e - i * each
        philox(words, seed, offset + e)
        for w in range(4):
            if 4 * g + w < n:
                store_s(y, i * n + 4 * g + w, kept if C(words[w] >> U(8)) * C(2.0**-24) >= p else C(0))
