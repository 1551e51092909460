"""Staging: a block copies a tile of a matrix to shared memory, so that each element is fetched once for many uses.

a matrix in memory                       its tile, staged: an index of the sum to a row
             p0      p0 + depth
        ┌─────┬───────┬───┐                    i0   …   i0 + width
     i0 │     │▒▒▒▒▒▒▒│   │                p0 ┌────────────┐
        │     │▒▒▒▒▒▒▒│   │       →         … │▒▒▒▒▒▒▒▒▒▒▒▒│
i0+width│     │▒▒▒▒▒▒▒│   │                   └────────────┘
        └─────┴───────┴───┘
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..language import THREADS, C, Pointer, thread_index


class Matrix(NamedTuple):
    """Elements in memory: x[i, p] lies at data[offset + i·row + p·column]."""

    data: Pointer
    offset: int
    row: int
    column: int
    rows: int
    columns: int


class Stage(NamedTuple):
    """A tile in shared memory: element i of the sum's index p lies at memory[first + p·pitch + i]."""

    memory: Pointer
    first: int
    pitch: int


def transposed(x: Any) -> Matrix:
    return Matrix(x.data, x.offset, x.column, x.row, x.columns, x.rows)


def load_tile(stage: Any, width: int, depth: int, x: Any, i0: int, p0: int, load: Any) -> None:
    """stage[p, i] = x[i0 + i, p0 + p] for i < width, p < depth; 0 outside of x, which one thread alone leaves out.

    The threads share it out evenly: width and depth divide their number, and that divides width · depth.
    """
    offset = x.offset + i0 * x.row + p0 * x.column
    rows, columns = x.rows - i0, x.columns - p0
    if THREADS == 1:
        for p in range(min(depth, columns)):
            for i in range(min(width, rows)):
                stage.memory[stage.first + p * stage.pitch + i] = load(x.data, offset + i * x.row + p * x.column)
    else:
        t = thread_index()
        along = x.column == 1  # neighbouring threads take neighbouring elements of whichever axis is dense
        i = t // depth if along else t % width
        p = t % depth if along else t // width
        down = THREADS // depth if along else 0
        right = 0 if along else THREADS // width
        for _ in range(width * depth // THREADS):
            value = load(x.data, offset + i * x.row + p * x.column) if i < rows and p < columns else C(0)
            stage.memory[stage.first + p * stage.pitch + i] = value
            i += down
            p += right
