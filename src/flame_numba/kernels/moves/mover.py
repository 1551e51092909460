"""Many moves of bytes within the device as few launches, one pass over the bytes, also where they overlap.

A slide by less than its own length overwrites what has not been read, unless someone sees to the order. Here a block
reads a chunk whole into registers, says so, waits until the chunks that lie where it will write have been read too,
and only then writes. Chunks are taken in order by a ticket, so all that a block waits for is running or done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...devices import Backend, Executable, LaunchConfig
from ...dtypes import int32, int64
from ..compiler import compile as compiler
from ..compiler.compile import Program
from ..language import (
    CHUNK,
    SHIFT,
    THREADS,
    VECTORS,
    Array,
    Load,
    LoadVector,
    Pointer,
    StoreVector,
    await_all,
    barrier,
    barrier_after,
    block_count,
    block_index,
    load_row,
    load_words,
    own_words,
    publish,
    shared_number,
    store_words,
    thread_index,
    ticket,
)
from .plan import (
    COLUMNS,
    FIRST,
    FLAG,
    LAST,
    SIZE,
    SOURCE,
    TARGET,
    TICKET,
    UPWARDS,
    VECTOR,
    Batch,
    Limits,
    Table,
    aligned_runs,
    as_table,
    plan,
)

_HEADER_NBYTES = 64
_LIMITS = Limits(8192, 32768)  # tables of 2 MB in all; a launch moves up to 1 GiB
_FEW = 16  # so many moves are queued sooner as copies, if none overlaps itself


def move_chunks(
    memory: Pointer, rows: Pointer, row_of: Pointer, flags: Pointer, counter: Pointer, epoch: int, chunks: int
) -> None:
    """Move what `plan.Batch` describes. memory: address 0, so that an index of 16-byte vectors is an address."""
    number = shared_number()
    words = own_words()
    t = thread_index()
    turn = block_index()
    while turn < chunks:  # as range(turn, chunks, block_count()), which would divide
        if t == 0:
            number[0] = ticket(counter)
        barrier()
        row = load_row(row_of, number[0]) * COLUMNS
        part = number[0] - rows[row + TICKET]
        if rows[row + UPWARDS] > 0:
            part = ((rows[row + SIZE] - 1) >> SHIFT) - part
        source = rows[row + SOURCE] + part * CHUNK
        target = rows[row + TARGET] + part * CHUNK
        size = rows[row + SIZE] - part * CHUNK
        size = size if size < CHUNK else CHUNK
        seen = 0
        for k in range(VECTORS):
            i = k * THREADS + t
            a, b, c, d = load_words(memory, source + (i if i < size else size - 1))  # no branch: all loads at once
            words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3] = a, b, c, d
            seen |= a | b | c | d
        barrier_after(seen)
        mine = rows[row + FLAG] + part
        if t == 0:
            publish(flags, mine, epoch)
        if rows[row + FIRST] <= rows[row + LAST]:
            r = rows[row + FIRST] + t
            while r <= rows[row + LAST]:
                begin = target - rows[r * COLUMNS + SOURCE]  # where we write, seen from the source of that row
                end = begin + size
                limit = rows[r * COLUMNS + SIZE]
                begin = 0 if begin < 0 else begin if begin < limit else limit
                end = 0 if end < 0 else end if end < limit else limit
                first = rows[r * COLUMNS + FLAG] + (begin >> SHIFT)
                last = rows[r * COLUMNS + FLAG] + ((end + CHUNK - 1) >> SHIFT)
                # of its own row a chunk meets itself, last on the way down and first on the way up
                await_all(flags, first + 1 if first == mine else first, last - 1 if last - 1 == mine else last, epoch)
                r += THREADS
            barrier()
        for k in range(VECTORS):
            i = k * THREADS + t
            if i < size:
                store_words(memory, target + i, (words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3]))
        turn += block_count()


def move_program(threads: int, vectors: int, chunk: int) -> Program:
    """Of 16 bytes: `vectors` a thread, `chunk` a block, which is a power of 2."""
    bindings = {
        "load_words": LoadVector(int32, int64, 4), "store_words": StoreVector(int32, int64, 4),
        "load_row": Load(int32, int64), "shared_number": Array(int64, 1, shared=True),
        "own_words": Array(int32, 4 * vectors, shared=False), "VECTORS": vectors, "CHUNK": chunk,
        "SHIFT": chunk.bit_length() - 1,
    }  # fmt: skip
    arguments = (int32, int64, int32, int64, int64, "int", "int")
    return Program("move_chunks", arguments, int64, bindings, function=move_chunks, threads=threads)


class _Slot:
    """Room for one batch, in page-locked host memory and on the device; `event` says when it is free again."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        table_nbytes = _HEADER_NBYTES + 8 * COLUMNS * limits.moves + 4 * limits.chunks
        flags_nbytes = 8 * limits.chunks
        self.host = backend.allocate_host(table_nbytes)
        self.flags = backend.allocate(flags_nbytes + table_nbytes)
        self.table = self.flags + flags_nbytes
        self.epoch = 0  # of the last launch: what its chunks have published, so that flags need no clearing
        self.event: Any = None


