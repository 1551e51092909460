"""Recorded allocations as files: CSV (.csv or .csv.gz) of op, id, bytes, stream; `a` allocates a block, `f` frees it.

An id is free for another block once its own was freed.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ..errors import FlameError
from .views import Event, SegmentView

TRACE_COLUMNS = ("op", "id", "bytes", "stream")


class TraceError(FlameError, ValueError):
    """A trace has a row that makes no sense; the message has its file and line."""


@dataclass(frozen=True)
class Trace:
    """A program's allocations. Eight bytes an event, so that long recordings fit."""

    steps: array[int]  # ≥ 0: allocate so many bytes; < 0: free allocation number ~step
    streams: array[int]  # of each allocation, by number
    peak_live: int  # bytes
    peak_step: int  # the last step that reaches it; -1 in an empty trace


# --- reading ----------------------------------------------------------------------------------------------------------
def read_trace(path: str | os.PathLike[str]) -> Trace:
    """A trace from its file. Raises TraceError with the line, for rows that are malformed or free what is not live."""
    reader = _Reader(str(path))
    try:
        with _open_text(path) as text:
            rows = csv.reader(text)
            if tuple(next(rows, ())) != TRACE_COLUMNS:
                raise TraceError(f"{path}, line 1: expected the header {','.join(TRACE_COLUMNS)}")
            for row in rows:
                if row:
                    reader.take(rows.line_num, row)
    except (UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise TraceError(f"{path}: not a CSV file ({error})") from error
    return Trace(reader.steps, reader.streams, reader.peak, reader.peak_step)


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.steps = array("q")
        self.streams = array("q")
        self.numbers: dict[str, tuple[int, int]] = {}  # live ids → (allocation number, bytes)
        self.live = self.peak = 0
        self.peak_step = -1

    def take(self, line: int, row: Sequence[str]) -> None:
        if len(row) != 4 or row[0] not in ("a", "f") or not row[1]:
            raise TraceError(f"{self.path}, line {line}: expected a or f, an id, bytes and a stream, got {row}")
        op, name, nbytes, stream = row[0], row[1], *(self._number(line, text) for text in row[2:])
        if op == "a":
            self._allocate(line, name, nbytes, stream)
        else:
            self._free(line, name)

    def _allocate(self, line: int, name: str, nbytes: int, stream: int) -> None:
        if name in self.numbers:
            raise TraceError(f"{self.path}, line {line}: id {name} is allocated twice")
        self.numbers[name] = len(self.streams), nbytes
        self.live += nbytes
        if self.live >= self.peak:
            self.peak, self.peak_step = self.live, len(self.steps)
        self.steps.append(nbytes)
        self.streams.append(stream)

    def _free(self, line: int, name: str) -> None:
        if name not in self.numbers:
            raise TraceError(f"{self.path}, line {line}: id {name} is freed and not live")
        number, nbytes = self.numbers.pop(name)
        self.live -= nbytes
        self.steps.append(~number)

    def _number(self, line: int, text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise TraceError(f"{self.path}, line {line}: expected a whole number ≥ 0, got {text!r}")
        return int(text)


def _open_text(path: str | os.PathLike[str]) -> IO[str]:
    if Path(path).suffix == ".gz":
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8", newline=""))
    return open(path, encoding="utf-8", newline="")


# --- writing ----------------------------------------------------------------------------------------------------------
_Row = tuple[str, int, int, int]


def write_trace(path: str | os.PathLike[str], events: Sequence[Event], segments: Sequence[SegmentView] = ()) -> int:
    """Write what a pool recorded as a trace to replay. Returns the number of allocations.

    Blocks that were live before the recording come first; with `segments`, taken at its end, also those that
    nothing happened to.
    """
    writer = _Writer()
    for event in events:
        writer.take(event)
    for segment in segments:
        for block in segment.blocks:
            if block.state == "live":
                writer.known(block.address, block.nbytes, block.stream)
    write_csv(Path(path), TRACE_COLUMNS, writer.before + writer.rows)
    return writer.allocations


class _Writer:
    def __init__(self) -> None:
        self.before: list[_Row] = []
        self.rows: list[_Row] = []
        self.allocations = 0
        self._ids: dict[int, int] = {}  # of live blocks, by address
        self._streams: dict[int, int] = {0: 0}  # a driver's handle is an address: number them

    def take(self, event: Event) -> None:
        nbytes = event.requested or event.nbytes
        if event.action == "alloc":
            self.rows.append(self._new(event.address, nbytes, event.stream))
        elif event.action == "free":
            self.known(event.address, nbytes, event.stream)
            self.rows.append(("f", self._ids.pop(event.address), 0, self._stream(event.stream)))
        elif event.action == "move":
            self.known(event.address, nbytes, event.stream)
            self._ids[event.target] = self._ids.pop(event.address)

    def known(self, address: int, nbytes: int, stream: int) -> None:
        """A live block is here: if nothing was heard of it yet, it is older than the recording."""
        if address not in self._ids:
            self.before.append(self._new(address, nbytes, stream))

    def _new(self, address: int, nbytes: int, stream: int) -> _Row:
        self._ids[address] = self.allocations
        self.allocations += 1
        return "a", self._ids[address], nbytes, self._stream(stream)

    def _stream(self, handle: int) -> int:
        return self._streams.setdefault(handle, len(self._streams))


def write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Rows under their header, gzipped if the suffix is .gz."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # without a time in it, the same events give the same file
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
