"""Which moves of bytes may run together, and what each has to wait for: the table that `mover.move_chunks` works off.

Moves are meant one after another, each as `memmove`. A batch is a run of them that can be read in any order: no
source is written by an earlier move of the batch (nor is anything written or read twice). What is left to heed is
that a source is read before a later move overwrites it, and for that the kernel keeps a flag for each chunk.

A row of the table is a move. Rows and flags are in the order of the sources, so that what lies under a target is one
run of rows and of flags; tickets are in the order of the moves. Positions and sizes are in vectors of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]

VECTOR = 16
TARGET, SOURCE, SIZE, TICKET, FLAG, UPWARDS, FIRST, LAST = range(8)
COLUMNS = 8  # TICKET, FLAG: of the first chunk by either order; FIRST … LAST: the rows whose sources the target meets


class Limits(NamedTuple):
    """What one batch may hold."""

    moves: int
    chunks: int


class Batch(NamedTuple):
    """rows: (moves, COLUMNS); row_of: the row of each ticket."""

    rows: Table
    row_of: npt.NDArray[np.int32]


def as_table(moves: Sequence[tuple[int, int, int]] | Table) -> Table:
    """(moves, 3): target, source and nbytes of each move that does something."""
    if isinstance(moves, np.ndarray):
        table = moves.astype(np.int64, copy=False).reshape(-1, 3)
    else:
        table = np.fromiter(chain.from_iterable(moves), np.int64, 3 * len(moves)).reshape(-1, 3)
    useful = (table[:, 2] > 0) & (table[:, 0] != table[:, 1])
    return table if useful.all() else table[useful]


def aligned_runs(table: Table) -> Iterator[tuple[bool, Table]]:
    """The moves cut where they change between multiples of a vector and others."""
    odd = np.bitwise_or.reduce(table, axis=1) % VECTOR != 0
    cuts = np.flatnonzero(odd[1:] != odd[:-1]) + 1
    for begin, end in zip([0, *cuts], [*cuts, len(table)], strict=True):
        if begin < end:
            yield not odd[begin], table[begin:end]


def plan(table: Table, chunk: int, limits: Limits) -> Iterator[Batch]:
    """The moves, multiples of a vector, as batches to run one after another. chunk: vectors."""
    table = _cut_long(table // VECTOR, chunk * limits.chunks)
    window = max(1, limits.moves // 8)  # the device soon has something to do
    while len(table):
        part = table[:window]
        chunks = np.cumsum(_ceil_div(part[:, 2], chunk))
        part = part[: np.searchsorted(chunks, limits.chunks, side="right")]
        order, first, last = _independent(part)
        part = part[: len(order)]
        yield _batch(part, chunk, order, first, last)
        table = table[len(part) :]
        # where moves build on one another batches are short: then it does not pay to look far ahead
        window = min(limits.moves, 4 * len(part))


def _ceil_div(a: Any, b: int) -> Any:
    return -(-a // b)


def _cut_long(table: Table, most: int) -> Table:
    """Moves longer than `most` in pieces; the first to move are those at the end that the move goes to."""
    pieces = _ceil_div(table[:, 2], most)
    if not len(table) or pieces.max() == 1:
        return table
    of = np.repeat(np.arange(len(table)), pieces)
    piece = np.arange(len(of)) - (np.cumsum(pieces) - pieces)[of]
    target, source, size = table[of].T
    start = np.where(target > source, pieces[of] - 1 - piece, piece) * most
    return np.stack([target + start, source + start, np.minimum(size - start, most)], axis=1)


def _independent(table: Table) -> tuple[Table, Table, Table]:
    """Of the longest run of moves from the first on that can be one batch: `_batch` says what.

    order: the moves by their sources; first, last: for each move the places in it that its target meets.
    """
    while True:
        target, source, size = table.T
        order, by_target = np.argsort(source), np.argsort(target)
        begin, target_begin = source[order], target[by_target]
        end, target_end = begin + size[order], target_begin + size[by_target]
        most = min(_first_clash(begin, end, order), _first_clash(target_begin, target_end, by_target))
        if most == len(table):
            first, last = np.empty_like(order), np.empty_like(order)
            first[by_target] = np.searchsorted(end, target_begin, side="right")
            last[by_target] = np.searchsorted(begin, target_end, side="left") - 1
            most = _first_read_of_written(order, first, last)
            if most == len(table):
                return order, first, last
        table = table[:most]


def _first_clash(begin: Table, end: Table, order: Table) -> int:
    """How many moves there are before one whose range meets that of an earlier one. Ranges are sorted by `begin`."""
    meets = end[:-1] > begin[1:]
    return int(np.maximum(order[:-1], order[1:])[meets].min()) if meets.any() else len(order)


def _first_read_of_written(order: Table, first: Table, last: Table) -> int:
    """How many moves there are before one that reads what an earlier one writes."""
    count = last - first + 1
    writer = np.repeat(np.arange(len(order)), count)
    place = np.arange(len(writer)) + np.repeat(first - (np.cumsum(count) - count), count)
    reader = order[place]
    later = reader > writer
    return int(reader[later].min()) if later.any() else len(order)


def _batch(table: Table, chunk: int, order: Table, first: Table, last: Table) -> Batch:
    chunks = _ceil_div(table[:, 2], chunk)
    rows = np.empty((len(table), COLUMNS), np.int64)
    rows[:, TARGET : SIZE + 1] = table[order]
    rows[:, TICKET] = (np.cumsum(chunks) - chunks)[order]
    rows[:, FLAG] = np.cumsum(chunks[order]) - chunks[order]
    rows[:, UPWARDS] = rows[:, TARGET] > rows[:, SOURCE]
    rows[:, FIRST] = first[order]
    rows[:, LAST] = last[order]
    place = np.empty(len(table), np.int32)
    place[order] = np.arange(len(table))
    return Batch(rows, np.repeat(place, chunks))
