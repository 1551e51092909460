"""Matrix product, general kernel: any strides, any dtype, batches. Tiles in shared memory, a micro-tile a thread."""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    BK,
    BM,
    BN,
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
    store_y,
    thread_index,
    udiv,
)


@dataclass(frozen=True)
class Tile:
    """A block computes m × n of the product, k at a time; a thread tm × tn of it."""

    m: int
    n: int
    k: int
    tm: int
    tn: int

    @property
    def threads(self) -> int:
        return (self.m // self.tm) * (self.n // self.tn)


SMALL_TILE = Tile(64, 64, 16, 4, 4)
LARGE_TILE = Tile(128, 128, 16, 8, 8)  # more arithmetic for each element fetched, but fewer blocks
HOST_TILE = Tile(8, 8, 64, 8, 8)  # one thread holds the whole tile


def matmul(
    y: Pointer, a: Pointer, b: Pointer, batches: int, inner_batches: int, m: int, n: int, k: int,
    a_outer: int, a_inner: int, a_m: int, a_k: int, b_outer: int, b_inner: int, b_k: int, b_n: int,
) -> None:  # fmt: skip
    """y[batch, i, j] = Σ a[batch, i, k]·b[batch, k, j]; strides in elements, so transposes and broadcasts are free."""
    tile_a = shared_a()
    tile_b = shared_b()
    left = own_a()
    right = own_b()
    total = own_sum()
    t = thread_index()
    row = (t // (BN // TN)) * TM
    column = (t % (BN // TN)) * TN
    tiles_m = udiv(m + BM - 1, BM)
    tiles_n = udiv(n + BN - 1, BN)
    for item in range(block_index(), batches * tiles_m * tiles_n, block_count()):
        batch = udiv(item, tiles_m * tiles_n)
        tile = item - batch * tiles_m * tiles_n
        i0 = udiv(tile, tiles_n) * BM
        j0 = (tile - udiv(tile, tiles_n) * tiles_n) * BN
        outer = udiv(batch, inner_batches)
        inner = batch - outer * inner_batches
        a_at = outer * a_outer + inner * a_inner
        b_at = outer * b_outer + inner * b_inner
        for e in range(TM * TN):
            total[e] = C(0)
        for k0 in range(0, k, BK):
            # neighbouring threads take neighbouring elements of whichever axis is dense
            for e in range(t, BM * BK, THREADS):
                i = e // BK if a_k == 1 else e % BM
                p = e % BK if a_k == 1 else e // BM
                inside = i0 + i < m and k0 + p < k
                tile_a[p * BM + i] = load_a(a, a_at + (i0 + i) * a_m + (k0 + p) * a_k) if inside else C(0)
            for e in range(t, BN * BK, THREADS):
                j = e // BK if b_k == 1 else e % BN
                p = e % BK if b_k == 1 else e // BN
                inside = j0 + j < n and k0 + p < k
                tile_b[p * BN + j] = load_b(b, b_at + (k0 + p) * b_k + (j0 + j) * b_n) if inside else C(0)
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
                if i0 + row + i < m and j0 + column + j < n:
                    store_y(y, (batch * m + i0 + row + i) * n + j0 + column + j, total[i * TN + j])


def cuda_tile(m: int, n: int) -> Tile:
    """The large tile where it still gives every multiprocessor work."""
    return LARGE_TILE if min(m, n) >= 2048 else SMALL_TILE


def matmul_program(a: DType, b: DType, y: DType, compute: DType, tile: Tile) -> Program:
    return Program(
        "matmul",
        (y, a, b, *("int",) * 13),
        compute,
        {
            "load_a": Load(a, compute), "load_b": Load(b, compute), "store_y": Store(y, compute),
            "shared_a": Array(compute, tile.m * tile.k, shared=True),
            "shared_b": Array(compute, tile.n * tile.k, shared=True),
            "own_a": Array(compute, tile.tm, shared=False),
            "own_b": Array(compute, tile.tn, shared=False),
            "own_sum": Array(compute, tile.tm * tile.tn, shared=False),
            "BM": tile.m, "BN": tile.n, "BK": tile.k, "TM": tile.tm, "TN": tile.tn,
        },
        function=matmul,
        threads=tile.threads,
    )  # fmt: skip
