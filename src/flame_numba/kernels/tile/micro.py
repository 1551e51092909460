"""The micro-tile: what each thread of a block holds of a tile of the product, in registers.

          right: TN of the staged row p of b
         ┌────┬────┬────┐
         │    │▒▒▒▒│    │     Each thread fetches TM and TN numbers and multiplies every pair:
    ┌──┐ ┌────┬────┬────┐     TM·TN products for TM + TN reads of shared memory.
    │  │ │    │    │    │
TM  │▒▒│ │    │████│    │     ACROSS threads lie side by side.
    │  │ │    │    │    │
    └──┘ └────┴────┴────┘
  left: of the staged row p of a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...dtypes import DType
from ..language import ACROSS, THREADS, TM, TN, Array, Number, Pointer, own_left, own_right, store_y, thread_index


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

    def bindings(self, compute: DType) -> dict[str, Any]:
        """Memory and constants of a kernel that multiplies by this tile, one of each operand staged."""
        return {
            "shared_a": Array(compute, self.m * self.k, shared=True),
            "shared_b": Array(compute, self.n * self.k, shared=True),
            **micro_tile(compute, self.tm, self.tn, self.n // self.tn),
            "own_sum": Array(compute, self.tm * self.tn, shared=False),
            "BM": self.m, "BN": self.n, "BK": self.k,
        }  # fmt: skip


SMALL_TILE = Tile(64, 64, 16, 4, 4)
LARGE_TILE = Tile(128, 128, 16, 8, 8)  # more arithmetic for each element fetched, but fewer blocks
HOST_TILE = Tile(8, 8, 64, 8, 8)  # one thread holds the whole tile


def micro_tile(compute: DType, tm: int, tn: int, across: int) -> dict[str, Any]:
    """What `multiply` and the others are compiled with."""
    return {
        "own_left": Array(compute, tm, shared=False), "own_right": Array(compute, tn, shared=False),
        "TM": tm, "TN": tn, "ACROSS": across,
    }  # fmt: skip


def first_row() -> int:
    """Of this thread, in the tile."""
    return thread_index() // ACROSS * TM


def first_column() -> int:
    return thread_index() % ACROSS * TN


def fill(own: Pointer, count: int, value: Number) -> None:
    for i in range(count):
        own[i] = value


def held(most: int, left: int) -> int:
    """How many of a thread's numbers are worth computing: only one thread alone leaves out what lies outside."""
    return min(most, left) if THREADS == 1 else most


def multiply(total: Pointer, a: Any, b: Any, depth: int, rows: int, columns: int) -> None:
    """total[i, j] += Σ_p a[p, i]·b[p, j] over two stages, for this thread's numbers, rows × columns of them."""
    left, right = own_left(), own_right()
    row, column = a.first + first_row(), b.first + first_column()
    for p in range(depth):
        for i in range(TM):
            left[i] = a.memory[p * a.pitch + row + i]
        for j in range(TN):
            right[j] = b.memory[p * b.pitch + column + j]
        add_outer(total, left, right, TN, rows, columns)


def add_outer(total: Pointer, left: Pointer, right: Pointer, pitch: int, rows: int, columns: int) -> None:
    """total[i, j] += left[i]·right[j]: the innermost loop of every product."""
    for i in range(rows):
        for j in range(columns):
            total[i * pitch + j] += left[i] * right[j]


def store_tile(y: Pointer, total: Pointer, out: Any, place: Any, epilogue: Any) -> None:
    """y[place of (i, j)] = epilogue(total[i, j]), for what this thread holds of the tile.

    place(out, row, column of the tile) → (whether it is inside, where in y).
    """
    row, column = first_row(), first_column()
    for i in range(TM):
        for j in range(TN):
            inside, at = place(out, row + i, column + j)
            if inside:
                store_y(y, at, epilogue(total[i * TN + j]))


def unchanged(value: Number) -> Number:
    """The epilogue that does nothing."""
    return value