class Mover:
    """Moves bytes within one machine. On CUDA by kernel; it holds all the memory that it needs from the beginning.

    threads, vectors: the shape of the kernel, a block moves their product at a time, 16 bytes each. by_kernel: whether
    to use it (default: on CUDA). Not for several threads at once.
    """

    def __init__(
        self,
        backend: Backend,
        threads: int = 512,
        vectors: int = 8,
        by_kernel: bool | None = None,
        limits: Limits = _LIMITS,
    ) -> None:
        self.backend = backend
        self.threads = threads
        self.vectors = vectors
        self.chunk = vectors * (threads if backend.kind == "cuda" else 1)
        self.limits = limits
        self._kernel: Executable | None = None
        self._slots: list[_Slot] = []
        self._turn = 0
        self.done_nbytes = 0  # of the last call of `move`: what was queued, in the order of the list
        if backend.kind == "cuda" if by_kernel is None else by_kernel:
            self._uploads = backend.new_stream()  # the next table travels while a kernel works off the last
            for _ in range(2):
                self._slots.append(_Slot(backend, limits))
                backend.fill(self._slots[-1].flags, 0, 8 * limits.chunks, self._uploads)

    def prepare(self) -> None:
        """Compile and load the kernel, for not having to when memory is short."""
        if self._slots and self._kernel is None:
            self._kernel = compiler.load(move_program(self.threads, self.vectors, self.chunk), self.backend)

    def move(self, moves: Sequence[tuple[int, int, int]] | Table, stream: int = 0) -> None:
        """Queue (target, source, nbytes)…, as if `memmove`d one after another; an array of int64 saves time.

        Any alignment is right; that of 16 bytes is fast. If the driver refuses, `done_nbytes` says how far it came.
        """
        self.done_nbytes = 0
        if not self._slots or (len(moves) <= _FEW and not any(abs(t - s) < n for t, s, n in moves)):
            self._copy(moves, stream)
            return
        for aligned, part in aligned_runs(as_table(moves)):
            if aligned:
                self.run(plan(part, self.chunk, self.limits), stream)
            else:
                self._copy(part, stream)

    def run(self, batches: Iterable[Batch], stream: int = 0) -> None:
        """Queue what `plan` gave. A batch is worked out while the device is busy with the one before."""
        self.prepare()
        for batch in batches:
            self._launch(batch, stream)
            self.done_nbytes += VECTOR * int(batch.rows[:, SIZE].sum())

    def close(self) -> None:
        """Give all memory back, after what is queued."""
        if self._slots:
            self.backend.synchronize_stream(self._uploads)
            self.backend.destroy_stream(self._uploads)
        for slot in self._slots:
            self._wait(slot)
            self.backend.free(slot.flags)
            self.backend.free_host(slot.host)
        self._slots = []

    def _copy(self, moves: Iterable[Sequence[int]] | Table, stream: int) -> None:
        for target, source, nbytes in moves.tolist() if isinstance(moves, np.ndarray) else moves:
            if nbytes:
                self.backend.copy(target, source, nbytes, stream)
                self.done_nbytes += nbytes

    def _launch(self, batch: Batch, stream: int) -> None:
        assert self._kernel is not None
        backend, slot = self.backend, self._slots[self._turn]
        self._turn = 1 - self._turn
        self._wait(slot)
        ctypes.memset(slot.host, 0, _HEADER_NBYTES)  # the counter of tickets
        end = _HEADER_NBYTES
        for part in batch:
            ctypes.memmove(slot.host + end, part.ctypes.data, part.nbytes)
            end += part.nbytes
        backend.upload_async(slot.table, slot.host, end, self._uploads)
        slot.event = backend.record_event(self._uploads)
        backend.wait_event(stream, slot.event)
        slot.epoch += 1
        rows = slot.table + _HEADER_NBYTES
        chunks = len(batch.row_of)
        arguments = (0, rows, rows + batch.rows.nbytes, slot.flags, slot.table, slot.epoch, chunks)
        self._kernel.launch(LaunchConfig(chunks, 1, self.threads), arguments, stream)
        backend.destroy_event(slot.event)
        slot.event = backend.record_event(stream)

    def _wait(self, slot: _Slot) -> None:
        if slot.event is not None:
            self.backend.synchronize_event(slot.event)
            self.backend.destroy_event(slot.event)
            slot.event = None
