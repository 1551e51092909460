"""Convolution as a matrix product whose right operand is gathered from the windows, tile by tile: no columns in memory.

One kernel makes the three products of a convolution y = w ∗ x (FORWARD), of its adjoint in x (INPUT) and in w (WEIGHT):

    y[o, position]   = Σ over (c, tap)       w[o, c, tap]    · x[c, window(position, tap)]
    dx[c, position]  = Σ over (o, tap)       w[o, c, tap]    · g[o, the output that reads the position by that tap]
    dw[o, (c, tap)]  = Σ over all positions  g[o, position]  · x[c, window(position, tap)]

The place that is read is the sum of a part that the product's column decides and one that the summed index decides.
Both parts stand in tables in shared memory, filled once a tile and once a slab, so that no division is made for an
element. Strides: the INPUT product is made for each phase of the positions modulo the stride by itself, over the taps
that reach it, and then looks like one of stride 1. A deep product may be cut into `splits` parts, to be added later.
"""

from __future__ import annotations

from ...dtypes import DType, int64
from ..compiler.compile import Program
from ..language import (
    BK,
    BM,
    BN,
    MODE,
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
    load_a,
    load_b,
    own_a,
    own_b,
    own_sum,
    shared_a,
    shared_b,
    shared_columns,
    shared_taps,
    store_y,
    thread_index,
    udiv,
)
from ..products.matmul import HOST_TILE, LARGE_TILE, SMALL_TILE, Tile

FORWARD, INPUT, WEIGHT = 0, 1, 2
_OUTSIDE = -(1 << 40)  # a coordinate that no sum brings back inside


