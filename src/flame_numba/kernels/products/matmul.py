"""Matrix product, general kernel: any strides, any dtype, batches. Tiles in shared memory, a micro-tile a thread."""

from __future__ import annotations

from typing import Any

from ...dtypes import DType
from ..compiler.compile import Program
from ..language import (
    BK,
    BM,
    BN,
    TM,
    TN,
    C,
    Load,
    Pointer,
    Store,
    barrier,
    block_count,
    block_index,
    load_a,
    load_b,
    own_sum,
    shared_a,
    shared_b,
)
from ..tile.arguments import Arguments, integers, operand
from ..tile.index import ceiling, divide
from ..tile.micro import LARGE_TILE, SMALL_TILE, Tile, fill, held, multiply, store_tile, unchanged
from ..tile.stage import Matrix, Stage, load_tile


def matmul(y: Pointer, a: Any, b: Any, size: Any) -> None:
    """y[batch, i, j] = Σ a[batch, i, k]·b[batch, k, j]; strides in elements, so transposes and broadcasts are free."""
    stage_a, stage_b, total = Stage(shared_a(), 0, BM), Stage(shared_b(), 0, BN), own_sum()
    tiles_m, tiles_n = ceiling(size.m, BM), ceiling(size.n, BN)
    for item in range(block_index(), size.batches * tiles_m * tiles_n, block_count()):
        batch, tile = divide(item, tiles_m * tiles_n)
        down, right = divide(tile, tiles_n)
        i0, j0 = down * BM, right * BN
        rows, columns = of_batch(batch, a, b, size)
        fill(total, TM * TN, C(0))
        for k0 in range(0, size.k, BK):
            load_tile(stage_a, BM, BK, rows, i0, k0, load_a)
            load_tile(stage_b, BN, BK, columns, j0, k0, load_b)
            barrier()
            multiply(total, stage_a, stage_b, held(BK, size.k - k0), TM, TN)
            barrier()
        store_tile(y, total, (batch, i0, j0, size.m, size.n), row_major, unchanged)


def of_batch(batch: int, a: Any, b: Any, size: Any) -> tuple[Matrix, Matrix]:
    """The two matrices of a batch, b transposed: in both, what is summed lies along the second axis."""
    outer, inner = divide(batch, size.inner)
    left = Matrix(a.data, outer * a.outer + inner * a.inner, a.row, a.column, size.m, size.k)
    right = Matrix(b.data, outer * b.outer + inner * b.inner, b.column, b.row, size.n, size.k)
    return left, right


def row_major(out: Any, i: int, j: int) -> tuple[bool, int]:
    """Where row i, column j of the tile goes to."""
    batch, i0, j0, m, n = out
    return i0 + i < m and j0 + j < n, (batch * m + i0 + i) * n + j0 + j


MATMUL = Arguments(
    matmul,
    y="y",
    a=operand("a", "outer inner row column"),
    b=operand("b", "outer inner row column"),
    size=integers("batches inner m n k"),  # inner: of the batches, how many lie along the inner of two axes
)


def cuda_tile(m: int, n: int) -> Tile:
    """The large tile where it still gives every multiprocessor work."""
    return LARGE_TILE if min(m, n) >= 2048 else SMALL_TILE


def matmul_program(a: DType, b: DType, y: DType, compute: DType, tile: Tile) -> Program:
    loads = {"load_a": Load(a, compute), "load_b": Load(b, compute), "store_y": Store(y, compute)}
    bindings = {**loads, **tile.bindings(compute)}
    return MATMUL.program("matmul", {"y": y, "a": a, "b": b}, compute, bindings, tile.threads)