def gather_product(
    y: Pointer, a: Pointer, b: Pointer, groups: int, splits: int, chunk: int, rows: int, columns: int, depth: int,
    id_: int, ih: int, iw: int, kd: int, kh: int, kw: int, od: int, oh: int, ow: int,
    sd: int, sh: int, sw: int, pd: int, ph: int, pw: int, dd: int, dh: int, dw: int, jd: int, jh: int, jw: int,
    a_group: int, a_row: int, a_n: int, a_d: int, a_h: int, a_w: int,
    b_group: int, b_n: int, b_c: int, b_d: int, b_h: int, b_w: int,
    y_split: int, y_group: int, y_row: int, y_n: int,
) -> None:  # fmt: skip
    """y[split, group, row, column] = Σ a·b over the split's part (`chunk` long) of the summed index.

    i.: inputs, k.: taps, o.: outputs, s., p., d.: stride, padding, dilation along the three axes; j.: distance of the
    taps that reach one phase. a_., b_., y_.: strides in elements. depth: length of the summed index (INPUT: outputs
    alone; the taps of the phase come to it).
    """
    tile_a = shared_a()
    tile_b = shared_b()
    column_at = shared_columns()  # for each column: where it reads, its coordinates, where it is written
    tap_at = shared_taps()  # for each summed index: where it reads in a and in b, its coordinates
    left = own_a()
    right = own_b()
    total = own_sum()
    t = thread_index()
    row = (t // (BN // TN)) * TM
    column = (t % (BN // TN)) * TN
    tiles_m = udiv(rows + BM - 1, BM)
    tiles_n = udiv(columns + BN - 1, BN)
    phases = sd * sh * sw if MODE == INPUT else 1
    size_d, size_h, size_w = (od, oh, ow) if MODE == INPUT else (id_, ih, iw)  # what is gathered from
    span_d, span_h, span_w = (od, oh, ow)  # what positions run over
    if MODE == INPUT:
        span_d, span_h, span_w = udiv(id_ + sd - 1, sd), udiv(ih + sh - 1, sh), udiv(iw + sw - 1, sw)
    first_d, first_h, first_w = 0, 0, 0  # of the phase: the first tap, and how many
    n_d, n_h, n_w = kd, kh, kw
    rho_d, rho_h, rho_w = 0, 0, 0
    k_end = depth
    for item in range(block_index(), groups * splits * phases * tiles_m * tiles_n, block_count()):
        rest = udiv(item, tiles_m)  # tiles of the same columns follow each other
        i0 = (item - rest * tiles_m) * BM
        part = udiv(rest, tiles_n)
        j0 = (rest - part * tiles_n) * BN
        rest = udiv(part, splits)
        split = part - rest * splits
        group = udiv(rest, phases)
        if MODE == INPUT:
            phase = rest - group * phases
            rest = udiv(phase, sw)
            rho_w = phase - rest * sw
            rho_d = udiv(rest, sh)
            rho_h = rest - rho_d * sh
            first_d, first_h, first_w = 0, 0, 0
            while first_d < kd and (first_d * dd - rho_d) - udiv(first_d * dd, sd) * sd != 0:
                first_d += 1
            while first_h < kh and (first_h * dh - rho_h) - udiv(first_h * dh, sh) * sh != 0:
                first_h += 1
            while first_w < kw and (first_w * dw - rho_w) - udiv(first_w * dw, sw) * sw != 0:
                first_w += 1
            n_d, n_h, n_w = (
                udiv(kd - first_d + jd - 1, jd),
                udiv(kh - first_h + jh - 1, jh),
                udiv(kw - first_w + jw - 1, jw),
            )
            k_end = depth * n_d * n_h * n_w
        barrier()  # the tables of the tile before are no longer read
        for e in range(t, BN, THREADS):
            j = j0 + e
            at, d, h, w, to = 0, _OUTSIDE, 0, 0, -1
            if j < columns:
                if MODE == WEIGHT:  # (c, tap)
                    rest = udiv(j, kw)
                    w = (j - rest * kw) * dw
                    plane = udiv(rest, kh)
                    h = (rest - plane * kh) * dh
                    c = udiv(plane, kd)
                    d = (plane - c * kd) * dd
                    at, to = c * b_c, j
                else:  # (image, position)
                    rest = udiv(j, span_w)
                    w = j - rest * span_w
                    plane = udiv(rest, span_h)
                    h = rest - plane * span_h
                    n = udiv(plane, span_d)
                    d = plane - n * span_d
                    at = n * b_n
                    if MODE == FORWARD:
                        to = n * y_n + (d * oh + h) * ow + w
                        d, h, w = d * sd - pd, h * sh - ph, w * sw - pw
                    else:
                        d += udiv(max(pd - rho_d, 0) + sd - 1, sd)
                        h += udiv(max(ph - rho_h, 0) + sh - 1, sh)
                        w += udiv(max(pw - rho_w, 0) + sw - 1, sw)
                        u, v, z = d * sd + rho_d - pd, h * sh + rho_h - ph, w * sw + rho_w - pw
                        if u < id_ and v < ih and z < iw:
                            to = n * y_n + (u * ih + v) * iw + z
            column_at[e] = at
            column_at[BN + e] = d
            column_at[2 * BN + e] = h
            column_at[3 * BN + e] = w
            column_at[4 * BN + e] = to
        barrier()
        for e in range(TM * TN):
            total[e] = C(0)
        stop = min(k_end, (split + 1) * chunk)
        for k0 in range(split * chunk, stop, BK):
            for e in range(t, BK, THREADS):
                k = k0 + e
                in_a, in_b, d, h, w = 0, 0, _OUTSIDE, 0, 0
                if k < stop:
                    if MODE == WEIGHT:  # (image, position)
                        rest = udiv(k, ow)
                        w = k - rest * ow
                        plane = udiv(rest, oh)
                        h = rest - plane * oh
                        n = udiv(plane, od)
                        d = plane - n * od
                        in_a = n * a_n + d * a_d + h * a_h + w * a_w
                        in_b = n * b_n
                        d, h, w = d * sd - pd, h * sh - ph, w * sw - pw
                    else:  # (channel, tap)
                        rest = udiv(k, n_w)
                        w = first_w + (k - rest * n_w) * jw
                        plane = udiv(rest, n_h)
                        h = first_h + (rest - plane * n_h) * jh
                        c = udiv(plane, n_d)
                        d = first_d + (plane - c * n_d) * jd
                        in_a = c * a_n + (d * kh + h) * kw + w
                        in_b = c * b_c
                        if MODE == FORWARD:
                            d, h, w = d * dd, h * dh, w * dw
                        else:
                            d = -udiv(d * dd - rho_d, sd)
                            h = -udiv(h * dh - rho_h, sh)
                            w = -udiv(w * dw - rho_w, sw)
                tap_at[e] = in_a
                tap_at[BK + e] = in_b
                tap_at[2 * BK + e] = d
                tap_at[3 * BK + e] = h
                tap_at[4 * BK + e] = w
            barrier()
            for e in range(t, BM * BK, THREADS):
                i = e // BK
                p = e % BK
                inside = i0 + i < rows and k0 + p < stop
                tile_a[p * BM + i] = load_a(a, group * a_group + (i0 + i) * a_row + tap_at[p]) if inside else C(0)
            for e in range(t, BN * BK, THREADS):
                # neighbouring threads take neighbouring positions
                j = e // BK if MODE == WEIGHT else e % BN
                p = e % BK if MODE == WEIGHT else e // BN
                d = column_at[BN + j] + tap_at[2 * BK + p]
                h = column_at[2 * BN + j] + tap_at[3 * BK + p]
                w = column_at[3 * BN + j] + tap_at[4 * BK + p]
                inside = d >= 0 and d < size_d and h >= 0 and h < size_h and w >= 0 and w < size_w
                at = group * b_group + column_at[j] + tap_at[BK + p] + d * b_d + h * b_h + w * b_w
                tile_b[p * BN + j] = load_b(b, at) if inside else C(0)
            barrier()
            for p in range(BK):
                for i in range(TM):
                    left[i] = tile_a[p * BM + row + i]
                for j in range(TN):
                    right[j] = tile_b[p * BN + column + j]
                for i in range(TM):
                    for j in range(TN):
                        total[i * TN + j] += left[i] * right[j]
            barrier()
        for i in range(TM):
            for j in range(TN):
                to = column_at[4 * BN + column + j]
                if i0 + row + i < rows and to >= 0:
                    base = split * y_split + group * y_group + (i0 + row + i) * y_row
                    store_y(y, base + to, total[i * TN + j])


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
    compute = a.accumulator
    bindings = {
        "load_a": Load(a, compute), "load_b": Load(b, compute), "store_y": Store(y, compute),
        "shared_a": Array(compute, tile.m * tile.k, shared=True),
        "shared_b": Array(compute, tile.n * tile.k, shared=True),
        "shared_columns": Array(int64, 5 * tile.n, shared=True),
        "shared_taps": Array(int64, 5 * tile.k, shared=True),
        "own_a": Array(compute, tile.tm, shared=False),
        "own_b": Array(compute, tile.tn, shared=False),
        "own_sum": Array(compute, tile.tm * tile.tn, shared=False),
        "BM": tile.m, "BN": tile.n, "BK": tile.k, "TM": tile.tm, "TN": tile.tn, "MODE": mode,
    }  # fmt: skip
    name = ("convolve", "convolve_input", "convolve_weight")[mode]
    return Program(
        name, (y, a, b, *("int",) * 43), compute, bindings, function=gather_product, threads=tile.threads
    )  # fmt: skip


__all__ = ["FORWARD", "HOST_TILE", "INPUT", "WEIGHT", "cuda_tile", "gather_product_program"]
